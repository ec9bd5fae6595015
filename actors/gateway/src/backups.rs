//! Copies of what a node remembers.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use planaria_storage::{BackupError, Store, backup};
use planaria_telemetry::wall_clock::unix_millis;
use thiserror::Error;

/// Where a running node writes copies of its store. They hold its key, so only its own user may read
/// them: nobody else is handed one.
#[derive(Debug, Clone)]
pub struct Backups {
    store: Store,
    folder: PathBuf,
}

/// Why there is no copy.
#[derive(Debug, Error)]
pub enum NoBackup {
    /// The folder for it could not be made.
    #[error("{}: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It could not be written.
    #[error(transparent)]
    Write(#[from] BackupError),
}

impl Backups {
    /// Copies of `store`, in a folder of their own beside it.
    #[must_use]
    pub fn of(store: Store, data_dir: &Path) -> Self {
        Self { store, folder: data_dir.join("backups") }
    }

    /// Writes a copy of all that is stored now, in a file that is named after the time.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self) -> Result<PathBuf, NoBackup> {
        let folder = &self.folder;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| NoBackup::Folder { folder: folder.clone(), source })?;
        let path = folder.join(format!("{}.backup", unix_millis()));
        backup(&self.store, &path)?;
        Ok(path)
    }
}
