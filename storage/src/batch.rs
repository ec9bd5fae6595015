//! A set of changes that happen together or not at all.

use serde::Serialize;

use crate::backend::Change;
use crate::key::Key;
use crate::table::{Table, readable};
use crate::value;
use crate::writer::CommitError;

/// Keys and values of one batch together, in bytes. It bounds what the writer's queue can hold
/// ([`QUEUE_BATCHES`](crate::QUEUE_BATCHES) times this) and how long a commit holds up others.
/// State that outgrows it belongs in a file of its own.
pub const MAX_BATCH_BYTES: usize = 1 << 20;

/// One key, in bytes; keys are names and digests, and a longer one is a mistake.
pub const MAX_KEY_BYTES: usize = 1024;

/// Changes to hand to [`Store::commit`](crate::Store::commit). What cannot be stored (too large,
/// not serializable) is remembered and refused there, with nothing stored.
#[derive(Debug, Default)]
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    changes: Vec<Change>,
    bytes: usize,
    refused: Option<CommitError>,
}

impl Batch {
    /// Without changes. Committing it so waits for all earlier commits.
    pub fn new() -> Self {
        Self::default()
    }

    /// The row exists and has this value, whatever was there before.
    pub fn put<K, V>(&mut self, table: &Table<K, V>, key: &K, value: &V) -> &mut Self
    where
        K: Key + ?Sized,
        V: Serialize,
    {
        let row = table.row_key(key);
        match value::encode(&row, value) {
            Ok(value) => self.push(table.name(), &key.to_bytes(), Change::Put { key: row, value }),
            Err(why) => self.refuse(CommitError::Encode {
                table: table.name(),
                key: readable(&key.to_bytes()),
                why,
            }),
        }
        self
    }

    /// The row does not exist, whether or not it did before.
    pub fn remove<K: Key + ?Sized, V>(&mut self, table: &Table<K, V>, key: &K) -> &mut Self {
        let row = table.row_key(key);
        self.push(table.name(), &key.to_bytes(), Change::Remove { key: row });
        self
    }

    /// Whether it holds no change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes and their size in bytes, or why they cannot be stored.
    pub(crate) fn finish(self) -> Result<(Vec<Change>, usize), CommitError> {
        match self.refused {
            Some(error) => Err(error),
            None => Ok((self.changes, self.bytes)),
        }
    }

    fn push(&mut self, table: &'static str, key: &[u8], change: Change) {
        let size = change.key().len() + change.value().map_or(0, <[u8]>::len);
        self.bytes = self.bytes.saturating_add(size);
        if key.len() > MAX_KEY_BYTES || self.bytes > MAX_BATCH_BYTES {
            // The whole key may be what is too long.
            let shown = key.get(..64).unwrap_or(key);
            self.refuse(CommitError::TooLarge { table, key: readable(shown) });
        } else {
            self.changes.push(change);
        }
    }

    /// Keeps the first reason; those after it may follow from it.
    fn refuse(&mut self, error: CommitError) {
        self.refused.get_or_insert(error);
    }
}
