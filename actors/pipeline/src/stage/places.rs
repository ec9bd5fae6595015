//! The places of a model's first stage, and who waits for one. Pure.
//!
//! A place is taken by a sequence that is open, or that was told that it may begin. Who finds none waits, and
//! is told when its turn has come: owners take turns, and of each owner's sequences the one that came first
//! goes first. Nobody asks for a place again, and nothing has to be said for one to be free: who does not come,
//! or is not heard of any more, holds none.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use planaria_config::{Incarnation, SequenceId};
use planaria_protocol::wire::{DataBody, DataHeader};

/// Sequences of all owners that may wait at once: an owner has no more than the model has places under way,
/// and queues the rest itself, so only dozens of them come near. Past it a sequence is refused.
const MOST_WAITING: usize = 1024;

/// So long a place is kept for whoever was told that it may begin: a few round trips over a slow link.
const KEPT: Duration = Duration::from_secs(5);

/// Owners of sequences that wait say every few seconds that they are there. Who has not for so long has them
/// no more.
const SILENCE: Duration = Duration::from_secs(60);

/// Who waits and who may begin.
#[derive(Debug, Default)]
pub(super) struct Places {
    waiting: BTreeMap<Incarnation, VecDeque<Waiting>>,
    /// Whose turn it was last.
    last: Option<Incarnation>,
    /// Who may begin, until when.
    granted: BTreeMap<SequenceId, (Waiting, Instant)>,
}

#[derive(Debug)]
struct Waiting {
    /// Of the frame that asked for a place, for something to tell its owner.
    header: DataHeader,
    /// Places that its plan has.
    limit: usize,
    heard: Instant,
}

/// What becomes of a sequence that asks for a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Begins,
    Waits,
    Refused,
}

impl Places {
    /// A sequence asks for one of `limit` places, `open` of which are taken by others; it `waits` if need be.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        header: &DataHeader,
        (limit, open): (usize, usize),
        waits: bool,
    ) -> Asked {
        if self.granted.remove(&header.sequence).is_some() {
            return Asked::Begins;
        }
        if let Some(known) = self.find(header.sequence) {
            // A later attempt keeps its turn.
            (known.header, known.limit, known.heard) = (told(header), limit, now);
            return Asked::Waits;
        }
        if self.waiting.is_empty() && open + self.granted.len() < limit {
            return Asked::Begins;
        }
        if !waits || self.len() >= MOST_WAITING {
            return Asked::Refused;
        }
        let queue = self.waiting.entry(header.owner).or_default();
        queue.push_back(Waiting { header: told(header), limit, heard: now });
        Asked::Waits
    }

    /// What an owner is to hear that asks after a sequence, if that waits or may begin.
    pub(super) fn heard(&mut self, now: Instant, sequence: SequenceId) -> Option<DataBody> {
        if self.granted.contains_key(&sequence) {
            return Some(DataBody::Granted);
        }
        self.find(sequence)?.heard = now;
        Some(DataBody::Waits)
    }

    /// Whether a sequence waits or may begin.
    pub(super) fn knows(&self, sequence: SequenceId) -> bool {
        let mut waiting = self.waiting.values().flatten();
        self.granted.contains_key(&sequence)
            || waiting.any(|waiting| waiting.header.sequence == sequence)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.granted.is_empty()
    }

    /// Hands out the places that are free while so many are `open`; who may begin.
    pub(super) fn grant(&mut self, now: Instant, open: usize) -> Vec<DataHeader> {
        self.granted.retain(|_, (_, until)| *until > now);
        self.keep(|waiting| now.saturating_duration_since(waiting.heard) <= SILENCE);
        let mut begin = Vec::new();
        while let Some(owner) = self.turn() {
            let taken = open + self.granted.len();
            let Some(queue) = self.waiting.get_mut(&owner) else { break };
            let Some(next) = queue.pop_front_if(|next| taken < next.limit) else { break };
            if queue.is_empty() {
                self.waiting.remove(&owner);
            }
            self.last = Some(owner);
            begin.push(DataHeader { body: DataBody::Granted, ..next.header.clone() });
            self.granted.insert(next.header.sequence, (next, now + KEPT));
        }
        begin
    }

    /// A sequence wants nothing any more, up to and with this attempt.
    pub(super) fn release(&mut self, sequence: SequenceId, attempt: u16) {
        let is_over =
            |header: &DataHeader| header.sequence == sequence && header.attempt <= attempt;
        self.keep(|waiting| !is_over(&waiting.header));
        self.granted.retain(|_, (granted, _)| !is_over(&granted.header));
    }

    /// These owners are over, and with them what they had.
    pub(super) fn lose_owners(&mut self, is_over: impl Fn(Incarnation) -> bool) {
        self.waiting.retain(|owner, _| !is_over(*owner));
        self.granted.retain(|_, (granted, _)| !is_over(granted.header.owner));
    }

    /// There will be no places; who is to hear of it.
    pub(super) fn dismiss(&mut self) -> Vec<DataHeader> {
        let waiting = std::mem::take(&mut self.waiting).into_values().flatten();
        let granted = std::mem::take(&mut self.granted).into_values().map(|(granted, _)| granted);
        waiting.chain(granted).map(|dismissed| dismissed.header).collect()
    }

    fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    fn find(&mut self, sequence: SequenceId) -> Option<&mut Waiting> {
        self.waiting.values_mut().flatten().find(|waiting| waiting.header.sequence == sequence)
    }

    fn keep(&mut self, wanted: impl Fn(&Waiting) -> bool) {
        self.waiting.retain(|_, queue| {
            queue.retain(&wanted);
            !queue.is_empty()
        });
    }

    /// Whose turn it is: of those who wait, the first after whoever had it last.
    fn turn(&self) -> Option<Incarnation> {
        let after = |last: &Incarnation| self.waiting.keys().find(|owner| *owner > last);
        self.last.as_ref().and_then(after).or_else(|| self.waiting.keys().next()).copied()
    }
}

/// For something to tell the owner of a frame; what the frame carried can be much.
fn told(header: &DataHeader) -> DataHeader {
    let DataHeader { epoch, sequence, owner, attempt, .. } = *header;
    let (position, trace, sent, body) = (0, None, None, DataBody::Waits);
    DataHeader { epoch, sequence, owner, attempt, position, trace, sent, body }
}

#[cfg(test)]
mod tests {
    use planaria_config::{Epoch, NodeId};
    use proptest::prelude::*;

    use super::*;

    fn owner(byte: u8) -> Incarnation {
        Incarnation { node: NodeId::from_bytes([byte; 32]), boot_count: 1 }
    }

    /// Of sequence `number` of an owner.
    fn of(byte: u8, number: u8) -> DataHeader {
        let epoch = Epoch { counter: 1, planner: owner(1).node };
        let sequence = SequenceId::from_bits(u128::from(byte) << 8 | u128::from(number));
        let (owner, attempt, position) = (owner(byte), 0, 0);
        let (trace, sent, body) = (None, None, DataBody::Waits);
        DataHeader { epoch, sequence, owner, attempt, position, trace, sent, body }
    }

    fn owners(begin: &[DataHeader]) -> Vec<u8> {
        begin.iter().map(|header| header.owner.node.as_bytes()[0]).collect()
    }

    #[test]
    fn owners_take_turns_and_nobody_is_passed_over() {
        let now = Instant::now();
        let mut places = Places::default();
        assert_eq!(places.ask(now, &of(1, 0), (1, 0), true), Asked::Begins);
        for number in 1..4 {
            assert_eq!(places.ask(now, &of(1, number), (1, 1), true), Asked::Waits);
        }
        assert_eq!(places.ask(now, &of(2, 0), (1, 1), true), Asked::Waits);
        assert_eq!(places.ask(now, &of(3, 0), (1, 1), true), Asked::Waits);
        assert_eq!(places.ask(now, &of(4, 0), (1, 1), false), Asked::Refused, "it does not wait");
        let mut turns = Vec::new();
        for _ in 0..5 {
            assert!(places.grant(now, 1).is_empty(), "one runs");
            let begin = places.grant(now, 0);
            turns.extend(owners(&begin));
            assert!(places.grant(now, 0).is_empty(), "its place is kept");
            // Who comes now does not come before.
            assert_eq!(places.ask(now, &of(9, 0), (1, 0), false), Asked::Refused);
            assert_eq!(places.ask(now, &begin[0], (1, 0), true), Asked::Begins);
        }
        assert_eq!(turns, [1, 2, 3, 1, 1]);
        assert!(places.is_empty());
    }

    #[test]
    fn who_does_not_come_holds_no_place() {
        let now = Instant::now();
        let mut places = Places::default();
        for byte in 1..6 {
            places.ask(now, &of(byte, 0), (1, 1), true);
        }
        assert_eq!(owners(&places.grant(now, 0)), [1]);
        assert_eq!(owners(&places.grant(now + KEPT, 0)), [2], "the first one did not begin");
        places.release(of(2, 0).sequence, u16::MAX);
        assert_eq!(owners(&places.grant(now + KEPT, 0)), [3]);
        places.lose_owners(|life| life == owner(3));
        assert_eq!(owners(&places.grant(now + KEPT, 0)), [4]);
        assert_eq!(places.heard(now, of(4, 0).sequence), Some(DataBody::Granted), "it was lost");
        assert_eq!(places.heard(now, of(5, 0).sequence), Some(DataBody::Waits));
        let later = now + 2 * SILENCE;
        assert!(places.grant(later, 0).is_empty(), "nobody was heard of for long");
        assert!(places.is_empty() && places.heard(later, of(5, 0).sequence).is_none());
    }

    #[test]
    fn a_later_attempt_keeps_its_turn() {
        let now = Instant::now();
        let mut places = Places::default();
        places.ask(now, &of(1, 0), (1, 1), true);
        places.ask(now, &of(1, 1), (1, 1), true);
        let again = DataHeader { attempt: 3, ..of(1, 0) };
        assert_eq!(places.ask(now, &again, (1, 1), true), Asked::Waits);
        places.release(again.sequence, 2);
        let [begins] = places.grant(now, 0).try_into().unwrap();
        assert_eq!((begins.sequence, begins.attempt), (again.sequence, 3));
        let [left, kept] = places.dismiss().try_into().unwrap();
        assert_eq!([left.sequence, kept.sequence], [of(1, 1).sequence, again.sequence]);
        assert!(places.is_empty());
    }

    proptest! {
        #[test]
        fn whatever_happens_no_place_is_given_twice_and_none_is_left_behind(
            deeds in proptest::collection::vec((0_u8..6, 1_u8..4, 0_u8..4), 0..60)
        ) {
            let mut now = Instant::now();
            let (limit, mut open) = (2_usize, std::collections::BTreeSet::new());
            let mut places = Places::default();
            for (deed, byte, number) in deeds {
                let header = of(byte, number);
                let granted = match deed {
                    0 | 1 if !open.contains(&header.sequence) => {
                        let asked = places.ask(now, &header, (limit, open.len()), true);
                        if asked == Asked::Begins {
                            open.insert(header.sequence);
                        }
                        Vec::new()
                    }
                    2 => {
                        places.release(header.sequence, u16::MAX);
                        open.remove(&header.sequence);
                        Vec::new()
                    }
                    3 => {
                        now += KEPT / 2;
                        Vec::new()
                    }
                    4 => {
                        places.lose_owners(|life| life == header.owner);
                        Vec::new()
                    }
                    _ => places.grant(now, open.len()),
                };
                for header in granted {
                    prop_assert_eq!(places.ask(now, &header, (limit, open.len()), true), Asked::Begins);
                    open.insert(header.sequence);
                }
                prop_assert!(open.len() <= limit);
                prop_assert!(open.iter().all(|sequence| !places.knows(*sequence)));
            }
            for byte in 1..4 {
                for number in 0..4 {
                    places.release(of(byte, number).sequence, u16::MAX);
                }
            }
            prop_assert!(places.is_empty());
        }
    }
}
