//! Handlers of actors that do not end.
//!
//! A handler waits for nothing but memory, so one that has not ended after ten seconds never will. Its
//! supervisor cannot help: nobody can stop a thread from outside. So the process ends, as in a melt-down;
//! the others see that at once, whoever runs the node starts it again, and a node that is stuck would be
//! worse than one that is dead.
//!
//! Time is counted in looks of the watchdog's own thread, so what the whole process was kept from running
//! (it was frozen, the machine slept) counts once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use planaria_control::supervision::ActorKind;

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

/// Looks that the watchdog has made. The first has number 1, so that 0 can say "no handler runs".
static LOOKS: AtomicU64 = AtomicU64::new(1);

/// All actors that there are.
static WATCHED: Mutex<Vec<(ActorKind, Weak<AtomicU64>)>> = Mutex::new(Vec::new());

/// What an actor tells the watchdog: since which look a handler of it runs, or 0.
#[derive(Debug)]
pub(crate) struct Watch {
    #[cfg_attr(not(feature = "failpoints"), allow(dead_code, reason = "names its failpoint"))]
    actor: ActorKind,
    since: Arc<AtomicU64>,
}

impl Watch {
    /// For an actor of this kind, for as long as this is kept.
    pub(crate) fn new(actor: ActorKind) -> Self {
        let since = Arc::new(AtomicU64::new(0));
        let mut watched = watched();
        watched.retain(|(_, since)| since.strong_count() > 0);
        watched.push((actor, Arc::downgrade(&since)));
        Self { actor, since }
    }

    /// A handler begins.
    pub(crate) fn handling(&self) -> HandlerGuard {
        let guard = HandlerGuard::begin(&self.since);
        #[cfg(feature = "failpoints")]
        fail::fail_point!(self.actor.name());
        guard
    }

    /// The actor begins, which its supervisor waits for.
    pub(crate) fn starting(&self) -> HandlerGuard {
        let guard = HandlerGuard::begin(&self.since);
        #[cfg(feature = "failpoints")]
        fail::fail_point!(&format!("{}.start", self.actor));
        guard
    }
}

/// Held while a handler runs.
#[derive(Debug)]
#[must_use = "the handler ends when this is dropped"]
pub(crate) struct HandlerGuard(Arc<AtomicU64>);

impl HandlerGuard {
    fn begin(since: &Arc<AtomicU64>) -> Self {
        since.store(LOOKS.load(Ordering::Relaxed), Ordering::Relaxed);
        Self(Arc::clone(since))
    }
}

impl Drop for HandlerGuard {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Calls `stuck` with an actor of which a handler does not end, once.
///
/// # Errors
/// When the system has no thread to give.
pub fn watch(stuck: impl FnOnce(ActorKind) + Send + 'static) -> std::io::Result<()> {
    let look = move || {
        let actor = loop {
            #[expect(clippy::disallowed_methods, reason = "this thread does nothing else")]
            thread::sleep(LOOK);
            let now = LOOKS.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(actor) = longest(&watched(), now, PATIENCE) {
                break actor;
            }
        };
        stuck(actor);
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(look).map(drop)
}

/// Has the watchdog see that the thread of this task goes on: all actors, links and pipes share it, so a task of any of them that
/// does not end holds up all, though no handler runs.
pub async fn keep_pulse() {
    let since = Watch::new(ActorKind::Root).since;
    loop {
        let _until_the_next = HandlerGuard::begin(&since);
        tokio::time::sleep(PULSE).await;
    }
}

/// Whether no handler is on its way to being stuck.
pub fn all_go_on() -> bool {
    longest(&watched(), LOOKS.load(Ordering::Relaxed), LATE).is_none()
}

fn watched() -> MutexGuard<'static, Vec<(ActorKind, Weak<AtomicU64>)>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The actor whose handler has run for the most looks, if these are more than `patience`.
fn longest(watched: &[(ActorKind, Weak<AtomicU64>)], now: u64, patience: u64) -> Option<ActorKind> {
    let running = watched.iter().filter_map(|(actor, since)| {
        let since = since.upgrade()?.load(Ordering::Relaxed);
        (since > 0).then(|| (now.saturating_sub(since), *actor))
    });
    running.filter(|(looks, _)| *looks > patience).max().map(|(_, actor)| actor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_handler_that_does_not_end_is_stuck() {
        let [short, stuck, late] = [ActorKind::Ledger, ActorKind::Links, ActorKind::Worker]
            .map(|actor| Watch { actor, since: Arc::default() });
        let all = [&short, &stuck, &late];
        let all = all.map(|watch| (watch.actor, Arc::downgrade(&watch.since)));
        let begin = |watch: &Watch, now| watch.since.store(now, Ordering::Relaxed);
        for now in 1..100 {
            begin(&short, now);
            assert_eq!(longest(&all, now + 1, PATIENCE), None);
            drop(HandlerGuard(Arc::clone(&short.since)));
        }
        begin(&stuck, 100);
        for looks in 1..=PATIENCE {
            begin(&short, 100 + looks);
            assert_eq!(longest(&all, 100 + looks, PATIENCE), None);
            assert_eq!(longest(&all, 100 + looks, LATE).is_some(), looks > LATE);
        }
        begin(&late, 101);
        assert_eq!(longest(&all, 102 + PATIENCE, PATIENCE), Some(ActorKind::Links));
        drop(HandlerGuard(Arc::clone(&stuck.since)));
        drop(late);
        assert_eq!(longest(&all, 1000, PATIENCE), Some(ActorKind::Ledger), "it began last");
        drop(short);
        assert_eq!(longest(&all, 1000, PATIENCE), None, "who has ended has no handlers");
    }

    #[test]
    fn an_actor_is_known_for_as_long_as_it_lives() {
        let watch = Watch::new(ActorKind::Discovery);
        let since = Arc::downgrade(&watch.since);
        let is_known = || watched().iter().any(|(_, known)| known.ptr_eq(&since));
        assert!(is_known());
        let handling = watch.handling();
        assert_ne!(watch.since.load(Ordering::Relaxed), 0);
        drop(handling);
        assert_eq!(watch.since.load(Ordering::Relaxed), 0);
        drop(watch);
        // Whoever comes next forgets it.
        let _next = Watch::new(ActorKind::Discovery);
        assert!(!is_known());
    }
}
