//! The harness: real `planaria` processes on loopback or on a network of their own, started,
//! watched, killed and cleaned up.
//!
//! Whatever a test does, its processes end with it: every [`Process`] is killed when dropped, and
//! its workers end when it does.

pub mod api;
pub mod cluster;
pub mod lan;
pub mod process;

pub use cluster::{Cluster, NodeSpec};
pub use lan::{Lan, Machine};
pub use process::Process;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Longest wait for anything that should happen: generous, since machines are shared and slow. A
/// test that passes never waits this long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Waits until `condition` gives something. `what` names it when it does not.
///
/// # Errors
/// When it does not within [`PATIENCE`], or `condition` fails for good.
pub async fn wait_for<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = condition().await? {
            return Ok(found);
        }
        if start.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
