//! How many sequences run and how many requests wait. Pure.

use std::collections::VecDeque;

use crate::cluster_view::SequenceCounts;

/// Places for sequences, and a bounded queue before them.
#[derive(Debug)]
pub struct Admission<T> {
    places: u32,
    queue_limit: u32,
    running: u32,
    waiting: VecDeque<T>,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Admitted<T> {
    /// It may run now.
    Runs(T),
    /// It waits; `next` gives it back when a place is free.
    Waits,
    /// The queue is full.
    Refused(T),
}

impl<T> Admission<T> {
    /// Nobody runs, nobody waits.
    #[must_use]
    pub const fn new(places: u32, queue_limit: u32) -> Self {
        Self { places, queue_limit, running: 0, waiting: VecDeque::new() }
    }

    /// A request comes. Of those that wait, only the ones that are still `wanted` have a place in the queue.
    pub fn admit(&mut self, request: T, wanted: impl Fn(&T) -> bool) -> Admitted<T> {
        self.keep(wanted);
        if self.running < self.places && self.waiting.is_empty() {
            self.running += 1;
            Admitted::Runs(request)
        } else if self.waiting.len() < self.queue_limit as usize {
            self.waiting.push_back(request);
            Admitted::Waits
        } else {
            Admitted::Refused(request)
        }
    }

    /// A sequence ended, and its place is free.
    pub const fn ended(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// Of those that wait, only these are `wanted` any more.
    pub fn keep(&mut self, wanted: impl Fn(&T) -> bool) {
        self.waiting.retain(wanted);
    }

    /// Nobody waits any more; those that did.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.waiting.drain(..)
    }

    /// The next request that may run, if there is a place. Those that are no longer `wanted` are
    /// passed over.
    pub fn next(&mut self, wanted: impl Fn(&T) -> bool) -> Option<T> {
        self.keep(wanted);
        if self.running >= self.places {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.running += 1;
        Some(next)
    }

    /// How many run and wait.
    #[must_use]
    pub fn counts(&self) -> SequenceCounts {
        let queued = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        SequenceCounts { running: self.running, queued }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(_: &u32) -> bool {
        true
    }

    #[test]
    fn places_then_queue_then_refusal() {
        let mut admission = Admission::new(2, 1);
        assert_eq!(admission.admit(1, all), Admitted::Runs(1));
        assert_eq!(admission.admit(2, all), Admitted::Runs(2));
        assert_eq!(admission.admit(3, all), Admitted::Waits);
        assert_eq!(admission.admit(4, all), Admitted::Refused(4));
        assert_eq!(admission.next(all), None);
        admission.ended();
        assert_eq!(admission.next(all), Some(3));
        assert_eq!(admission.counts(), SequenceCounts { running: 2, queued: 0 });
    }

    #[test]
    fn clients_that_left_the_queue_make_room_in_it() {
        let mut admission = Admission::new(1, 2);
        assert_eq!(admission.admit(1, all), Admitted::Runs(1));
        assert_eq!(admission.admit(2, all), Admitted::Waits);
        assert_eq!(admission.admit(3, all), Admitted::Waits);
        // At once, though nobody that runs has ended.
        assert_eq!(admission.admit(4, |n| *n != 2), Admitted::Waits);
        assert_eq!(admission.counts(), SequenceCounts { running: 1, queued: 2 });
        admission.keep(|n| *n != 3);
        assert_eq!(admission.counts(), SequenceCounts { running: 1, queued: 1 });
        admission.ended();
        assert_eq!(admission.next(all), Some(4));
    }
}
