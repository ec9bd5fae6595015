//! The worker process as the host sees it: starts it, carries frames, tells how it ended.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use planaria_config::Settings;
use planaria_engine::processor::Processor;
use planaria_protocol::pipe::{self, FRAME_CAP, WorkerEvent};
use planaria_transport::{
    Frame, HostReceiver, HostSender, PipeError, decode_message, encode_message, local_pipe,
};
use rustix::process::Signal;
use tokio::process::{Child, Command};

use crate::descriptors;
use crate::router::Router;

// Every frame from a peer goes through the pipe.
const _: () = assert!(FRAME_CAP == planaria_transport::ACTIVATION_CAP);

/// Commands that may wait for the pipe. Each sequence has a few segments under way and the first
/// stage admits no more sequences than the plan says, so only a stuck worker fills it.
const COMMANDS: usize = 4096;

/// The variable by which a node tells its workers what to log: that of the setting, whose value may have come
/// from elsewhere.
pub const LOG_VARIABLE: &str = "PLANARIA_LOG";
/// The same for the form of log lines.
pub const LOG_FORMAT_VARIABLE: &str = "PLANARIA_LOG_FORMAT";

/// What the node's own service manager told it; a worker is none of its business.
const FROM_SERVICE_MANAGER: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// A running worker. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Worker {
    commands: HostSender,
    pid: Option<u32>,
    kill: Option<tokio::sync::oneshot::Sender<()>>,
}

/// What the tasks of a worker bring.
#[derive(Debug)]
pub(super) enum Heard {
    Event(pipe::WorkerEvent, Bytes),
    Unreadable(String),
    Exited(io::Result<ExitStatus>),
}

impl Worker {
    /// Starts `planaria worker`, this same binary, which logs as `settings` say and computes on `processor`.
    /// `hear` is called from tasks of its own; what a rank has for others goes to `router` at once.
    pub(super) fn start(
        settings: &Settings,
        processor: Processor,
        router: Option<Arc<Router>>,
        hear: impl Fn(Heard) + Clone + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(LOG_VARIABLE, &settings.log);
        command.env(LOG_FORMAT_VARIABLE, settings.log_format.name());
        for variable in FROM_SERVICE_MANAGER {
            command.env_remove(variable);
        }
        let threads = processor.threads().to_string();
        command.args(["worker", "--threads", &threads, "--kernels", processor.isa().name()]);
        // Nothing is written to its input, which closes when the node dies.
        command.stdin(Stdio::piped()).kill_on_drop(true);
        // A Ctrl-C in the terminal is for the node, which then ends its workers in order.
        command.process_group(0);
        let (commands, events, mut child) = descriptors::starting(|| {
            let (commands, events, socket) = local_pipe(FRAME_CAP, COMMANDS)?;
            // Its standard output is the pipe.
            command.stdout(socket);
            Ok((commands, events, command.spawn()?))
        })?;
        let pid = child.id();
        // The command keeps the child's end of the pipe, whose end would not be noticed.
        drop(command);
        let life_line = child.stdin.take();
        let (kill, killed) = tokio::sync::oneshot::channel();
        let heard = tokio::spawn(read_events(events, router, hear.clone()));
        tokio::spawn(async move {
            let status = wait(child, killed).await;
            drop(life_line);
            // Whatever the worker managed to say comes before its end.
            drop(heard.await);
            hear(Heard::Exited(status));
        });
        Ok(Self { commands, pid, kill: Some(kill) })
    }

    /// Sends a command; to a worker that has just died it is lost with everything else. `false`
    /// when the worker has not taken its commands for so long that there is no room.
    pub(super) fn send(&self, command: &pipe::Command, payload: Bytes) -> bool {
        let sent = match encode_message(command) {
            Ok(header) => self.commands.try_send(Frame { header, payload }),
            Err(error) => {
                tracing::error!(%error, "a command cannot be written");
                Ok(())
            }
        };
        if let Err(error @ (PipeError::TooLong { .. } | PipeError::Broken)) = &sent {
            tracing::error!(%error, "a command did not reach the worker");
        }
        !matches!(sent, Err(PipeError::Full(_)))
    }

    /// The way in for what other ranks send.
    pub(super) fn commands(&self) -> HostSender {
        self.commands.clone()
    }

    pub(super) const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Kills the process; `Exited` follows. `false` when that was done before.
    pub(super) fn kill(&mut self) -> bool {
        // Nobody waits any more when it has exited already.
        self.kill.take().map(|kill| kill.send(()).ok()).is_some()
    }
}

/// How a worker ended, for people.
pub(super) fn words(status: ExitStatus) -> String {
    let lost_pages = status.signal() == Some(Signal::BUS.as_raw());
    let why = if lost_pages { "; a file of weights was cut short, or its disk failed" } else { "" };
    format!("{status}{why}")
}

async fn wait(
    mut child: Child,
    killed: tokio::sync::oneshot::Receiver<()>,
) -> io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        // Also when the worker's handle is dropped.
        _ = killed => {}
    }
    child.kill().await?;
    child.wait().await
}

async fn read_events(mut events: HostReceiver, router: Option<Arc<Router>>, hear: impl Fn(Heard)) {
    // What it said last to another rank.
    let mut last: Option<Bytes> = None;
    loop {
        let event = match events.recv().await {
            Ok(None) => {
                if let (Some(router), Some(last)) = (router, last) {
                    router.rank_ended(&last);
                }
                return;
            }
            Ok(Some(frame)) => match decode_message(&frame.header) {
                Ok(event) => Ok((event, frame.payload)),
                Err(error) => Err(error.to_string()),
            },
            Err(error) => Err(error.to_string()),
        };
        match event {
            Ok((WorkerEvent::Exchange { to, header }, payload)) => {
                if let Some(router) = &router {
                    router.send_exchange(to, &header, payload);
                }
                last = Some(header);
            }
            Ok((event, payload)) => hear(Heard::Event(event, payload)),
            Err(error) => return hear(Heard::Unreadable(error)),
        }
    }
}
