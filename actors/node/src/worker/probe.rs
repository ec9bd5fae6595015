//! Measures the device in a worker process of its own: only those load MLX.

use std::time::Duration;

use bytes::Bytes;
use planaria_config::Settings;
use planaria_engine::processor::Processor;
use planaria_engine::speed::Probed;
use planaria_protocol::pipe::{Command, WorkerEvent};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::process::{Heard, Worker};

/// It takes a second on a slow machine, and more while many processes start.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the device is, how fast, and what multiplies on it.
///
/// # Errors
/// In words, when the process could not say.
pub async fn measure(settings: &Settings, processor: Processor) -> Result<Probed, String> {
    #[expect(clippy::disallowed_methods, reason = "the process sends a single event")]
    let (tell, mut heard) = mpsc::unbounded_channel();
    // It sends a single event; without a listener it is on its way to be killed.
    let worker = Worker::start(settings, processor, None, move |said| drop(tell.send(said)));
    let worker = worker.map_err(|error| format!("no process could be started: {error}"))?;
    worker.send(&Command::Probe, Bytes::new());
    match timeout(PATIENCE, heard.recv()).await {
        Ok(Some(Heard::Event(WorkerEvent::Probed(result), _))) => result,
        Ok(Some(Heard::Exited(Ok(status)))) => Err(format!("its process ended with {status}")),
        Ok(other) => Err(format!("its process said something else: {other:?}")),
        Err(_) => Err(format!("it took longer than {PATIENCE:?}")),
    }
}
