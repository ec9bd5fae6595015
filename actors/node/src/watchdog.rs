//! Handlers of actors that do not end.
//!
//! A handler waits for nothing but memory, so one that has not ended after ten seconds never will. Its
//! supervisor cannot help: nobody can stop a thread from outside. So the process ends, as in a melt-down;
//! the others see that at once, whoever runs the node starts it again, and a node that is stuck would be
//! worse than one that is dead.
//!
//! Time is counted in looks of the watchdog's own thread, so what the whole process was kept from running
//! (it was frozen, the machine slept) counts once.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The watchdog looks so often.
const LOOK: Duration = Duration::from_millis(500);

/// Looks after which a handler is stuck: ten seconds. The slowest ones take some milliseconds, and waiting
/// for a starved machine is not being stuck.
const PATIENCE: u64 = 20;

/// Looks after which a handler is late: half of them.
const LATE: u64 = PATIENCE / 2;

/// So often an actor is told something that would hear nothing for long: one that is stuck is found also while
/// nobody needs it.
pub(crate) const PULSE: Duration = Duration::from_secs(1);

static HANDLERS: Mutex<Handlers> = Mutex::new(Handlers::new());

/// While a handler runs; end it by dropping this.
#[derive(Debug)]
#[must_use = "the handler ends when this is dropped"]
pub(crate) struct AtWork(u64);

/// A handler of this actor begins.
pub(crate) fn at_work(actor: &'static str) -> AtWork {
    let at_work = AtWork(handlers().begin(actor));
    #[cfg(feature = "failpoints")]
    fail::fail_point!(actor);
    at_work
}

/// An actor begins, which its supervisor waits for.
pub(crate) fn starting(actor: &'static str) -> AtWork {
    let at_work = AtWork(handlers().begin(actor));
    #[cfg(feature = "failpoints")]
    fail::fail_point!(&format!("{actor}.start"));
    at_work
}

impl Drop for AtWork {
    fn drop(&mut self) {
        handlers().end(self.0);
    }
}

/// Calls `stuck` with the name of an actor of which a handler does not end, once.
///
/// # Errors
/// When the system has no thread to give.
pub fn watch(stuck: impl FnOnce(&'static str) + Send + 'static) -> std::io::Result<()> {
    let look = move || {
        let actor = loop {
            thread::sleep(LOOK);
            if let Some(actor) = handlers().look() {
                break actor;
            }
        };
        stuck(actor);
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(look).map(drop)
}

/// Whether no handler is on its way to being stuck.
pub fn all_go_on() -> bool {
    !handlers().is_any_late()
}

fn handlers() -> MutexGuard<'static, Handlers> {
    HANDLERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handlers that run.
#[derive(Debug)]
struct Handlers {
    looks: u64,
    begun: u64,
    /// Since which look.
    running: BTreeMap<u64, (&'static str, u64)>,
}

impl Handlers {
    const fn new() -> Self {
        Self { looks: 0, begun: 0, running: BTreeMap::new() }
    }

    fn begin(&mut self, actor: &'static str) -> u64 {
        self.begun += 1;
        self.running.insert(self.begun, (actor, self.looks));
        self.begun
    }

    fn end(&mut self, number: u64) {
        self.running.remove(&number);
    }

    fn look(&mut self) -> Option<&'static str> {
        self.looks += 1;
        let (actor, looks) = self.longest()?;
        (looks > PATIENCE).then_some(actor)
    }

    fn is_any_late(&self) -> bool {
        self.longest().is_some_and(|(_, looks)| looks > LATE)
    }

    /// The handler that has run the longest, and for how many looks.
    fn longest(&self) -> Option<(&'static str, u64)> {
        // Numbers rise, so it is the first.
        let (actor, since) = self.running.values().next()?;
        Some((actor, self.looks - since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_handler_that_does_not_end_is_stuck() {
        let mut handlers = Handlers::new();
        for _ in 0..100 {
            let short = handlers.begin("short");
            assert_eq!(handlers.look(), None);
            handlers.end(short);
        }
        let stuck = handlers.begin("stuck");
        for look in 1..=PATIENCE {
            let short = handlers.begin("short");
            assert_eq!(handlers.look(), None);
            handlers.end(short);
            assert_eq!(handlers.is_any_late(), look > LATE);
        }
        handlers.begin("late");
        assert_eq!(handlers.look(), Some("stuck"));
        handlers.end(stuck);
        assert_eq!(handlers.look(), None);
    }
}
