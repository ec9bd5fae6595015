//! The handle of an open store, and opening one.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::Backend;
use crate::batch::Batch;
use crate::memory::MemoryBackend;
use crate::seat::{Closed, Opener, Seat};
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
    seat: Arc<Seat>,
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
    /// When the disk refuses a commit later, the store is closed and opened anew by itself, see
    /// [`Store::closed`]. It is never set aside then: what its opener knows of it is not in it any more.
    ///
    /// # Errors
    /// See [`OpenError`]; in each case the store's rows are as they were.
    pub fn open(dir: &Path) -> Result<Opened, OpenError> {
        let (backend, set_aside) = SledBackend::open_or_set_aside(dir)?;
        let path = dir.to_owned();
        let anew = move || {
            let backend = SledBackend::open_again(&path).map_err(|error| error.to_string())?;
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        };
        let store = Self::over(Arc::new(backend), Some(Box::new(anew)))
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

    /// A store over any backend, for tests that count, delay or fail its calls. After a failed commit
    /// it takes no more.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn on(backend: Arc<dyn Backend>) -> io::Result<Self> {
        Self::over(backend, None)
    }

    /// A store over whatever `open` gives, now and again after each failed commit; it says why it cannot.
    ///
    /// # Errors
    /// When `open` fails the first time, or the system has no thread to give.
    pub fn on_each<F>(mut open: F) -> io::Result<Self>
    where
        F: FnMut() -> Result<Arc<dyn Backend>, String> + Send + 'static,
    {
        let backend = open().map_err(io::Error::other)?;
        Self::over(backend, Some(Box::new(open)))
    }

    fn over(backend: Arc<dyn Backend>, opener: Option<Opener>) -> io::Result<Self> {
        let seat = Arc::new(Seat::new(backend));
        let writer = Writer::start(Arc::clone(&seat), opener)?;
        Ok(Self { inner: Arc::new(Inner { writer, seat }) })
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

    /// Why the store is closed, if it is: a commit failed, and it could not be opened anew yet. What was
    /// acknowledged before is on disk; what is committed or read meanwhile is refused.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.inner.seat.closed()
    }

    /// Calls `then` once the store takes commits (again): for whoever was refused, and keeps what it
    /// wanted to store. It is called at once, on the caller's thread, if there is nothing to wait for;
    /// otherwise on the writer thread, where it must be quick.
    pub fn when_ready<F: FnOnce() + Send + 'static>(&self, then: F) {
        let is_busy = || self.stats().queued > 0;
        if let Some(then) = self.inner.seat.wait(is_busy, Box::new(then)) {
            then();
        }
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
        &*self.inner.seat
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
