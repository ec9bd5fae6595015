//! Rows in sled: one database, one tree.
//!
//! Keys on disk begin with `d` for rows and `m` for this module's own. Every commit is one sled
//! batch with its [`Seal`], one blocking flush (`flush_async` deadlocks under load) and one
//! `fsync`, then the watermark.
//!
//! After a failed commit, or a panic inside sled, the backend takes no further commits: what sled
//! holds in memory may not be on disk. Opening it anew tells.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::backend::{Backend, BackendError, Change, Row};

mod contain;
mod directory;
mod durable;
mod open;
mod seal;

pub use open::OpenError;
pub use seal::SCHEMA;

use contain::contained;
use directory::Directory;
pub(crate) use directory::sync_parent;
use durable::Files;
use seal::{Seal, Watermark};

/// Where the seal is kept among the rows.
const SEAL_KEY: &[u8] = b"m/seal";

/// What every row's key begins with.
const ROW: u8 = b'd';

/// A [`Backend`] in a directory of its own, which one process at a time can hold.
pub struct SledBackend {
    db: sled::Db,
    /// Held shared by scans and exclusively while a batch is applied, so that no scan sees half.
    applying: RwLock<()>,
    committed: Mutex<Committed>,
    damaged: AtomicBool,
    // Released last, when sled is closed.
    _directory: Directory,
}

struct Committed {
    seal: Seal,
    watermark: Watermark,
    files: Files,
    stopped: bool,
}

impl SledBackend {
    /// Opens the rows in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// See [`OpenError`]; a damaged store is one of them.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        open::open(dir)
    }

    /// As [`SledBackend::open`], in the process that had it open, after a commit failed: as long as the
    /// disk refuses, its files are not touched.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_again(dir: &Path) -> Result<Self, OpenError> {
        open::open_again(dir)
    }

    /// As [`SledBackend::open`], but a damaged store is renamed to `<dir>.damaged-<n>` and a new
    /// one is opened; the second value then says where it is.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_or_set_aside(dir: &Path) -> Result<(Self, Option<PathBuf>), OpenError> {
        open::open_or_set_aside(dir)
    }

    fn guarded<T>(&self, work: impl FnOnce() -> sled::Result<T>) -> Result<T, BackendError> {
        if self.damaged.load(Ordering::Acquire) {
            return Err(BackendError::Stopped);
        }
        contained(work).inspect_err(|error| {
            let damaged = matches!(error, BackendError::Damaged(_));
            if damaged && !self.damaged.swap(true, Ordering::AcqRel) {
                abandon(&self.db);
            }
        })
    }

    fn apply(&self, committed: &mut Committed, changes: &[Change]) -> Result<(), BackendError> {
        let mut seal = committed.seal;
        seal.generation += 1;
        // Later changes of a row replace earlier ones, as sled's batch would do.
        let last: BTreeMap<&[u8], Option<&[u8]>> =
            changes.iter().map(|change| (change.key(), change.value())).collect();
        let mut batch = sled::Batch::default();
        for (key, value) in last {
            let row = row_key(key);
            let before = self.guarded(|| self.db.get(&row))?;
            seal.change(key, before.as_deref(), value);
            match value {
                Some(value) => batch.insert(row, value),
                None => batch.remove(row),
            }
        }
        batch.insert(SEAL_KEY, &seal.encode()[..]);
        {
            let _alone = self.applying.write().unwrap_or_else(PoisonError::into_inner);
            self.guarded(|| self.db.apply_batch(batch))?;
        }
        self.guarded(|| self.db.flush())?;
        committed.files.sync()?;
        committed.watermark.write(seal)?;
        committed.seal = seal;
        Ok(())
    }
}

impl Backend for SledBackend {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        let value = self.guarded(|| self.db.get(row_key(key)))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Row>, BackendError> {
        let _whole = self.applying.read().unwrap_or_else(PoisonError::into_inner);
        self.guarded(|| rows(&self.db, prefix))
    }

    fn commit(&self, changes: &[Change]) -> Result<(), BackendError> {
        let mut committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        if committed.stopped {
            return Err(BackendError::Stopped);
        }
        self.apply(&mut committed, changes).inspect_err(|_| committed.stopped = true)
    }
}

/// Keeps a sled that met damage from ever being closed: closing it can hang or panic, and would
/// write to the files. What it holds is left to the end of the process.
fn abandon(db: &sled::Db) {
    std::mem::forget(db.clone());
}

fn row_key(key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + key.len());
    row.push(ROW);
    row.extend_from_slice(key);
    row
}

fn rows(tree: &sled::Tree, prefix: &[u8]) -> sled::Result<Vec<Row>> {
    tree.scan_prefix(row_key(prefix))
        .map(|row| {
            let (key, value) = row?;
            Ok((key.get(1..).unwrap_or_default().to_vec(), value.to_vec()))
        })
        .collect()
}
