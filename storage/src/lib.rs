//! Small crash-safe typed tables.
//!
//! A [`Store`] is one directory on disk, opened by one process at a time. A [`Table`] names a set
//! of rows in it and gives them types; a [`Batch`] is a set of changes that happen together or
//! not at all. One writer thread per store commits batches: those that queue up while it waits
//! for the disk share the next flush.
//!
//! Map, from the top: `store` (opening, handles) → `writer` (the thread, group commit, opening anew what
//! a failed commit closed) → `seat` (where the backend is while the store is open) → `backend` (the
//! three calls a row store must offer) → `sled_backend` and `memory`. `table`,
//! `key` and `value` turn rows into types; `backup` copies a store to one file and back.
//!
//! # What an acknowledged commit survives
//! - **The process being killed at any moment** (`kill -9`, abort, out of memory): always.
//! - **Power loss, kernel crash**: as far as the disk honours `fsync`, which every flush calls.
//!   sled alone would not: its flush is `sync_file_range` on Linux, which neither writes file
//!   sizes nor empties the disk's own cache.
//! - **A disk that refuses** (full, read-only, no descriptor): what was acknowledged is there. The
//!   store is closed, says why, and opens itself anew once the disk takes and gives again.
//! - **Damaged files**: not survived, but noticed. [`Store::open`] reads every row and proves the
//!   set complete; a store that fails this is renamed aside whole and a new one takes its place.
//!
//! Architecture invariant: nothing here knows what a row means, and nothing here is async.

mod backend;
mod backup;
mod batch;
mod key;
mod memory;
mod seat;
mod sled_backend;
mod store;
mod table;
mod value;
mod writer;

pub use backend::{Backend, BackendError, Change, Row};
pub use backup::{BackupError, RestoreError, backup, restore};
pub use batch::{Batch, MAX_BATCH_BYTES, MAX_KEY_BYTES};
pub use key::Key;
pub use memory::MemoryBackend;
pub use seat::Closed;
pub use sled_backend::{OpenError, SCHEMA, SledBackend};
pub use store::{Opened, Store, StoreStats};
pub use table::{ReadError, Table};
pub use writer::{CommitError, QUEUE_BATCHES};
