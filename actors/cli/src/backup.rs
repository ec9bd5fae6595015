//! `planaria backup` and `planaria restore`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use planaria_config::Settings;
use planaria_node::ledger;
use planaria_storage::{Store, backup, restore};
use planaria_telemetry::wall_clock::unix_seconds;
use serde::Deserialize;

use super::flags::SettingFlags;
use super::node_api::NodeApi;
use super::serve::lock;

#[derive(Debug, Args)]
pub(super) struct BackupFlags {
    /// Where to write it; only you can read it.
    file: PathBuf,
    #[command(flatten)]
    node: NodeFlags,
    #[command(flatten)]
    api: NodeApi,
}

#[derive(Debug, Args)]
pub(super) struct RestoreFlags {
    /// A file that `planaria backup` wrote.
    file: PathBuf,
    #[command(flatten)]
    node: NodeFlags,
}

/// Whose data it is about.
#[derive(Debug, Args)]
struct NodeFlags {
    /// Settings file (default: ~/.planaria/planaria.toml, if it is there).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the node's identity and state.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

impl NodeFlags {
    fn settings(&self) -> anyhow::Result<Settings> {
        let flags = SettingFlags::of_data_dir(self.config.clone(), self.data_dir.clone());
        Ok(flags.resolve()?.0)
    }
}

/// What a running node says of the copy that it wrote.
#[derive(Debug, Deserialize)]
struct Written {
    path: PathBuf,
}

pub(super) fn backup_store(flags: &BackupFlags) -> anyhow::Result<ExitCode> {
    let data_dir = flags.node.settings()?.data_dir;
    if !data_dir.join("store").exists() {
        bail!("data folder {}: no node has run with it", data_dir.display());
    }
    match lock(&data_dir) {
        // Nobody has the store open, and nobody will while the lock is held.
        Ok(_lock) => backup(&Store::open(&data_dir.join("store"))?.store, &flags.file)?,
        Err(_) => {
            let text = flags.api.post("/cluster/backup").with_context(|| {
                format!("a node runs with {} and must write it itself", data_dir.display())
            })?;
            let Written { path } =
                serde_json::from_str(&text).context("the node answered something else")?;
            take_over(&path, &data_dir, &flags.file)?;
        }
    }
    say(&format!("{}: a backup of {}", flags.file.display(), data_dir.display()))
}

/// Moves what the node wrote to where it was wanted.
fn take_over(written: &Path, data_dir: &Path, to: &Path) -> anyhow::Result<()> {
    let folder = fs::canonicalize(data_dir)?;
    if !fs::canonicalize(written).is_ok_and(|path| path.starts_with(&folder)) {
        bail!(
            "the node that answered keeps its data elsewhere, in {}: give its --data-dir, or the \
             --api of the node with {}",
            written.display(),
            data_dir.display()
        );
    }
    fs::copy(written, to).with_context(|| to.display().to_string())?;
    fs::remove_file(written).with_context(|| written.display().to_string())
}

pub(super) fn restore_store(flags: &RestoreFlags) -> anyhow::Result<ExitCode> {
    let data_dir = flags.node.settings()?.data_dir;
    fs::create_dir_all(&data_dir).with_context(|| data_dir.display().to_string())?;
    let _lock = lock(&data_dir)?;
    let dir = data_dir.join("store");
    restore(&flags.file, &dir)?;
    let store = Store::open(&dir)?.store;
    ledger::begin_after_restore(&store, unix_seconds())?;
    say(&format!("{}: restored from {}", data_dir.display(), flags.file.display()))
}

fn say(text: &str) -> anyhow::Result<ExitCode> {
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
