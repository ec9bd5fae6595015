//! When a part of the node dies: what is restarted, when, and when to give up.
//!
//! Pure but for a [`Tally`]: the clock is an argument, and nothing here knows actors. Modelled on OTP's supervisor
//! (strategies, intensity within a period), with a backoff between restarts.

mod table;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use table::{ActorKind, PARTS, Row};

/// Which siblings go down with a child that died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The child alone is restarted.
    OneForOne,
    /// The child and all that were started after it are restarted.
    RestForOne,
    /// The child is not restarted; whoever waited for it is told.
    Temporary,
}

/// How often restarts may happen, and how long to wait before one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intensity {
    /// More restarts than this within `period` are a melt-down.
    pub restarts: u32,
    /// The period.
    pub period: Duration,
    /// The wait before the first restart; each further one within the period doubles it.
    pub backoff: Duration,
    /// The longest wait.
    pub backoff_limit: Duration,
}

/// What to do about a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start again after this long.
    RestartAfter(Duration),
    /// It died too often: give up.
    GiveUp,
}

/// The deaths of one child, or of one supervisor's children together.
#[derive(Debug, Clone)]
pub struct Restarts {
    intensity: Intensity,
    recent: VecDeque<Instant>,
    total: u64,
}

impl Restarts {
    /// Nothing has died yet.
    #[must_use]
    pub const fn new(intensity: Intensity) -> Self {
        Self { intensity, recent: VecDeque::new(), total: 0 }
    }

    /// A death at `now`. Killed counts as any other death.
    pub fn on_death(&mut self, now: Instant) -> Verdict {
        while let Some(oldest) = self.recent.front()
            && now.duration_since(*oldest) > self.intensity.period
        {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        self.total += 1;
        let deaths = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if deaths > self.intensity.restarts {
            return Verdict::GiveUp;
        }
        let doubled = self.intensity.backoff.saturating_mul(1 << (deaths - 1).min(20));
        Verdict::RestartAfter(doubled.min(self.intensity.backoff_limit))
    }

    /// Deaths since the beginning.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }
}

/// The wait before what was given up is tried again for the first time; each further one doubles it. Longer
/// than restarts take until they are given up, and no longer than a person takes to look.
const FIRST_RETRY: Duration = Duration::from_secs(10);

/// The longest wait: what was mended is found so soon, and one try in it costs nobody anything.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// When what was given up is tried again: after a growing wait, for as long as it takes.
#[derive(Debug, Clone, Copy)]
pub struct Retries {
    first: Duration,
    waits: u32,
    next: Option<Instant>,
}

impl Default for Retries {
    fn default() -> Self {
        Self::after(FIRST_RETRY)
    }
}

impl Retries {
    /// Nothing was given up yet; the first wait will be so long.
    #[must_use]
    pub const fn after(first: Duration) -> Self {
        Self { first, waits: 0, next: None }
    }

    /// It is given up at `now`; how long until it is tried again. What went well for the longest wait after
    /// the last try begins with the first one.
    pub fn given_up(&mut self, now: Instant) -> Duration {
        if self.next.is_some_and(|last| now.saturating_duration_since(last) > LONGEST_RETRY) {
            self.waits = 0;
        }
        let wait = self.first.saturating_mul(1 << self.waits.min(10)).min(LONGEST_RETRY);
        self.waits = self.waits.saturating_add(1);
        self.next = Some(now + wait);
        wait
    }
}

/// How often the parts of a node were started again, by their names.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<String, u64>>);

impl Tally {
    /// One of them is.
    pub fn count(&self, actor: ActorKind) {
        *self.counts().entry(actor.name().to_owned()).or_default() += 1;
    }

    /// Those that were.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, u64> {
        self.counts().clone()
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of `count` children, in the order of their start, are stopped and started again when
/// `dead` died: as a range of indices.
#[must_use]
pub fn restart_range(policy: Policy, dead: usize, count: usize) -> std::ops::Range<usize> {
    match policy {
        Policy::OneForOne => dead..(dead + 1).min(count),
        Policy::RestForOne => dead..count,
        Policy::Temporary => dead..dead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTENSITY: Intensity = Intensity {
        restarts: 3,
        period: Duration::from_secs(10),
        backoff: Duration::from_millis(100),
        backoff_limit: Duration::from_millis(300),
    };

    #[test]
    fn backoff_doubles_up_to_its_limit_then_gives_up() {
        let start = Instant::now();
        let mut restarts = Restarts::new(INTENSITY);
        let verdicts: Vec<_> = (0..4).map(|_| restarts.on_death(start)).collect();
        let after = |millis| Verdict::RestartAfter(Duration::from_millis(millis));
        assert_eq!(verdicts, [after(100), after(200), after(300), Verdict::GiveUp]);
        assert_eq!(restarts.total(), 4);
    }

    #[test]
    fn what_is_given_up_again_and_again_is_tried_again_later_and_later() {
        let mut now = Instant::now();
        let mut retries = Retries::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = retries.given_up(now);
            waits.push(wait.as_secs());
            // The try fails after a while.
            now += wait + Duration::from_secs(30);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(retries.given_up(now + LONGEST_RETRY).as_secs(), 10, "it went well for long");
    }

    #[test]
    fn restarts_are_counted_by_name() {
        let tally = Tally::default();
        assert_eq!(tally.all(), BTreeMap::new());
        tally.count(ActorKind::Worker);
        tally.count(ActorKind::Worker);
        tally.count(ActorKind::Gateway);
        let counts = [("gateway".to_owned(), 1), ("worker".to_owned(), 2)];
        assert_eq!(tally.all(), BTreeMap::from(counts));
    }

    #[test]
    fn old_deaths_are_forgiven() {
        let start = Instant::now();
        let mut restarts = Restarts::new(INTENSITY);
        for step in 0..20_u32 {
            let verdict = restarts.on_death(start + Duration::from_secs(4) * step);
            assert!(matches!(verdict, Verdict::RestartAfter(_)), "death {step}");
        }
    }

    #[test]
    fn rest_for_one_takes_the_later_children_along() {
        assert_eq!(restart_range(Policy::RestForOne, 2, 5), 2..5);
        assert_eq!(restart_range(Policy::OneForOne, 2, 5), 2..3);
        assert!(restart_range(Policy::Temporary, 2, 5).is_empty());
    }

    #[test]
    fn every_part_is_a_child_of_the_root_that_takes_the_later_ones_along() {
        for part in PARTS {
            let row = part.row();
            let expected = (part, ActorKind::Root, Policy::RestForOne);
            assert_eq!((row.actor, row.parent, row.policy), expected);
        }
    }
}
