//! Threads that share a piece of work.
//!
//! A step of a model is a few hundred products, each some tens of microseconds long, so threads that wait for the
//! next one look for it for a moment before they sleep.
#![expect(unsafe_code, reason = "threads are lent what lives on the caller's stack")]

use std::hint::spin_loop;
use std::mem::transmute;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::slice::from_raw_parts_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, yield_now};
use std::time::{Duration, Instant};

/// How long a thread looks for more work before it sleeps.
const LOOKS: Duration = Duration::from_micros(50);

/// Threads, of which the caller's is one.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One piece of work at a time.
    turn: Mutex<()>,
}

type Work = dyn Fn(usize) + Sync;

struct Shared {
    /// Grows with each piece of work.
    round: AtomicUsize,
    state: Mutex<State>,
    wakes: Condvar,
    /// The next part that nobody has taken.
    next: AtomicUsize,
    /// Threads that are at it.
    busy: AtomicUsize,
    failed: AtomicBool,
}

struct State {
    work: Option<(&'static Work, usize)>,
    is_over: bool,
    asleep: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("round", &self.round).finish_non_exhaustive()
    }
}

impl Pool {
    /// So many threads in all. Where the system has no more, there are fewer.
    #[must_use]
    pub fn new(threads: NonZeroUsize) -> Self {
        let shared = Arc::new(Shared {
            round: AtomicUsize::new(0),
            state: Mutex::new(State { work: None, is_over: false, asleep: 0 }),
            wakes: Condvar::new(),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        });
        let start = |number: usize| {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("kernels-{number}"));
            thread.spawn(move || shared.serve()).ok()
        };
        let threads = (1..threads.get()).map_while(start).collect();
        Self { shared, threads, turn: Mutex::new(()) }
    }

    /// How many threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `work` with every number below `parts`, on any thread and in any order, and returns when all are done.
    ///
    /// # Panics
    /// If `work` does.
    pub fn each(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        if parts <= 1 || self.threads.is_empty() {
            (0..parts).for_each(work);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: the reference is forgotten by all threads before this function returns: `work` is taken out of the
        // state below, and `busy` counts who may still have it.
        let lent = unsafe { transmute::<&(dyn Fn(usize) + Sync), &'static Work>(work) };
        let asleep = {
            let mut state = shared.state();
            shared.next.store(0, Ordering::Relaxed);
            shared.failed.store(false, Ordering::Relaxed);
            state.work = Some((lent, parts));
            shared.round.fetch_add(1, Ordering::Release);
            state.asleep
        };
        if asleep > 0 {
            shared.wakes.notify_all();
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| shared.take_parts(work, parts)));
        shared.state().work = None;
        shared.wait_for_others();
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!shared.failed.load(Ordering::Relaxed), "a thread of the pool panicked");
    }

    /// Calls `work` with every `size` elements of `memory`, the last time with what is left, and their number.
    ///
    /// # Panics
    /// If `work` does, or `size` is 0.
    pub(crate) fn each_part<T: Send>(
        &self,
        memory: &mut [T],
        size: usize,
        work: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        /// Where the memory begins. It may be sent: elements may, and each part goes to one thread.
        struct Start<T>(*mut T);
        // SAFETY: as said.
        unsafe impl<T: Send> Sync for Start<T> {}

        let count = memory.len();
        let start = Start(memory.as_mut_ptr());
        self.each(count.div_ceil(size), &|part| {
            // The whole of it, not its field alone.
            let start = &start;
            let first = part * size;
            // SAFETY: parts lie within the memory, which is borrowed meanwhile, and do not overlap; each number is
            // given once.
            let own = unsafe { from_raw_parts_mut(start.0.add(first), size.min(count - first)) };
            work(part, own);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.round.fetch_add(1, Ordering::Release);
        self.shared.wakes.notify_all();
        for thread in self.threads.drain(..) {
            // It has no result, and its panics were caught.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_parts(&self, work: &(dyn Fn(usize) + Sync), parts: usize) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return;
            }
            work(part);
        }
    }

    /// Whoever is still at it has one part left at most; but it may have lost its processor to somebody else.
    fn wait_for_others(&self) {
        let mut looks = 0_u32;
        while self.busy.load(Ordering::Acquire) > 0 {
            looks += 1;
            if looks < 1000 {
                spin_loop();
            } else {
                yield_now();
            }
        }
    }

    fn serve(&self) {
        let mut seen = 0;
        loop {
            seen = self.next_round(seen);
            let work = {
                let state = self.state();
                if state.is_over {
                    return;
                }
                if state.work.is_some() {
                    // Under the lock: whoever takes the work away sees it.
                    self.busy.fetch_add(1, Ordering::Relaxed);
                }
                state.work
            };
            if let Some((work, parts)) = work {
                if catch_unwind(AssertUnwindSafe(|| self.take_parts(work, parts))).is_err() {
                    self.failed.store(true, Ordering::Relaxed);
                }
                self.busy.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Waits for another round than `seen`.
    fn next_round(&self, seen: usize) -> usize {
        let looks_until = Instant::now() + LOOKS;
        loop {
            for _ in 0..64 {
                let round = self.round.load(Ordering::Acquire);
                if round != seen {
                    return round;
                }
                spin_loop();
            }
            if Instant::now() > looks_until {
                break;
            }
        }
        let mut state = self.state();
        state.asleep += 1;
        while self.round.load(Ordering::Acquire) == seen && !state.is_over {
            state = self.wakes.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep -= 1;
        self.round.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap())
    }

    #[test]
    fn every_part_is_done_once() {
        for threads in [1, 2, 3, 8] {
            let pool = pool(threads);
            for parts in [0, 1, 2, 7, 100] {
                for _ in 0..200 {
                    let done: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                    pool.each(parts, &|part| {
                        done[part].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn memory_is_cut_into_parts() {
        let pool = pool(3);
        for (count, size) in [(0, 4), (1, 4), (7, 3), (100, 1), (100, 64)] {
            let mut memory = vec![usize::MAX; count];
            pool.each_part(&mut memory, size, &|part, own| own.fill(part));
            let expected: Vec<usize> = (0..count).map(|at| at / size).collect();
            assert_eq!(memory, expected);
        }
    }

    #[test]
    fn threads_that_sleep_are_woken() {
        let pool = pool(3);
        for _ in 0..5 {
            // Parts that wait for each other need a thread each.
            let met = std::sync::Barrier::new(3);
            pool.each(3, &|_| {
                met.wait();
            });
            let asleep = || pool.shared.state().asleep;
            while asleep() < 2 {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_panic_is_the_callers_and_the_pool_goes_on() {
        let pool = pool(2);
        for panics in 0..8 {
            let all = catch_unwind(AssertUnwindSafe(|| {
                pool.each(8, &|part| assert_ne!(part, panics));
            }));
            assert!(all.is_err());
        }
        let done = AtomicUsize::new(0);
        pool.each(8, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 8);
    }
}
