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
use serde_json::Value;

/// Longest wait for anything that should happen: generous, since machines are shared and slow. A
/// test that passes never waits this long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Makes a model `name` in `folder` that computes nothing: `sizes` are those of its configuration
/// (see the engine's `fake`), its tokenizer is the demo model's.
///
/// # Errors
/// When files cannot be written.
pub fn write_fake_model(folder: &Path, name: &str, sizes: Value) -> Result<()> {
    let model = folder.join(name);
    std::fs::create_dir(&model)?;
    let mut config = sizes;
    if let Some(config) = config.as_object_mut() {
        config.insert("model_type".to_owned(), "planaria_fake".into());
    }
    std::fs::write(model.join("config.json"), config.to_string())?;
    let tokenizer = repository().join("engine/models/demo");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tokenizer.join(file), model.join(file))?;
    }
    Ok(())
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
