//! What hosts and workers of a rank say to each other, and how a group starts.

use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use planaria_collectives::{GroupId, Rank};
use planaria_config::{Epoch, NodeId};
use serde::{Deserialize, Serialize};

/// An operation that is measured has failed if it takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// Frames longer than this are none.
pub(crate) const CAP: usize = planaria_transport::ACTIVATION_CAP;

/// From a host to its worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// All links are there.
    Begin,
    /// A frame for it: its header, as it came. What it carries is the payload.
    Frame(Bytes),
    /// A rank is over.
    Over(Rank),
}

/// From a worker to its host.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToHost {
    /// Send the payload under this header, which is encoded once on its whole way.
    Send(Rank, Bytes),
    /// Print a line.
    Say(String),
}

pub(crate) fn group_id() -> GroupId {
    let epoch = Epoch { counter: 1, planner: NodeId::from_bytes([1; 32]) };
    GroupId { epoch, stage: 0, attempt: 0 }
}

/// A group of processes. Dropping it kills them.
pub(crate) struct Running {
    pub(crate) hosts: Vec<Child>,
    /// What ranks say, each line with its rank.
    pub(crate) lines: Receiver<(usize, String)>,
}

impl Running {
    /// Starts a group of so many ranks, whose workers do this job.
    pub(crate) fn start(ranks: usize, job: &str) -> Result<Self> {
        let sockets: Vec<UdpSocket> =
            (0..ranks).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let ports: Vec<String> = sockets
            .iter()
            .map(|socket| Ok(socket.local_addr()?.port().to_string()))
            .collect::<Result<_>>()?;
        drop(sockets);
        let (tell, lines) = channel();
        let mut hosts = Vec::new();
        for rank in 0..ranks {
            let mut host = Command::new(std::env::current_exe()?)
                .args(["host", &ports.join(","), &rank.to_string(), job])
                .stdout(Stdio::piped())
                .spawn()?;
            let output = host.stdout.take().context("a host's output")?;
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    // Nobody may listen any more.
                    drop(tell.send((rank, line)));
                }
            });
            hosts.push(host);
        }
        Ok(Self { hosts, lines })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            // One that has ended is not there to be killed.
            drop(host.kill());
            drop(host.wait());
        }
    }
}
