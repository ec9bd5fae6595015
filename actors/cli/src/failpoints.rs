//! Faults on demand, in programs for tests alone: what a released one does not contain cannot go off.

use std::path::Path;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

/// At every SIGUSR1 reads `failpoints` in the data folder: a line `ACTOR=WHAT` for each actor whose handlers
/// are to fail, in the words of the crate `fail`.
pub(super) fn listen(data_dir: &Path) -> anyhow::Result<()> {
    let mut told = signal(SignalKind::user_defined1())?;
    let path = data_dir.join("failpoints");
    tokio::spawn(async move {
        while told.recv().await.is_some() {
            match set(&path) {
                Ok(set) => tracing::warn!(set, "handlers are to fail"),
                Err(error) => tracing::error!("{error:#}"),
            }
        }
    });
    Ok(())
}

fn set(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    for line in text.lines() {
        let (actor, what) = line.split_once('=').context("a line without `=`")?;
        fail::cfg(actor, what).map_err(anyhow::Error::msg)?;
    }
    Ok(text.trim().to_owned())
}
