//! Which of the waiting segments go into the next step. Pure.

use std::collections::{BTreeSet, VecDeque};

use planaria_config::SequenceId;
use planaria_engine::stage::{Segment, Step};

/// Most tokens in a step that holds more than one segment. Larger steps compute more efficiently,
/// but every sequence in them waits for the whole step; at 512 a matrix product is already as
/// efficient as it gets.
const STEP_TOKENS: usize = 512;

/// Something a worker was asked to do, in the order in which it was asked.
#[derive(Debug)]
pub(super) enum Work {
    Compute(Segment),
    Release(SequenceId),
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    Step(Step),
    Release(SequenceId),
}

/// Waiting work.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Work>,
}

impl Queue {
    pub(super) fn push(&mut self, work: Work) {
        self.waiting.push_back(work);
    }

    /// Takes what comes next: a release, or as many segments as fit into a step, at most one per
    /// sequence. The order within a sequence is kept.
    pub(super) fn next(&mut self) -> Option<Next> {
        if let Some(Work::Release(_)) = self.waiting.front() {
            let Some(Work::Release(sequence)) = self.waiting.pop_front() else {
                return None;
            };
            return Some(Next::Release(sequence));
        }
        let mut step = Step::default();
        let mut tokens = 0;
        let mut passed_over: BTreeSet<SequenceId> = BTreeSet::new();
        let mut left = VecDeque::with_capacity(self.waiting.len());
        for work in self.waiting.drain(..) {
            match work {
                Work::Compute(segment)
                    if !passed_over.contains(&segment.sequence)
                        && (tokens == 0 || tokens + segment.tokens.len() <= STEP_TOKENS) =>
                {
                    tokens += segment.tokens.len();
                    passed_over.insert(segment.sequence);
                    step.segments.push(segment);
                }
                Work::Compute(segment) => {
                    passed_over.insert(segment.sequence);
                    left.push_back(Work::Compute(segment));
                }
                Work::Release(sequence) => {
                    passed_over.insert(sequence);
                    left.push_back(Work::Release(sequence));
                }
            }
        }
        self.waiting = left;
        (!step.segments.is_empty()).then_some(Next::Step(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sequence: u128, start: u32, tokens: usize) -> Work {
        Work::Compute(Segment {
            sequence: SequenceId::from_bits(sequence),
            start,
            tokens: vec![0; tokens],
            hidden: None,
            open: None,
            sample: true,
        })
    }

    fn take(queue: &mut Queue) -> Vec<(u128, u32)> {
        match queue.next() {
            Some(Next::Step(step)) => {
                step.segments.iter().map(|s| (s.sequence.bits(), s.start)).collect()
            }
            Some(Next::Release(sequence)) => vec![(sequence.bits(), u32::MAX)],
            None => Vec::new(),
        }
    }

    #[test]
    fn sequences_share_a_step_and_keep_their_own_order() {
        let mut queue = Queue::default();
        for work in [segment(1, 0, 5), segment(1, 5, 5), segment(2, 7, 1)] {
            queue.push(work);
        }
        assert_eq!(take(&mut queue), [(1, 0), (2, 7)]);
        assert_eq!(take(&mut queue), [(1, 5)]);
        assert_eq!(take(&mut queue), []);
    }

    #[test]
    fn a_release_stays_behind_what_was_asked_before_it() {
        let mut queue = Queue::default();
        queue.push(segment(1, 0, 5));
        queue.push(Work::Release(SequenceId::from_bits(1)));
        queue.push(segment(1, 0, 2));
        queue.push(segment(2, 0, 1));
        assert_eq!(take(&mut queue), [(1, 0), (2, 0)]);
        assert_eq!(take(&mut queue), [(1, u32::MAX)]);
        assert_eq!(take(&mut queue), [(1, 0)]);
    }

    #[test]
    fn a_step_is_bounded_but_a_single_long_segment_passes() {
        let mut queue = Queue::default();
        queue.push(segment(1, 0, STEP_TOKENS + 1));
        queue.push(segment(2, 0, STEP_TOKENS));
        queue.push(segment(3, 0, 1));
        assert_eq!(take(&mut queue), [(1, 0)]);
        assert_eq!(take(&mut queue), [(2, 0)]);
        assert_eq!(take(&mut queue), [(3, 0)]);
    }
}
