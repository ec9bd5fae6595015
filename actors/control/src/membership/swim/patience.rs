//! How long is long enough to take silence for death.
//!
//! On a quiet LAN an answer comes within a millisecond or two, and half a second must do from a death to everybody's
//! knowing. On a busy machine answers come late, and a late one is no death. So the waits are short, and stretched by
//! what was seen: by the slowest recent answer of the node that is asked, by how long answers usually take, and by
//! how late this node itself wakes up, since then its neighbours on the same machine, or under the same load, do too.
//! And time through which this node slept does not count against anybody.

use std::time::{Duration, Instant};

/// How often a member asks another whether it lives, and how long that one, asked directly and
/// through others, has to answer. With n members a dead one is asked within 4.6 periods in 99 of
/// 100 cases, whatever n is; so 4.6 x 50 ms + 50 ms + 180 ms of suspicion stay below 500 ms.
/// Forty small packets per second and node, questions and answers together.
pub(super) const PERIOD: Duration = Duration::from_millis(50);

/// How long a direct answer may take before others are asked to ask: ten times that of a LAN, so
/// that it fits twice into a period.
pub(super) const ROUND_TRIP: Duration = Duration::from_millis(20);

/// The shortest suspicion: a suspect that does not speak up for this long is down. It is asked
/// again every quarter of it, so three answers may be lost.
pub const SUSPICION: Duration = Duration::from_millis(180);

/// How long a suspect has among this many other members. Few members ask in turns that are short,
/// so a death is noticed sooner, and the suspect can have what is left of half a second.
pub(super) const fn suspicion(others: usize) -> Duration {
    match others {
        0 | 1 => Duration::from_millis(330),
        2 => Duration::from_millis(270),
        3 | 4 => Duration::from_millis(230),
        _ => SUSPICION,
    }
}

/// After how long the slowest answer counts half. Load comes in waves of seconds (a model loads, a
/// long prompt is computed), and the next one should find us prepared; a quiet cluster should be
/// quick again within a minute.
const HALF_LIFE: Duration = Duration::from_secs(20);

/// No wait is stretched by more than this at a time, however slow an answer was: what takes longer
/// is not load but a machine that slept, and says nothing about the next time.
const MOST: Duration = Duration::from_millis(500);

/// Waking up later than this is being late: timers are exact to a millisecond or two.
const PUNCTUAL: Duration = Duration::from_millis(5);

/// After waking up late, what arrived meanwhile is taken in for so long before anybody is blamed.
const CATCH_UP: Duration = Duration::from_millis(10);

/// The highest of what was seen, fading.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peak {
    seconds: f64,
    at: Duration,
}

impl Peak {
    /// What is left of it.
    pub(super) fn at(&self, now: Duration) -> Duration {
        let age = now.saturating_sub(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        // Both are finite and not negative.
        Duration::from_secs_f64(self.seconds * (-age).exp2()).min(MOST)
    }

    pub(super) fn note(&mut self, now: Duration, seen: Duration) {
        let seen = seen.min(MOST);
        if seen >= self.at(now) {
            *self = Self { seconds: seen.as_secs_f64(), at: now };
        }
    }
}

/// How long answers usually take, whoever gives them. In a large cluster a member is asked so
/// seldom by any one other that little is known of it alone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usual {
    mean: f64,
    deviation: f64,
}

impl Usual {
    /// What most answers stay below.
    pub(super) fn most(&self) -> Duration {
        // Both are finite and not negative.
        Duration::from_secs_f64(self.mean + 2.0 * self.deviation).min(MOST)
    }

    /// The weights are those of TCP's estimate of the round trip (RFC 6298).
    pub(super) fn note(&mut self, seen: Duration) {
        let seen = seen.min(MOST).as_secs_f64();
        self.deviation += ((seen - self.mean).abs() - self.deviation) / 4.0;
        self.mean += (seen - self.mean) / 8.0;
    }
}

/// The time that counts: what passes while this node is awake.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    lost: Duration,
    late: Peak,
    /// Whether the deadline that was missed last has had its time to catch up.
    catching_up: bool,
}

/// Where local time begins, so that it never runs below nothing.
const EPOCH: Duration = Duration::from_secs(1);

impl Clock {
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, lost: Duration::ZERO, late: Peak::default(), catching_up: false }
    }

    pub(super) fn local(&self, now: Instant) -> Duration {
        (EPOCH + now.saturating_duration_since(self.start)).saturating_sub(self.lost)
    }

    pub(super) fn real(&self, local: Duration) -> Instant {
        self.start + (local + self.lost).saturating_sub(EPOCH)
    }

    /// How late this node has been lately.
    pub(super) fn lateness(&self, now: Duration) -> Duration {
        self.late.at(now)
    }

    /// This node is awake, and wanted to be at `deadline`. If it comes too late, the time between
    /// is taken out.
    pub(super) fn wake(&mut self, now: Instant, deadline: Duration) {
        let local = self.local(now);
        let late = local.saturating_sub(deadline);
        if late > PUNCTUAL {
            self.late.note(local, late);
            self.lost += late;
            if !self.catching_up {
                self.catching_up = true;
                self.lost += CATCH_UP;
            }
        }
    }

    /// A deadline was kept.
    pub(super) const fn caught_up(&mut self) {
        self.catching_up = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn peaks_fade_and_higher_ones_replace_them() {
        let mut peak = Peak::default();
        peak.note(ms(0), ms(100));
        assert_eq!(peak.at(HALF_LIFE), ms(50));
        peak.note(HALF_LIFE, ms(40));
        assert_eq!(peak.at(HALF_LIFE), ms(50), "a lower one changes nothing");
        peak.note(HALF_LIFE, ms(80));
        assert_eq!(peak.at(HALF_LIFE), ms(80));
        peak.note(HALF_LIFE, Duration::from_secs(3600));
        assert_eq!(peak.at(HALF_LIFE), MOST);
    }

    #[test]
    fn time_slept_through_does_not_pass() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        let deadline = clock.local(start) + ms(50);
        // On time: nothing is lost.
        clock.wake(start + ms(52), deadline);
        assert_eq!(clock.local(start + ms(52)), deadline + ms(2));
        // An hour late: the deadline is met a moment after this one.
        let woken = start + Duration::from_secs(3600);
        clock.wake(woken, deadline);
        assert_eq!(clock.local(woken), deadline - CATCH_UP);
        assert_eq!(clock.real(deadline), woken + CATCH_UP);
        // Late again: now it is due, and no more than that.
        let again = woken + ms(500);
        clock.wake(again, deadline);
        assert_eq!(clock.local(again), deadline);
        assert!(clock.lateness(deadline) > MOST.mul_f64(0.9));
    }

    /// How many periods pass, in 99 of 100 cases, before the first of `others` members asks the
    /// dead one. Each goes through all of them in turn and shuffles after each turn, so the places
    /// in two turns are independent.
    fn periods_until_asked(others: u32) -> f64 {
        let places = f64::from(others);
        // How likely one member has not asked within `waited` periods.
        let unasked = |waited: f64| {
            let pairs = (0..others).flat_map(|i| (0..others).map(move |j| (i, j)));
            let rest = pairs.map(|(i, j)| (places - f64::from(i) + f64::from(j) - waited).max(0.0));
            rest.sum::<f64>() / places.powi(3)
        };
        let steps = (0..1000).map(|step| f64::from(step) / 100.0);
        steps.into_iter().find(|w| unasked(*w).powf(places) <= 0.01).unwrap()
    }

    #[test]
    fn a_death_is_known_within_half_a_second() {
        for others in 1..60 {
            let most =
                PERIOD.mul_f64(periods_until_asked(others)) + PERIOD + suspicion(others as usize);
            // What is left is for the news to get around.
            assert!(most < ms(465), "{others} others: {most:?}");
        }
    }
}
