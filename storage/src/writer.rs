//! The one thread that writes to a store, and group commit.
//!
//! The thread takes whatever has queued up, commits it to the backend as one, and then
//! acknowledges each batch. While it waits for the disk the next group gathers, so the number of
//! flushes depends on the disk's speed and not on the number of callers.
//!
//! It ends when the last [`Writer`] handle is dropped, after committing what is queued. A commit
//! that fails closes the store: memory and disk may differ, and only opening it anew finds out. The
//! thread does that, with growing waits, and refuses every batch until it has succeeded. A store that
//! it cannot open anew (one over a backend that was handed in) stays as it is, for reads as far as the
//! backend gives rows.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use thiserror::Error;

use crate::backend::{Backend as _, Change};
use crate::batch::{Batch, MAX_BATCH_BYTES, MAX_KEY_BYTES};
use crate::seat::{Closed, Opener, Seat};

/// Batches that may wait for the writer. A node commits a few per second; this many waiting means
/// that the disk has stopped, and callers should be told rather than stored up.
pub const QUEUE_BATCHES: usize = 256;

/// Bytes of changes after which a group takes no further batch, so that a flood of large batches
/// does not become one giant commit.
const GROUP_BYTES: usize = 2 * MAX_BATCH_BYTES;

/// Why a batch was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommitError {
    /// A value cannot be written as MessagePack. Nothing was stored.
    #[error("table `{table}`, row {key}: the value cannot be stored: {why}")]
    Encode {
        /// The table of the value.
        table: &'static str,
        /// The row, as text where it is text, otherwise in hex.
        key: String,
        /// What the serializer said.
        why: String,
    },
    /// A key or the whole batch is too large. Nothing was stored; split the batch.
    #[error(
        "table `{table}`, row {key}: too large (a key is at most {MAX_KEY_BYTES} bytes, a batch \
         {MAX_BATCH_BYTES})"
    )]
    TooLarge {
        /// The table of the row that was too much.
        table: &'static str,
        /// The beginning of its key.
        key: String,
    },
    /// [`QUEUE_BATCHES`] batches are waiting already. Nothing was stored; try again later.
    #[error("the store's queue is full: the disk does not keep up")]
    QueueFull,
    /// The disk did not take the batch. Whether it is stored is known only once the store was opened
    /// anew, which it does by itself; until then no further batch is taken. Committing it again then
    /// is safe: a batch says what rows are to hold.
    #[error("the store did not take it: {reason}")]
    Failed {
        /// What the backend said.
        reason: Arc<str>,
    },
    /// The store is closed since an earlier commit failed. Nothing of this batch was stored; try again
    /// once it is open, see [`Store::when_ready`](crate::Store::when_ready).
    #[error("the store is closed until it can be opened anew: {reason}")]
    Stopped {
        /// What stands in the way.
        reason: Arc<str>,
    },
}

type Acknowledge = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

struct Job {
    changes: Vec<Change>,
    bytes: usize,
    acknowledge: Acknowledge,
}

/// What the writer has done so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) queued: AtomicUsize,
    pub(crate) batches: AtomicU64,
    pub(crate) flushes: AtomicU64,
}

/// The way to the thread; dropping it drains the queue and joins the thread.
pub(crate) struct Writer {
    // Both are `Some` until the drop, which needs them by value.
    queue: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
}

impl Writer {
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(seat: Arc<Seat>, opener: Option<Opener>) -> io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE_BATCHES);
        let counters = Arc::new(Counters::default());
        let thread = thread::Builder::new().name("store-writer".to_owned()).spawn({
            let counters = Arc::clone(&counters);
            move || Thread { seat, opener, counters, last_closed: None }.run(&jobs)
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread), counters })
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Blocks until the batch is durable or refused.
    pub(crate) fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let (changes, bytes) = batch.finish()?;
        let (acknowledge, acknowledged) = sync_channel(1);
        let job = Job {
            changes,
            bytes,
            acknowledge: Box::new(move |result| {
                // The receiver lives until this call: `commit` waits for it below.
                let _ = acknowledge.send(result);
            }),
        };
        self.counters.queued.fetch_add(1, Ordering::Relaxed);
        if let Some(queue) = &self.queue
            && queue.send(job).is_ok()
            && let Ok(result) = acknowledged.recv()
        {
            return result;
        }
        Err(thread_is_gone())
    }

    /// Never blocks: a full queue is an answer.
    pub(crate) fn commit_then(&self, batch: Batch, acknowledge: Acknowledge) {
        let (changes, bytes) = match batch.finish() {
            Ok(finished) => finished,
            Err(error) => return acknowledge(Err(error)),
        };
        let Some(queue) = &self.queue else {
            return acknowledge(Err(thread_is_gone()));
        };
        self.counters.queued.fetch_add(1, Ordering::Relaxed);
        let (job, error) = match queue.try_send(Job { changes, bytes, acknowledge }) {
            Ok(()) => return,
            Err(TrySendError::Full(job)) => (job, CommitError::QueueFull),
            Err(TrySendError::Disconnected(job)) => (job, thread_is_gone()),
        };
        self.counters.queued.fetch_sub(1, Ordering::Relaxed);
        (job.acknowledge)(Err(error));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // The last handle may have been inside an acknowledgement; a thread cannot join itself.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!("the store's writer thread panicked");
            }
        }
    }
}

fn thread_is_gone() -> CommitError {
    CommitError::Failed { reason: Arc::from("the store's writer thread is gone") }
}

/// What the thread works with.
struct Thread {
    seat: Arc<Seat>,
    opener: Option<Opener>,
    counters: Arc<Counters>,
    /// How it was closed last, as long as nothing was committed since: what opens and refuses again is
    /// not opened ever faster.
    last_closed: Option<Closed>,
}

impl Thread {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let next_try = self.seat.closed().and_then(|closed| closed.next_try);
            let first = match next_try {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) => jobs.recv_timeout(next.saturating_duration_since(Instant::now())),
            };
            match first {
                Ok(first) => self.group(first, jobs),
                Err(RecvTimeoutError::Timeout) => self.open_anew(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.seat.closed().is_none() {
                for waiting in self.seat.wake() {
                    contained(waiting);
                }
            }
        }
    }

    fn group(&mut self, first: Job, jobs: &Receiver<Job>) {
        if self.seat.closed().is_some_and(|closed| closed.may_try_early(Instant::now())) {
            self.open_anew();
        }
        let (changes, group) = gather(first, jobs);
        self.counters.queued.fetch_sub(group.len(), Ordering::Relaxed);
        let result = match self.seat.closed() {
            Some(Closed { reason, .. }) => Err(CommitError::Stopped { reason }),
            None => self.commit(&changes, group.len()),
        };
        for acknowledge in group {
            let result = result.clone();
            contained(|| acknowledge(result));
        }
    }

    fn commit(&mut self, changes: &[Change], batches: usize) -> Result<(), CommitError> {
        let _span = tracing::debug_span!("commit", batches, changes = changes.len()).entered();
        if let Err(error) = self.seat.commit(changes) {
            let reason: Arc<str> = Arc::from(error.to_string());
            self.refused(Arc::clone(&reason));
            return Err(CommitError::Failed { reason });
        }
        self.last_closed = None;
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        self.counters.batches.fetch_add(batches as u64, Ordering::Relaxed);
        Ok(())
    }

    fn refused(&mut self, reason: Arc<str>) {
        let now = Instant::now();
        if self.opener.is_none() {
            tracing::error!(%reason, "a commit failed; the store takes no more");
            return self.seat.stop(Closed::for_good(reason, now));
        }
        let closed = match &self.last_closed {
            None => Closed::begin(Arc::clone(&reason), now),
            Some(last) => last.again(Arc::clone(&reason), now),
        };
        if closed.tries == 0 || closed.tries.is_power_of_two() {
            tracing::error!(%reason, "a commit failed; the store takes no more until the disk lets it be \
                opened anew, which is tried by itself");
        }
        self.seat.close(closed);
    }

    fn open_anew(&mut self) {
        let (Some(open), Some(closed)) = (&mut self.opener, self.seat.closed()) else {
            return;
        };
        match open() {
            Ok(backend) => {
                tracing::info!(tries = closed.tries + 1, "the store is open again");
                self.seat.open(backend);
                self.last_closed = Some(closed);
            }
            Err(reason) => {
                let closed = closed.again(Arc::from(reason), Instant::now());
                // The waits stop growing; the lines about them get rarer.
                if closed.tries.is_power_of_two() {
                    let Closed { reason, tries, .. } = &closed;
                    tracing::warn!(%reason, tries, "the store cannot be opened anew yet; it is \
                        tried again every few seconds");
                }
                self.seat.close(closed);
            }
        }
    }
}

/// Calls something of a caller's. Its panic must not take the other callers' acknowledgements with it.
fn contained(call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        tracing::error!("a commit's acknowledgement panicked");
    }
}

/// What has queued up behind `first`, in order.
fn gather(first: Job, jobs: &Receiver<Job>) -> (Vec<Change>, Vec<Acknowledge>) {
    let mut bytes = first.bytes;
    let mut changes = first.changes;
    let mut group = vec![first.acknowledge];
    while bytes < GROUP_BYTES
        && group.len() < QUEUE_BATCHES
        && let Ok(next) = jobs.try_recv()
    {
        bytes += next.bytes;
        changes.extend(next.changes);
        group.push(next.acknowledge);
    }
    (changes, group)
}
