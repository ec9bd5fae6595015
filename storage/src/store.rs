//! The handle of an open store, and opening one.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::Backend;
use crate::batch::Batch;
use crate::memory::MemoryBackend;
use crate::sled_backend::{OpenError, SledBackend};
use crate::writer::{CommitError, Writer};

/// A handle of an open store; clones are handles of the same one.
///
/// Dropping the last handle commits what is queued, ends the writer thread and releases the
/// directory. It blocks for that long.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    // Dropped first, so the thread is gone before the backend closes.
    writer: Writer,
    backend: Arc<dyn Backend>,
}

/// What [`Store::open`] found.
#[derive(Debug)]
pub struct Opened {
    /// The store, ready.
    pub store: Store,
    /// Where the former store was moved, if it was damaged. The one at hand is then new and empty:
    /// fetch from peers what can be fetched.
    pub set_aside: Option<PathBuf>,
}

/// What a store has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStats {
    /// Batches that wait for the writer now; at most [`QUEUE_BATCHES`](crate::QUEUE_BATCHES) and
    /// those of callers that block.
    pub queued: usize,
    /// Batches made durable.
    pub batches: u64,
    /// Waits for the disk: fewer than `batches` when batches shared one.
    pub flushes: u64,
}

impl Store {
    /// Opens the store in `dir`, which belongs to the store alone and is made if it is missing.
    ///
    /// A damaged store is renamed to `<dir>.damaged-<n>` and a new one is opened instead.
    ///
    /// # Errors
    /// See [`OpenError`]; in each case the store's rows are as they were.
    pub fn open(dir: &Path) -> Result<Opened, OpenError> {
        let (backend, set_aside) = SledBackend::open_or_set_aside(dir)?;
        let store = Self::on(Arc::new(backend))
            .map_err(|source| OpenError::Io { dir: dir.to_owned(), source })?;
        Ok(Opened { store, set_aside })
    }

    /// A store that forgets everything with its last handle.
    ///
    /// # Panics
    /// When the system has no thread to give.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test double; a process without threads is over")]
    pub fn in_memory() -> Self {
        Self::on(Arc::new(MemoryBackend::new())).expect("a thread for the writer")
    }

    /// A store over any backend, for tests that count, delay or fail its calls.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn on(backend: Arc<dyn Backend>) -> io::Result<Self> {
        let writer = Writer::start(Arc::clone(&backend))?;
        Ok(Self { inner: Arc::new(Inner { writer, backend }) })
    }

    /// Makes the changes of a batch; blocks until they are durable. Waits for room in the queue.
    ///
    /// # Errors
    /// See [`CommitError`]: each variant says what was stored.
    pub fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        self.inner.writer.commit(batch)
    }

    /// Makes the changes of a batch and then calls `then`, on the writer thread; returns at once.
    ///
    /// `then` must be quick, for the next commit waits for it: send on a channel and return. What
    /// is refused at once ([`CommitError::QueueFull`] and what the batch itself is refused for)
    /// calls `then` before this returns, on the caller's thread.
    pub fn commit_then<F>(&self, batch: Batch, then: F)
    where
        F: FnOnce(Result<(), CommitError>) + Send + 'static,
    {
        self.inner.writer.commit_then(batch, Box::new(then));
    }

    /// What the store has done since it was opened.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let counters = self.inner.writer.counters();
        StoreStats {
            queued: counters.queued.load(Ordering::Relaxed),
            batches: counters.batches.load(Ordering::Relaxed),
            flushes: counters.flushes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
