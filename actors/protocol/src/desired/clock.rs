//! When a change was made: hybrid logical clocks (Kulkarni and others, "Logical Physical Clocks",
//! 2014).
//!
//! A stamp is the wall clock, a counter and the node. It is close to real time, and later than
//! every stamp that its author had seen, also when that author's wall clock is behind or jumps
//! back. Between two stamps of one wall time and counter the node decides, so the order is total.
//!
//! A clock follows stamps at most [`FARTHEST_AHEAD`] into the future. One that is further ahead
//! comes from a machine whose clock is plainly wrong; following it would leave the whole cluster
//! counting from that time for ever. What such a stamp is on counts as it stands, and whoever
//! changes that again counts on from it ([`Clock::tick`]), so nothing gets stuck.

use std::time::Duration;

use planaria_config::NodeId;
use serde::{Deserialize, Serialize};

/// How far ahead of this machine a stamp may be and still pull the clock along. Machines without
/// time synchronisation differ by minutes; one that differs by more than this is set wrongly, for
/// instance to another time zone.
pub const FARTHEST_AHEAD: Duration = Duration::from_secs(3600);

/// No honest stamp is later: the year 10889. Leaves room to count on from any stamp.
const LATEST: u64 = 1 << 48;

/// When a change was made, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Milliseconds since 1970.
    wall: u64,
    /// Tells changes of one millisecond apart.
    counter: u32,
    /// Who made the change.
    node: NodeId,
}

impl Stamp {
    /// Earlier than every change that was made at a time: what `node` takes for granted until
    /// somebody says otherwise.
    #[must_use]
    pub const fn unsaid(node: NodeId) -> Self {
        Self { wall: 0, counter: 0, node }
    }

    /// In milliseconds since 1970; `None` for what was never said.
    #[must_use]
    pub const fn at(self) -> Option<u64> {
        if self.wall == 0 { None } else { Some(self.wall) }
    }

    /// Who made the change.
    #[must_use]
    pub const fn node(self) -> NodeId {
        self.node
    }

    /// Whether some stamp can be later. Those that come from peers have to be asked.
    #[must_use]
    pub const fn can_be_followed(self) -> bool {
        self.wall <= LATEST
    }

    /// The next stamp, made by `node`.
    const fn next(self, node: NodeId) -> Self {
        match self.counter.checked_add(1) {
            Some(counter) => Self { wall: self.wall, counter, node },
            None => Self { wall: self.wall.saturating_add(1), counter: 0, node },
        }
    }
}

/// A node's clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// The latest stamp that was made here or followed.
    latest: Stamp,
}

impl Clock {
    /// A clock that has seen nothing yet.
    #[must_use]
    pub const fn new(node: NodeId) -> Self {
        Self { latest: Stamp::unsaid(node) }
    }

    /// The stamp of a change made `now` (milliseconds since 1970) to what had the stamp `former`:
    /// later than that one and, unless this machine's clock was more than [`FARTHEST_AHEAD`]
    /// ahead then, later than every former stamp of this clock.
    pub fn tick(&mut self, now: u64, former: Option<Stamp>) -> Stamp {
        // What is made now was said, also where the clock has never been set.
        let (now, node) = (now.clamp(1, LATEST), self.latest.node);
        let by_wall = Stamp { wall: now, counter: 0, node };
        // The wall clock was far ahead and is right again.
        let is_lost = self.latest.wall > farthest(now);
        self.latest =
            if is_lost || now > self.latest.wall { by_wall } else { self.latest.next(node) };
        match former {
            // From a clock that this one does not follow.
            Some(former) if former >= self.latest => former.next(node),
            _ => self.latest,
        }
    }

    /// Takes note of a stamp, so that those made from now on are later. `false`: it is too far
    /// ahead to follow.
    #[must_use]
    pub fn follow(&mut self, now: u64, seen: Stamp) -> bool {
        let follows = seen.wall <= farthest(now);
        if follows && seen > self.latest {
            self.latest = Stamp { node: self.latest.node, ..seen };
        }
        follows
    }
}

fn farthest(now: u64) -> u64 {
    now.saturating_add(u64::try_from(FARTHEST_AHEAD.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_800_000_000_000;
    const FIVE_MINUTES: u64 = 300_000;
    const DAY: u64 = 86_400_000;

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn stamp(wall: u64) -> Stamp {
        Stamp { wall, counter: 0, node: id(9) }
    }

    #[test]
    fn stamps_grow_while_the_wall_clock_stands_jumps_and_returns() {
        let mut clock = Clock::new(id(1));
        let mut last = Stamp::unsaid(id(9));
        for now in [NOON, NOON, NOON + FIVE_MINUTES, NOON, NOON - FIVE_MINUTES, NOON + 1] {
            let next = clock.tick(now, None);
            assert!(next > last, "{next:?} after {last:?}");
            last = next;
        }
    }

    #[test]
    fn a_stamp_is_later_than_what_was_seen() {
        let mut clock = Clock::new(id(1));
        let ahead = stamp(NOON + FIVE_MINUTES);
        assert!(clock.follow(NOON, ahead));
        let next = clock.tick(NOON, None);
        assert!(next > ahead && next.node() == id(1));
        // Time passes, and the wall clock leads again.
        assert_eq!(clock.tick(NOON + 2 * FIVE_MINUTES, None).at(), Some(NOON + 2 * FIVE_MINUTES));
    }

    #[test]
    fn a_clock_that_is_set_wrongly_drags_nobody_along() {
        let mut clock = Clock::new(id(1));
        let absurd = stamp(NOON + DAY);
        assert!(!clock.follow(NOON, absurd));
        assert_eq!(clock.tick(NOON, None).at(), Some(NOON));
        // What it was put on can be changed all the same, again and again.
        let over = clock.tick(NOON, Some(absurd));
        assert!(over > absurd);
        assert!(clock.tick(NOON, Some(over)) > over);
        assert_eq!(clock.tick(NOON, None).at(), Some(NOON));
    }

    #[test]
    fn a_machine_whose_clock_was_ahead_comes_back_to_its_time() {
        let mut clock = Clock::new(id(1));
        let ahead = clock.tick(NOON + DAY, None);
        assert_eq!(clock.tick(NOON, None).at(), Some(NOON));
        assert!(clock.tick(NOON, Some(ahead)) > ahead);
    }

    #[test]
    fn a_full_counter_goes_on_in_the_next_millisecond() {
        let full = Stamp { counter: u32::MAX, ..stamp(NOON) };
        assert!(full.next(id(1)) > full);
        assert!(stamp(LATEST).can_be_followed() && !stamp(LATEST + 1).can_be_followed());
    }
}
