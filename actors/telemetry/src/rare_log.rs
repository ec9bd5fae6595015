//! Log lines about what may happen again and again, for days. Pure.
//!
//! The first time is worth a line at once. From then on a line says how often it has happened since the one
//! before, and the wait for the next doubles each time: whoever looks into a log finds out what is wrong and
//! that it lasts, and a hundred thousand times are some twenty lines.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The wait after the first line: whoever looks into the log while something goes wrong sees that it
/// goes on.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// The longest wait, so that a log of yesterday has what is wrong today.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);
/// What has not happened for so long, and for longer than the wait, was mended: it is news when it
/// happens again.
const OVER_AFTER: Duration = Duration::from_secs(3600);

/// Says which times are worth a line.
#[derive(Debug, Clone, Default)]
pub struct RareLog {
    /// How often it happened since the last line.
    untold: u64,
    /// When the last line was written, and how long it is to be the last.
    told: Option<(Instant, Duration)>,
    last: Option<Instant>,
}

impl RareLog {
    /// It happened (again). If a line is due: how often since the one before, this time included.
    pub fn another(&mut self, now: Instant) -> Option<u64> {
        let since = |then: Instant| now.saturating_duration_since(then);
        self.untold = self.untold.saturating_add(1);
        let before = self.last.replace(now);
        let wait = match self.told {
            None => FIRST_WAIT,
            Some((_, wait)) if before.is_some_and(|at| since(at) >= wait.max(OVER_AFTER)) => {
                FIRST_WAIT
            }
            Some((at, wait)) if since(at) >= wait => wait.saturating_mul(2).min(LONGEST_WAIT),
            Some(_) => return None,
        };
        self.told = Some((now, wait));
        Some(std::mem::take(&mut self.untold))
    }
}

/// A [`RareLog`] for each of some keys, and one for all others once these are `most`: what strangers choose
/// does not grow without end.
#[derive(Debug, Clone)]
pub struct RareLogs<K> {
    most: usize,
    each: BTreeMap<K, RareLog>,
    others: RareLog,
}

impl<K: Ord> RareLogs<K> {
    /// For at most so many keys.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        let others = RareLog { untold: 0, told: None, last: None };
        Self { most, each: BTreeMap::new(), others }
    }

    /// As [`RareLog::another`], for this key.
    pub fn another(&mut self, now: Instant, key: K) -> Option<u64> {
        if let Some(log) = self.each.get_mut(&key) {
            return log.another(now);
        }
        if self.each.len() >= self.most {
            self.each.retain(|_, log| !log.is_over(now));
        }
        if self.each.len() >= self.most {
            return self.others.another(now);
        }
        self.each.entry(key).or_default().another(now)
    }
}

impl RareLog {
    /// Whether the next time is news. What happened since the last line is forgotten then.
    fn is_over(&self, now: Instant) -> bool {
        let wait = self.told.map_or(Duration::ZERO, |(_, wait)| wait.max(OVER_AFTER));
        self.last.is_none_or(|at| now.saturating_duration_since(at) >= wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn three_days_of_knocking_are_a_few_lines_that_count_all_of_it() {
        let (begin, every) = (Instant::now(), Duration::from_secs(5));
        let mut log = RareLog::default();
        let mut lines = Vec::new();
        let knocks = 3 * 24 * 720;
        for knock in 0..knocks {
            let now = begin + every * knock;
            lines.extend(log.another(now).map(|count| (now - begin, count)));
        }
        assert_eq!(lines.first(), Some(&(Duration::ZERO, 1)));
        assert_eq!(lines.get(1), Some(&(FIRST_WAIT, 2)));
        assert_eq!(lines.get(2), Some(&(FIRST_WAIT * 3, 4)));
        assert!((12..=17).contains(&lines.len()), "{lines:?}");
        let told: u64 = lines.iter().map(|(_, count)| count).sum();
        assert_eq!(told + log.untold, u64::from(knocks));
        assert!(lines.windows(2).all(|pair| pair[1].0 - pair[0].0 <= LONGEST_WAIT + every));
    }

    #[test]
    fn what_was_mended_is_news_when_it_happens_again() {
        let mut now = Instant::now();
        let mut log = RareLog::default();
        for _ in 0..100 {
            log.another(now);
            now += Duration::from_secs(1);
        }
        let untold = log.untold;
        now += HOUR;
        assert_eq!(log.another(now), Some(untold + 1));
        assert_eq!(log.another(now + FIRST_WAIT), Some(1), "the waits begin anew");
    }

    #[test]
    fn each_key_has_its_lines_and_there_are_not_too_many() {
        let now = Instant::now();
        let mut logs = RareLogs::new(2);
        assert_eq!(logs.another(now, "a"), Some(1));
        assert_eq!(logs.another(now, "b"), Some(1));
        assert_eq!(logs.another(now, "a"), None);
        assert_eq!(logs.another(now, "c"), Some(1));
        assert_eq!(logs.another(now, "d"), None, "all others share");
        assert_eq!(logs.another(now + FIRST_WAIT, "e"), Some(2));
        assert_eq!(logs.each.len(), 2);
        // What is over makes room.
        assert_eq!(logs.another(now + 2 * HOUR, "f"), Some(1));
        assert_eq!(logs.another(now + 2 * HOUR, "a"), Some(1));
    }
}
