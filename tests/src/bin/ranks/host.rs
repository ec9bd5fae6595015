//! The process of a rank that has links to the other hosts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use planaria_collectives::{Header, Part, Rank};
use planaria_config::ClusterKey;
use planaria_transport::{
    Credentials, Endpoint, EndpointConfig, Frame, HostSender, Identity, Lane, LaneReceiver, Limits,
    Link, LinkReceiver, LinkSender, LocalHello, decode_message, encode_message, local_pipe,
};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::group::{CAP, ToHost, ToWorker, group_id};

/// Frames that may wait for a worker.
const WAITING: usize = 4096;

pub(crate) fn run(ports: &str, rank: usize, job: &str) -> Result<()> {
    let ports: Vec<u16> = ports.split(',').map(str::parse).collect::<Result<_, _>>()?;
    keep_to_one_core(rank)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(host(&ports, rank, job))
}

async fn host(ports: &[u16], rank: usize, job: &str) -> Result<()> {
    let mut links = link_up(ports, rank, limits(job)?).await?;
    if let Some(job) = job.strip_prefix("bulk:") {
        let (bytes, rounds) = job.split_once(':').context("no job")?;
        let (_, link) = links.pop().context("a link")?;
        return bulk(link, bytes.parse()?, rounds.parse()?).await;
    }
    let (to_worker, mut from_worker, socket) = local_pipe(CAP, WAITING)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["worker", &ports.len().to_string(), &rank.to_string(), job]);
    let mut worker =
        command.stdin(Stdio::piped()).stdout(Stdio::from(socket)).kill_on_drop(true).spawn()?;
    drop(command);
    println!("worker {}", worker.id().context("the worker has ended")?);
    let mut senders = BTreeMap::new();
    let mut tasks = JoinSet::new();
    for (peer, link) in links {
        let (sender, receiver) = link.split();
        let LinkReceiver { exchange, control, activation, bulk, datagrams } = receiver;
        tasks.spawn(take(peer, sender.clone(), exchange, to_worker.clone()));
        tasks.spawn(async move {
            // A link of which a part is not taken ends.
            let _kept = (control, activation, bulk, datagrams);
            std::future::pending().await
        });
        senders.insert(peer, sender);
    }
    tell(&to_worker, &ToWorker::Begin, Bytes::new())?;
    while let Some(frame) = from_worker.recv().await? {
        match decode_message(&frame.header)? {
            ToHost::Say(line) => println!("{line}"),
            ToHost::Send(to, header) => {
                let sender = senders.get(&to).context("no such rank")?;
                let frame = Frame { header, payload: frame.payload };
                if sender.try_send(Lane::Exchange, frame).is_err() {
                    tell(&to_worker, &ToWorker::Over(to), Bytes::new())?;
                }
            }
        }
    }
    // The others need not wait until they miss something.
    let from = Rank(u8::try_from(rank)?);
    let part = Part::GaveUp([from].into_iter().collect());
    let header = encode_message(&Header { group: group_id(), from, round: 0, part })?;
    for sender in senders.values() {
        // A peer that is gone need not know.
        drop(sender.try_send(Lane::Exchange, Frame::message(header.clone())));
    }
    worker.wait().await?;
    // What was sent has to leave.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// A rank is a machine: its host and its worker take no core from another rank's, as far as there are enough.
#[cfg(target_os = "linux")]
fn keep_to_one_core(rank: usize) -> Result<()> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let mut own = CpuSet::new();
    own.set(*cores.get(rank % cores.len().max(1)).context("no core")?);
    Ok(sched_setaffinity(None, &own)?)
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
fn keep_to_one_core(_: usize) -> Result<()> {
    Ok(())
}

/// Sends and receives so many bytes at once on the bulk lane, again and again, and says how long it took: what the link
/// carries in both directions when nothing is computed.
async fn bulk(link: Link, bytes: usize, rounds: usize) -> Result<()> {
    const CHUNK: usize = 256 << 10;
    let (sender, mut receiver) = link.split();
    let payload = Bytes::from(vec![1; CHUNK]);
    let mut times = Vec::new();
    for _ in 0..rounds + rounds / 5 {
        let start = Instant::now();
        for _ in 0..bytes / CHUNK {
            sender
                .send(Lane::Bulk, Frame { header: Bytes::new(), payload: payload.clone() })
                .await?;
        }
        for _ in 0..bytes / CHUNK {
            receiver.bulk.recv().await.context("the link has ended")?;
        }
        times.push(start.elapsed());
    }
    println!("{}", p50_and_p99(times.split_off(rounds / 5)));
    std::future::pending().await
}

/// The line that tells the median of some times and their 99th percentile.
pub(crate) fn p50_and_p99(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let last = times.len().max(1) - 1;
    let at = |percent: usize| times.get(last * percent / 100).copied().unwrap_or_default();
    format!("time {} {}", at(50).as_nanos(), at(99).as_nanos())
}

/// Whoever has patience with exchanges has it with links.
fn limits(job: &str) -> Result<Limits> {
    let usual = Limits::default();
    let patience = job.strip_prefix("for-ever:").map(str::parse).transpose()?;
    let patience = Duration::from_millis(patience.unwrap_or_default());
    let (idle, handshake) = (usual.idle.max(patience / 4), usual.handshake.max(patience));
    Ok(Limits { idle, handshake, ..usual })
}

/// Links to all other ranks: this one dials those before it.
async fn link_up(ports: &[u16], rank: usize, limits: Limits) -> Result<Vec<(Rank, Link)>> {
    let credentials =
        Credentials::derive(&ClusterKey::from_bytes([5; 32]), &Identity::generate()?)?;
    let here = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let name = rank.to_string();
    let hello = LocalHello { boot_count: 1, name, info: Bytes::new(), features: Vec::new() };
    let listen = here(*ports.get(rank).context("no port for this rank")?);
    let config = EndpointConfig { listen, hello, limits };
    let endpoint = Arc::new(Endpoint::bind(&credentials, config)?);
    let mut links = Vec::new();
    for port in ports.iter().take(rank) {
        let link = loop {
            if let Ok(link) = endpoint.dial(here(*port)).await {
                break link;
            }
        };
        links.push(link);
    }
    while links.len() + 1 < ports.len() {
        links.push(endpoint.accept().await.context("the endpoint is closed")??);
    }
    // It closes its links when it is dropped.
    std::mem::forget(endpoint);
    let named = |link: Link| Ok((Rank(link.peer().name.parse()?), link));
    links.into_iter().map(named).collect()
}

/// Frames of a peer, for the worker.
async fn take(
    peer: Rank,
    link: LinkSender,
    mut exchange: LaneReceiver,
    to_worker: HostSender,
) -> Result<()> {
    while let Some(inbound) = exchange.recv().await {
        let header: Header = decode_message(&inbound.frame.header)?;
        ensure!(header.from == peer, "{peer} says that it is {}", header.from);
        tell(&to_worker, &ToWorker::Frame(inbound.frame.header), inbound.frame.payload)?;
    }
    drop(link);
    tell(&to_worker, &ToWorker::Over(peer), Bytes::new())
}

fn tell(worker: &HostSender, message: &ToWorker, payload: Bytes) -> Result<()> {
    let header = encode_message(message)?;
    worker.try_send(Frame { header, payload }).context("the worker takes nothing")
}
