//! What a row store must offer: three calls over byte strings.

use std::io;
use std::sync::Arc;

use thiserror::Error;

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// One change of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The row exists and has this value, whatever was there before.
    Put {
        /// Any bytes, also none.
        key: Vec<u8>,
        /// Any bytes, also none.
        value: Vec<u8>,
    },
    /// The row does not exist, whether or not it did before.
    Remove {
        /// Any bytes, also none.
        key: Vec<u8>,
    },
}

impl Change {
    /// The row that is changed.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Remove { key } => key,
        }
    }

    /// What the row holds afterwards.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        match self {
            Self::Put { value, .. } => Some(value),
            Self::Remove { .. } => None,
        }
    }
}

/// An ordered map of byte strings. One contract suite (`tests/storage/contract.rs`) holds for
/// every implementation.
pub trait Backend: Send + Sync {
    /// The value of a row, if the row exists.
    ///
    /// # Errors
    /// When the row cannot be read. Other rows may still be readable.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError>;

    /// Every row whose key begins with `prefix`, in the order of the keys' bytes. A scan sees each
    /// commit entirely or not at all.
    ///
    /// # Errors
    /// When one of the rows cannot be read.
    fn scan(&self, prefix: &[u8]) -> Result<Vec<Row>, BackendError>;

    /// Makes all the changes, in order, as one; returns when they are durable. Readers may see
    /// them a moment earlier. With no changes it returns when everything before is durable.
    ///
    /// # Errors
    /// When durability could not be reached: after a restart all of the changes are there or none
    /// of them is. The backend takes no further commits until it is opened anew.
    fn commit(&self, changes: &[Change]) -> Result<(), BackendError>;
}

/// Why a backend could not do what was asked.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The operating system refused: permissions, a full disk, a failing disk.
    #[error("the disk refused: {0}")]
    Io(#[from] io::Error),
    /// The files do not hold what was written to them.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// An earlier commit failed, so what is in memory may not be what is on disk. Nothing was
    /// changed by this call; open the store anew.
    #[error("an earlier commit failed; open the store anew")]
    Stopped,
    /// The store is closed since a commit failed, and is opened anew by itself; see
    /// [`Store::closed`](crate::Store::closed). Nothing was read or changed; try again later.
    #[error("the store is closed until it can be opened anew: {reason}")]
    Closed {
        /// What stands in the way.
        reason: Arc<str>,
    },
}
