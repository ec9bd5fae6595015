//! What one path to a peer is worth. Pure.
//!
//! The round trip is that of a single packet. Then a train of packets follows at once: the time between the
//! first and the last that is back is that which the others took on the narrowest line of the path, or on
//! the slower of the two hosts. Where they come in one bunch, it is by how much longer the last one takes
//! than the single packet did.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::probe::PROBE_BYTES;

/// So many questions in a row without an answer, and the path is lost.
const LOST_AFTER: u32 = 3;

/// A train follows every so many questions; and the first.
const TRAIN_EVERY: u32 = 6;

/// As many of them are remembered.
const TRAINS: usize = 3;

/// Packets of a train: ten kilobytes on a slow line, 38 where that says too little.
const SHORT_TRAIN: u8 = 8;
const LONG_TRAIN: u8 = 32;

/// Lines that carry more, in bytes per second, get long trains.
const FAST: u64 = 10_000_000;

/// No host is taken to pass packets on faster than one in this time.
const LEAST: Duration = Duration::from_micros(1);

/// What a path is judged by: how long so many bytes take to the other side.
const BURDEN: f64 = 65_536.0;

/// A path's measures.
#[derive(Debug, Clone, Default)]
pub(crate) struct PathProbe {
    asked: Option<Asked>,
    questions: u32,
    unanswered: u32,
    rtt: Option<Duration>,
    /// What the last trains say, in bytes per second. Whatever disturbs one makes the line look narrower,
    /// so the most of them counts.
    rates: VecDeque<u64>,
    /// Whether the last train said something else than those before, so that the next is sent sooner.
    in_question: bool,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    nonce: u64,
    at: Instant,
    train: Option<Train>,
}

/// A train under way.
#[derive(Debug, Clone, Copy)]
struct Train {
    length: u8,
    /// The round trip of the single packet before it.
    single: Duration,
    /// Bits of the packets that are back.
    back: u32,
    /// When the first of them was.
    first: Option<Instant>,
}

/// Questions to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Questions {
    pub(crate) nonce: u64,
    pub(crate) count: u8,
}

impl PathProbe {
    /// A single question; what was not answered before it is given up.
    pub(crate) fn ask(&mut self, now: Instant, nonce: u64) -> Questions {
        match self.asked {
            Some(Asked { train: None, .. }) => {
                self.unanswered = self.unanswered.saturating_add(1);
                if self.unanswered >= LOST_AFTER {
                    self.rtt = None;
                    self.rates.clear();
                }
            }
            // What came by now, in all that time.
            Some(Asked { train: Some(train), at, .. }) => {
                let waited = now.saturating_duration_since(at).as_secs_f64().max(1e-6);
                let bytes = f64::from(train.back.count_ones()) * PROBE_BYTES as f64;
                self.carried(bytes / waited);
                self.in_question = true;
            }
            None => {}
        }
        self.questions = self.questions.wrapping_add(1);
        self.asked = Some(Asked { nonce, at: now, train: None });
        Questions { nonce, count: 1 }
    }

    /// An answer came. The train to send, if it is time for one.
    pub(crate) fn answered(&mut self, now: Instant, nonce: u64, index: u8) -> Option<Questions> {
        let asked = self.asked.as_mut().filter(|asked| asked.nonce == nonce)?;
        let took = now.saturating_duration_since(asked.at);
        if let Some(train) = &mut asked.train {
            if index >= train.length {
                return None;
            }
            train.back |= 1 << index;
            let first = *train.first.get_or_insert(now);
            if train.back.count_ones() == u32::from(train.length) {
                let others = u32::from(train.length - 1);
                let longer = now.saturating_duration_since(first);
                let longer = longer.max(took.saturating_sub(train.single)).max(LEAST * others);
                let longer = longer.as_secs_f64();
                let bytes = f64::from(others) * PROBE_BYTES as f64;
                self.asked = None;
                self.carried(bytes / longer);
            }
            return None;
        }
        self.unanswered = 0;
        self.asked = None;
        self.rtt = Some(self.rtt.map_or(took, |known| (known * 3 + took) / 4));
        let known = self.bytes_per_second();
        let is_due = self.in_question || known.is_none() || self.questions % TRAIN_EVERY == 1;
        is_due.then(|| {
            let is_fast = known.is_some_and(|rate| rate > FAST);
            let length = if is_fast { LONG_TRAIN } else { SHORT_TRAIN };
            let train = Train { length, single: took, back: 0, first: None };
            let nonce = nonce.wrapping_add(1);
            self.asked = Some(Asked { nonce, at: now, train: Some(train) });
            Questions { nonce, count: length }
        })
    }

    fn carried(&mut self, rate: f64) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        let rate = rate as u64;
        self.in_question = self.bytes_per_second().is_some_and(|known| rate < known / 2);
        self.rates.push_back(rate);
        if self.rates.len() > TRAINS {
            self.rates.pop_front();
        }
    }

    /// There and back, unless the path is lost or was not measured yet.
    pub(crate) const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// As long as there is a round trip, and once a train came through.
    pub(crate) fn bytes_per_second(&self) -> Option<u64> {
        self.rates.iter().copied().max()
    }

    /// Seconds that [`BURDEN`] takes to the other side.
    pub(crate) fn cost(&self) -> Option<f64> {
        let rate = self.bytes_per_second()? as f64;
        Some(self.rtt?.as_secs_f64() / 2.0 + BURDEN / rate.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    /// A path that takes `rtt` and so many microseconds for each packet.
    fn measure(probe: &mut PathProbe, now: &mut Instant, rtt: u32, each: u32) {
        let one = probe.ask(*now, 100);
        *now += (rtt + each) * MICRO;
        let Some(train) = probe.answered(*now, one.nonce, 0) else {
            return;
        };
        *now += rtt * MICRO;
        for index in 0..train.count {
            *now += each * MICRO;
            assert_eq!(probe.answered(*now, train.nonce, index), None);
        }
    }

    #[test]
    fn a_path_is_measured_by_a_packet_and_a_train() {
        let (mut probe, mut now) = (PathProbe::default(), Instant::now());
        assert_eq!((probe.rtt(), probe.cost()), (None, None));
        // 12 µs for 1200 bytes are 100 MB/s.
        measure(&mut probe, &mut now, 500, 12);
        assert_eq!(probe.rtt(), Some(512 * MICRO));
        let rate = probe.bytes_per_second().unwrap();
        assert!((99_000_000..101_000_000).contains(&rate), "{rate}");
        let cost = probe.cost().unwrap();
        assert!((cost - (256e-6 + 655e-6)).abs() < 10e-6, "{cost}");
        // The next packet has no train behind it.
        let one = probe.ask(now, 7);
        assert_eq!(probe.answered(now + 500 * MICRO, one.nonce, 0), None);
    }

    #[test]
    fn trains_come_now_and_then_and_are_long_on_fast_lines() {
        let (mut probe, mut now) = (PathProbe::default(), Instant::now());
        measure(&mut probe, &mut now, 500, 12);
        let mut trains = Vec::new();
        for question in 1..=24 {
            let one = probe.ask(now, question * 10);
            now += 500 * MICRO;
            if let Some(train) = probe.answered(now, one.nonce, 0) {
                trains.push((question, train.count));
                for index in 0..train.count {
                    probe.answered(now + 600 * MICRO, train.nonce, index);
                }
            }
        }
        assert_eq!(trains, [6, 12, 18, 24].map(|question| (question, LONG_TRAIN)));
    }

    #[test]
    fn a_path_that_does_not_answer_is_lost_and_comes_back() {
        let (mut probe, mut now) = (PathProbe::default(), Instant::now());
        measure(&mut probe, &mut now, 500, 12);
        for _ in 0..LOST_AFTER {
            assert!(probe.rtt().is_some());
            probe.ask(now, 1);
        }
        probe.ask(now, 1);
        assert_eq!((probe.rtt(), probe.bytes_per_second()), (None, None));
        measure(&mut probe, &mut now, 700, 12);
        assert_eq!(probe.rtt(), Some(712 * MICRO));
        assert!(probe.cost().is_some());
    }

    #[test]
    fn answers_that_nobody_asked_for_or_that_come_twice_change_nothing() {
        let (mut probe, now) = (PathProbe::default(), Instant::now());
        assert_eq!(probe.answered(now, 0, 0), None);
        let one = probe.ask(now, 5);
        assert_eq!(probe.answered(now, 6, 0), None);
        let train = probe.answered(now + 500 * MICRO, one.nonce, 0).unwrap();
        assert_eq!(probe.answered(now, one.nonce, 0), None, "the single one again");
        for index in [0, 0, 0, 200, train.count, 31] {
            assert_eq!(probe.answered(now + 600 * MICRO, train.nonce, index), None);
        }
        assert_eq!(probe.bytes_per_second(), None, "the train is not complete");
    }

    #[test]
    fn a_train_that_was_torn_says_little_and_is_sent_again() {
        let (mut probe, now) = (PathProbe::default(), Instant::now());
        let one = probe.ask(now, 5);
        let train = probe.answered(now, one.nonce, 0).unwrap();
        for index in 1..train.count {
            probe.answered(now + 500 * MICRO, train.nonce, index);
        }
        let mut now = now + Duration::from_secs(5);
        let one = probe.ask(now, 50);
        assert_eq!(probe.bytes_per_second(), Some(7 * 1200 / 5));
        assert!(probe.answered(now, one.nonce, 0).is_some());
        measure(&mut probe, &mut now, 500, 12);
        assert!(probe.bytes_per_second() > Some(FAST));
    }

    #[test]
    fn a_line_is_narrower_once_several_trains_say_so() {
        let (mut probe, mut now) = (PathProbe::default(), Instant::now());
        measure(&mut probe, &mut now, 500, 12);
        let before = probe.bytes_per_second().unwrap();
        probe.questions = 0;
        measure(&mut probe, &mut now, 500, 120);
        assert_eq!(probe.bytes_per_second(), Some(before));
        // It is in question, so the next trains come at once.
        for _ in 1..TRAINS {
            measure(&mut probe, &mut now, 500, 120);
        }
        let after = probe.bytes_per_second().unwrap();
        assert!((9_000_000..11_000_000).contains(&after), "{after}");
        // It can be as wide as it was at any time.
        probe.questions = 0;
        measure(&mut probe, &mut now, 500, 12);
        assert_eq!(probe.bytes_per_second(), Some(before));
    }
}
