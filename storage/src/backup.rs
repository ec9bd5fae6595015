//! A store as one file, and back.
//!
//! The file: magic, schema (u32), then per row key length, value length (u32 each), key, value;
//! at the end the number of rows (u64) and a CRC-32 of everything before it. Numbers are big
//! endian. Tables are small, so a backup is built and read in memory.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::backend::{Backend as _, BackendError, Change, Row};
use crate::batch::MAX_BATCH_BYTES;
use crate::sled_backend::{OpenError, SCHEMA, SledBackend, sync_parent};
use crate::store::Store;

const MAGIC: [u8; 16] = *b"planaria-backup\n";

/// Number of rows and checksum.
const TRAILER_BYTES: usize = 12;

/// Why no backup was written. The file that was there before, if any, is as it was.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The store's rows could not be read.
    #[error("the store cannot be read: {0}")]
    Read(#[from] BackendError),
    /// The file could not be written.
    #[error("{path}: {source}")]
    Io {
        /// The backup.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why no store was made of a backup. The directory is as it was.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The file could not be read, or the directory not be written.
    #[error("{path}: {source}")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no backup, or not the one that was written.
    #[error("{path}: not an intact backup: {why}")]
    Damaged {
        /// The backup.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A newer planaria wrote the backup.
    #[error("{path}: written by a newer planaria (schema {found}, this one knows {SCHEMA})")]
    Newer {
        /// The backup.
        path: PathBuf,
        /// The schema found.
        found: u32,
    },
    /// There is something in the directory already, and a restore overwrites nothing.
    #[error("{dir}: not empty; restore into a new directory, or move this one away")]
    NotEmpty {
        /// Where the store was to be.
        dir: PathBuf,
    },
    /// The new store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new store could not be written.
    #[error("the new store: {0}")]
    Write(#[from] BackendError),
}

/// Writes every row, as of one moment between two commits, to a file; replaces an older backup of
/// that name once the new one is complete and on the disk. The store can be in use meanwhile.
///
/// # Errors
/// See [`BackupError`].
pub fn backup(store: &Store, to: &Path) -> Result<(), BackupError> {
    let bytes = encode(&store.backend().scan(b"")?);
    let partial = with_suffix(to, ".partial");
    // What is in it may be a secret.
    let private =
        || File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial);
    let written = private().and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&partial, to)?;
        sync_parent(to)
    });
    written.map_err(|source| {
        // Nothing is lost if this fails too: the next backup overwrites the leftover.
        let _ = fs::remove_file(&partial);
        BackupError::Io { path: to.to_owned(), source }
    })
}

/// Makes a store in `dir`, which must be missing or empty, of a backup.
///
/// # Errors
/// See [`RestoreError`].
pub fn restore(from: &Path, dir: &Path) -> Result<(), RestoreError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::Io { path, source }
    };
    if !is_free(dir).map_err(io(dir))? {
        return Err(RestoreError::NotEmpty { dir: dir.to_owned() });
    }
    let rows = decode(&fs::read(from).map_err(io(from))?, from)?;
    let partial = with_suffix(dir, ".restoring");
    if partial.exists() {
        // Left by a restore that was killed.
        fs::remove_dir_all(&partial).map_err(io(&partial))?;
    }
    let filled = fill(&partial, rows)
        .and_then(|()| fs::rename(&partial, dir).and_then(|()| sync_parent(dir)).map_err(io(dir)));
    if filled.is_err() {
        // The next restore removes it if this one cannot.
        let _ = fs::remove_dir_all(&partial);
    }
    filled
}

fn fill(dir: &Path, rows: Vec<Row>) -> Result<(), RestoreError> {
    let backend = SledBackend::open(dir)?;
    let mut changes = Vec::new();
    let mut bytes = 0;
    for (key, value) in rows {
        bytes += key.len() + value.len();
        changes.push(Change::Put { key, value });
        if bytes >= MAX_BATCH_BYTES {
            backend.commit(&changes)?;
            changes.clear();
            bytes = 0;
        }
    }
    Ok(backend.commit(&changes)?)
}

fn is_free(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

fn encode(rows: &[Row]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(SCHEMA.to_be_bytes());
    for (key, value) in rows {
        for part in [key, value] {
            // A row never exceeds MAX_BATCH_BYTES, so its parts fit 32 bits.
            bytes.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        }
        bytes.extend(key);
        bytes.extend(value);
    }
    bytes.extend((rows.len() as u64).to_be_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    bytes
}

fn decode(bytes: &[u8], path: &Path) -> Result<Vec<Row>, RestoreError> {
    let damaged = |why| RestoreError::Damaged { path: path.to_owned(), why };
    let body =
        bytes.strip_prefix(&MAGIC).ok_or_else(|| damaged("it begins with something else"))?;
    let (sealed, crc) = bytes.split_last_chunk().ok_or_else(|| damaged("it is cut short"))?;
    if crc32fast::hash(sealed) != u32::from_be_bytes(*crc) {
        return Err(damaged("its checksum is wrong"));
    }
    let (schema, body) = body.split_first_chunk().ok_or_else(|| damaged("it is cut short"))?;
    let found = u32::from_be_bytes(*schema);
    if found > SCHEMA {
        return Err(RestoreError::Newer { path: path.to_owned(), found });
    }
    let end = body.len().checked_sub(TRAILER_BYTES).ok_or_else(|| damaged("it is cut short"))?;
    let (mut rest, trailer) = body.split_at(end);
    let mut rows = Vec::new();
    while !rest.is_empty() {
        let (row, after) = take_row(rest).ok_or_else(|| damaged("a row is cut short"))?;
        rows.push(row);
        rest = after;
    }
    if trailer.first_chunk() != Some(&(rows.len() as u64).to_be_bytes()) {
        return Err(damaged("rows are missing"));
    }
    Ok(rows)
}

fn take_row(bytes: &[u8]) -> Option<(Row, &[u8])> {
    let (key, rest) = bytes.split_first_chunk()?;
    let (value, rest) = rest.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(u32::from_be_bytes(*key) as usize)?;
    let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*value) as usize)?;
    Some(((key.to_vec(), value.to_vec()), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..8)
    }

    proptest! {
        #[test]
        fn rows_come_back(rows in rows()) {
            prop_assert_eq!(decode(&encode(&rows), Path::new("file")).unwrap(), rows);
        }

        #[test]
        fn any_flipped_bit_and_any_cut_is_noticed(
            rows in rows(), at: prop::sample::Index, bit in 0u8..8,
        ) {
            let bytes = encode(&rows);
            let at = at.index(bytes.len());
            prop_assert!(decode(&bytes[..at], Path::new("file")).is_err());
            let mut flipped = bytes;
            flipped[at] ^= 1 << bit;
            prop_assert!(decode(&flipped, Path::new("file")).is_err());
        }

        #[test]
        fn foreign_rows_never_panic(bytes: Vec<u8>) {
            let _ = take_row(&bytes);
        }
    }
}
