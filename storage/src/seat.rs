//! The place of a store's backend: taken while the store is open, empty while it is not.
//!
//! A backend whose commit failed may hold in memory what is not on disk, and can even fail to read. So
//! it is taken out, and dropped before another one is opened on the same files. Meanwhile reads and
//! commits are refused with the reason.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::backend::{Backend, BackendError, Change, Row};

/// Opens a store's backend anew, or says why it cannot be.
pub(crate) type Opener = Box<dyn FnMut() -> Result<Arc<dyn Backend>, String> + Send>;

/// Called once when a store takes commits again.
pub(crate) type Waiting = Box<dyn FnOnce() + Send>;

/// The wait before the first try to open a store anew: a disk that was full for a moment has room again.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Each wait is twice the one before, up to this: a try writes and reads as much as opening does, and
/// whoever has made room should not have to wait for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Why a store is closed, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// What the backend said last: to a commit or to being opened.
    pub reason: Arc<str>,
    /// Tries to open it anew that have failed.
    pub tries: u32,
    /// When the next one is made; never for a backend that only its opener could open anew.
    pub next_try: Option<Instant>,
    /// When the last one was made, or the store was closed.
    last_try: Instant,
}

impl Closed {
    fn new(reason: Arc<str>, tries: u32, now: Instant) -> Self {
        let wait = FIRST_WAIT.saturating_mul(1 << tries.min(16)).min(LONGEST_WAIT);
        Self { reason, tries, next_try: Some(now + wait), last_try: now }
    }

    /// The backend takes no more, and nobody can open it anew.
    pub(crate) const fn for_good(reason: Arc<str>, now: Instant) -> Self {
        Self { reason, tries: 0, next_try: None, last_try: now }
    }

    /// The store was closed.
    pub(crate) fn begin(reason: Arc<str>, now: Instant) -> Self {
        Self::new(reason, 0, now)
    }

    /// Another try failed.
    pub(crate) fn again(&self, reason: Arc<str>, now: Instant) -> Self {
        Self::new(reason, self.tries.saturating_add(1), now)
    }

    /// Whether somebody who asks for a commit is worth a try before its time.
    pub(crate) fn may_try_early(&self, now: Instant) -> bool {
        self.next_try.is_some() && now.saturating_duration_since(self.last_try) >= FIRST_WAIT
    }
}

/// See the module.
pub(crate) struct Seat {
    backend: RwLock<Option<Arc<dyn Backend>>>,
    /// Why there is none. Apart, so that nobody who asks waits for a read that is under way.
    closed: Mutex<Option<Closed>>,
    waiting: Mutex<Vec<Waiting>>,
}

impl Seat {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend: RwLock::new(Some(backend)),
            closed: Mutex::default(),
            waiting: Mutex::default(),
        }
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.why().clone()
    }

    /// Takes the backend out. On return it is dropped, for all users but those whose call is under way
    /// hold it no longer than that.
    pub(crate) fn close(&self, closed: Closed) {
        *self.why() = Some(closed);
        let backend = self.backend.write().unwrap_or_else(PoisonError::into_inner).take();
        // Closing can take a moment, in which others may be told that it is closed.
        drop(backend);
    }

    /// As it is from now on; the backend stays, for reads.
    pub(crate) fn stop(&self, closed: Closed) {
        *self.why() = Some(closed);
    }

    pub(crate) fn open(&self, backend: Arc<dyn Backend>) {
        *self.backend.write().unwrap_or_else(PoisonError::into_inner) = Some(backend);
        *self.why() = None;
    }

    /// Keeps `waiting` for [`Seat::wake`]; gives it back when there is nothing to wait for.
    pub(crate) fn wait(&self, is_busy: impl Fn() -> bool, waiting: Waiting) -> Option<Waiting> {
        // Held, so that no wake comes between the look and the wait.
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.why().is_none() && !is_busy() {
            return Some(waiting);
        }
        all.push(waiting);
        None
    }

    /// Those that wait.
    pub(crate) fn wake(&self) -> Vec<Waiting> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn why(&self) -> MutexGuard<'_, Option<Closed>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&dyn Backend) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let backend = self.backend.read().unwrap_or_else(PoisonError::into_inner);
        match backend.as_deref() {
            Some(backend) => work(backend),
            None => {
                let reason = self.closed().map_or_else(|| Arc::from("closed"), |c| c.reason);
                Err(BackendError::Closed { reason })
            }
        }
    }
}

impl Backend for Seat {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        self.with(|backend| backend.get(key))
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Row>, BackendError> {
        self.with(|backend| backend.scan(prefix))
    }

    fn commit(&self, changes: &[Change]) -> Result<(), BackendError> {
        self.with(|backend| backend.commit(changes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_grow_to_a_bound_and_begin_anew() {
        let mut now = Instant::now();
        let mut closed = Closed::begin(Arc::from("full"), now);
        let mut waits = Vec::new();
        for _ in 0..40 {
            let next = closed.next_try.unwrap();
            waits.push((next - now).as_secs());
            now = next;
            closed = closed.again(Arc::from("full"), now);
        }
        assert_eq!(waits[..6], [1, 2, 4, 8, 10, 10]);
        assert_eq!(waits.last(), Some(&10));
        assert_eq!(closed.tries, 40);
        assert!(!closed.may_try_early(now + FIRST_WAIT / 2));
        assert!(closed.may_try_early(now + FIRST_WAIT));
    }
}
