//! The sequences that were released last. Pure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use planaria_config::SequenceId;

/// So many are remembered, so that a frame that comes late does not open one again. More than can be
/// released while a frame is on its way.
const REMEMBERED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Released {
    /// With the last attempt that was.
    last: HashMap<SequenceId, u16>,
    order: VecDeque<SequenceId>,
}

impl Released {
    pub(super) fn add(&mut self, sequence: SequenceId, attempt: u16) {
        match self.last.entry(sequence) {
            Entry::Occupied(mut known) => *known.get_mut() = attempt.max(*known.get()),
            Entry::Vacant(new) => {
                new.insert(attempt);
                self.order.push_back(sequence);
            }
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.last.remove(&oldest);
        }
    }

    pub(super) fn covers(&self, sequence: SequenceId, attempt: u16) -> bool {
        self.last.get(&sequence).is_some_and(|last| *last >= attempt)
    }
}
