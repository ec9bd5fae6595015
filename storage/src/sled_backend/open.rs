//! Opening a store's directory: hold it, look at its schema, open sled, prove the rows complete.
//!
//! The order matters. The lock comes before anything is read, so that a store in use is never
//! taken for a damaged one; the schema comes before sled, which writes on opening.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::contain::contained;
use super::directory::Directory;
use super::durable::Files;
use super::seal::{Mark, SCHEMA, Seal, Watermark};
use super::{Committed, SEAL_KEY, SledBackend, abandon, rows};
use crate::backend::BackendError;

/// Memory for sled's page cache. The tables are small; sled's default of 1 GiB is a model's layer.
const CACHE_BYTES: u64 = 64 << 20;

/// How often sled compacts its log, in milliseconds. It also calls `fsync` then, idle or not, so
/// the default of 500 keeps disks awake; our flushes do not depend on it.
const COMPACT_EVERY_MS: u64 = 10_000;

/// How long a store that this process closed a moment ago may still look open: sled's background
/// threads end a little after its handle does, and a child that is just being started holds every
/// lock of its parent until it becomes another program.
const RELEASE: Duration = Duration::from_secs(5);

/// How often to look again meanwhile.
const RELEASE_POLL: Duration = Duration::from_millis(20);

/// Why a store was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it. Nothing was touched; stop that one, or use another directory.
    #[error("{dir}: another planaria node uses this data directory")]
    InUse {
        /// The store.
        dir: PathBuf,
    },
    /// A newer planaria wrote it. Nothing was touched; use that one, or another directory.
    #[error(
        "{dir}: written by a newer planaria (schema {found}, this one knows {SCHEMA}); upgrade \
         this node or use another data directory"
    )]
    Newer {
        /// The store.
        dir: PathBuf,
        /// The schema found.
        found: u32,
    },
    /// The operating system refused: permissions, a full disk, a failing disk. No row was changed;
    /// mend that and try again.
    #[error("{dir}: {source}")]
    Io {
        /// The store.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The files do not hold what was written to them. They are left where they are.
    #[error("{dir}: the store is damaged: {reason}")]
    Damaged {
        /// The store.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// As `Damaged`, and moving it out of the way failed. Move it by hand.
    #[error("{dir}: the store is damaged ({reason}) and cannot be set aside: {source}")]
    NotSetAside {
        /// The store.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What the system said to renaming it.
        source: io::Error,
    },
}

pub(super) fn open(dir: &Path) -> Result<SledBackend, OpenError> {
    open_held(hold(dir)?, dir).map_err(|(error, _)| error)
}

pub(super) fn open_again(dir: &Path) -> Result<SledBackend, OpenError> {
    let directory = hold(dir)?;
    // sled that fails in the midst of opening may never let go of its files.
    directory.probe().map_err(|source| OpenError::Io { dir: dir.to_owned(), source })?;
    open_held(directory, dir).map_err(|(error, _)| error)
}

pub(super) fn open_or_set_aside(dir: &Path) -> Result<(SledBackend, Option<PathBuf>), OpenError> {
    let (reason, directory) = match open_held(hold(dir)?, dir) {
        Ok(backend) => return Ok((backend, None)),
        Err((OpenError::Damaged { reason, .. }, directory)) => (reason, directory),
        Err((error, _)) => return Err(error),
    };
    let aside = directory.set_aside().map_err(|source| OpenError::NotSetAside {
        dir: dir.to_owned(),
        reason: reason.clone(),
        source,
    })?;
    tracing::error!(
        dir = %dir.display(), aside = %aside.display(), %reason,
        "the store was damaged; it was set aside and a new one takes its place"
    );
    Ok((open(dir)?, Some(aside)))
}

fn hold(dir: &Path) -> Result<Directory, OpenError> {
    let start = Instant::now();
    loop {
        match Directory::hold(dir) {
            Ok(Some(directory)) => return Ok(directory),
            Ok(None) if start.elapsed() > RELEASE => {
                return Err(OpenError::InUse { dir: dir.to_owned() });
            }
            Ok(None) => poll_again(),
            Err(source) => return Err(OpenError::Io { dir: dir.to_owned(), source }),
        }
    }
}

/// With an error the directory comes back, still held, so that it can be set aside.
fn open_held(directory: Directory, dir: &Path) -> Result<SledBackend, (OpenError, Directory)> {
    let dir = dir.to_owned();
    match open_files(&directory) {
        Ok((db, committed)) => Ok(SledBackend {
            db,
            applying: RwLock::new(()),
            committed: Mutex::new(committed),
            damaged: AtomicBool::new(false),
            _directory: directory,
        }),
        Err(Refusal::Newer(found)) => Err((OpenError::Newer { dir, found }, directory)),
        Err(Refusal::InUse) => Err((OpenError::InUse { dir }, directory)),
        Err(Refusal::Io(source)) => Err((OpenError::Io { dir, source }, directory)),
        Err(Refusal::Damaged(reason)) => match directory.probe() {
            Ok(()) => Err((OpenError::Damaged { dir, reason }, directory)),
            Err(source) => Err((OpenError::Io { dir, source }, directory)),
        },
    }
}

enum Refusal {
    Newer(u32),
    InUse,
    Io(io::Error),
    Damaged(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<BackendError> for Refusal {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Io(error) => Self::Io(error),
            other => Self::Damaged(other.to_string()),
        }
    }
}

fn open_files(directory: &Directory) -> Result<(sled::Db, Committed), Refusal> {
    let mark = Watermark::read(&directory.watermark())?;
    if let Mark::Seal(Seal { schema, .. }) = mark
        && schema > SCHEMA
    {
        return Err(Refusal::Newer(schema));
    }
    let is_new = !directory.sled().exists() || directory.is_being_made();
    if is_new && matches!(mark, Mark::Missing) {
        directory.begin_making()?;
    }
    let db = open_sled(&directory.sled())?;
    let seal = prove(&db, mark).inspect_err(|refusal| {
        if matches!(refusal, Refusal::Damaged(_)) {
            abandon(&db);
        }
    })?;
    let mut files = Files::of(&directory.sled())?;
    let seal = match seal {
        Some(seal) => seal,
        None => {
            contained(|| {
                db.insert(SEAL_KEY, &Seal::NEW.encode()[..])?;
                db.flush()
            })?;
            Seal::NEW
        }
    };
    files.sync()?;
    // Only now: a watermark beside a store without a seal would be taken for lost rows.
    let mut watermark = Watermark::open(&directory.watermark())?;
    watermark.write(seal)?;
    directory.sync()?;
    // With a watermark it is made, whether this survives a power loss or not.
    directory.end_making()?;
    Ok((db, Committed { seal, watermark, files, stopped: false }))
}

fn open_sled(path: &Path) -> Result<sled::Db, Refusal> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(Some(COMPACT_EVERY_MS));
    let start = Instant::now();
    loop {
        match contained(|| config.open()) {
            Err(BackendError::Damaged(reason)) if reason.contains("could not acquire lock") => {
                if start.elapsed() > RELEASE {
                    return Err(Refusal::InUse);
                }
                poll_again();
            }
            result => return Ok(result?),
        }
    }
}

/// Reads every row. The seal of a sound store, or `None` of one that was never used.
fn prove(db: &sled::Db, mark: Mark) -> Result<Option<Seal>, Refusal> {
    let damaged = |reason: String| Err(Refusal::Damaged(reason));
    let stored = contained(|| db.get(SEAL_KEY))?;
    let rows = contained(|| rows(db, b""))?;
    let Some(stored) = stored else {
        return match mark {
            Mark::Missing if rows.is_empty() => Ok(None),
            _ => damaged("its seal is gone".to_owned()),
        };
    };
    let Some(seal) = Seal::decode(&stored) else {
        return damaged("its seal is unreadable".to_owned());
    };
    if seal.schema > SCHEMA {
        return Err(Refusal::Newer(seal.schema));
    }
    match mark {
        Mark::Seal(mark) if mark.generation > seal.generation => {
            return damaged(format!(
                "it is at commit {} and {} were acknowledged",
                seal.generation, mark.generation
            ));
        }
        Mark::Seal(_) => {}
        Mark::Missing | Mark::Unreadable => {
            tracing::warn!(
                "the store's watermark is gone; its newest commits cannot be vouched for"
            );
        }
    }
    let mut found = Seal::NEW;
    for (key, value) in &rows {
        found.change(key, None, Some(value));
    }
    if found.digest != seal.digest {
        return damaged(format!("rows are missing or foreign among its {}", rows.len()));
    }
    Ok(Some(seal))
}

#[expect(clippy::disallowed_methods, reason = "nobody says when a lock is free")]
fn poll_again() {
    std::thread::sleep(RELEASE_POLL);
}
