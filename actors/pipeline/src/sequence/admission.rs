//! How many sequences run and how many requests wait. Pure.
//!
//! An owner has no more sequences of a model under way than the model has places; its first stage deals those
//! out among all owners. The rest waits here, in one queue for all models, and none waits for another model's
//! places.

use std::collections::{BTreeMap, VecDeque};

use planaria_config::ModelName;
use planaria_protocol::state::SequenceCounts;

/// Places for sequences, and a bounded queue before them.
#[derive(Debug)]
pub struct Admission<T> {
    queue_limit: u32,
    running: BTreeMap<ModelName, u32>,
    waiting: VecDeque<T>,
}

/// What asks for a place.
pub trait Requests {
    /// The model.
    fn model(&self) -> &ModelName;

    /// How many of its sequences run at once.
    fn places(&self) -> u32;

    /// Whether somebody still waits for it.
    fn is_wanted(&self) -> bool;
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Admitted<T> {
    /// It may run now.
    Runs(T),
    /// It waits; `next_to_run` gives it back when a place is free.
    Waits,
    /// The queue is full.
    Refused(T),
}

impl<T: Requests> Admission<T> {
    /// Nobody runs, nobody waits.
    #[must_use]
    pub const fn new(queue_limit: u32) -> Self {
        Self { queue_limit, running: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// A request comes.
    pub fn admit(&mut self, request: T) -> Admitted<T> {
        self.forget_unwanted();
        let is_first = !self.waiting.iter().any(|waiting| waiting.model() == request.model());
        if is_first && self.has_place(&request) {
            *self.running.entry(request.model().clone()).or_default() += 1;
            Admitted::Runs(request)
        } else if self.waiting.len() < self.queue_limit as usize {
            self.waiting.push_back(request);
            Admitted::Waits
        } else {
            Admitted::Refused(request)
        }
    }

    /// A sequence of this model ended, and its place is free.
    pub fn ended(&mut self, model: &ModelName) {
        if let Some(running) = self.running.get_mut(model) {
            *running = running.saturating_sub(1);
            if *running == 0 {
                self.running.remove(model);
            }
        }
    }

    /// Who is not wanted any more does not wait.
    pub fn forget_unwanted(&mut self) {
        self.waiting.retain(T::is_wanted);
    }

    /// Nobody waits any more; those that did.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.waiting.drain(..)
    }

    /// The next request that may run, if there is a place.
    pub fn next_to_run(&mut self) -> Option<T> {
        self.forget_unwanted();
        let first = self.waiting.iter().position(|waiting| self.has_place(waiting))?;
        let next = self.waiting.remove(first)?;
        *self.running.entry(next.model().clone()).or_default() += 1;
        Some(next)
    }

    /// How many run and wait.
    #[must_use]
    pub fn counts(&self) -> SequenceCounts {
        let queued = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        SequenceCounts { running: self.running.values().sum(), queued }
    }

    fn has_place(&self, request: &T) -> bool {
        self.running.get(request.model()).copied().unwrap_or(0) < request.places()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// A request of a model with two places.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Asked(u32, ModelName, Rc<Cell<bool>>);

    impl Requests for Asked {
        fn model(&self) -> &ModelName {
            &self.1
        }

        fn places(&self) -> u32 {
            2
        }

        fn is_wanted(&self) -> bool {
            self.2.get()
        }
    }

    fn name(model: &str) -> ModelName {
        model.parse().unwrap()
    }

    fn asked(number: u32, model: &str) -> Asked {
        Asked(number, name(model), Rc::new(Cell::new(true)))
    }

    fn runs(admission: &mut Admission<Asked>, number: u32, model: &str) -> bool {
        matches!(admission.admit(asked(number, model)), Admitted::Runs(Asked(n, ..)) if n == number)
    }

    #[test]
    fn places_then_queue_then_refusal() {
        let mut admission = Admission::new(1);
        assert!(runs(&mut admission, 1, "a") && runs(&mut admission, 2, "a"));
        assert_eq!(admission.admit(asked(3, "a")), Admitted::Waits);
        assert!(matches!(admission.admit(asked(4, "a")), Admitted::Refused(_)));
        assert_eq!(admission.next_to_run(), None);
        admission.ended(&name("a"));
        assert_eq!(admission.next_to_run().map(|next| next.0), Some(3));
        assert_eq!(admission.counts(), SequenceCounts { running: 2, queued: 0 });
    }

    #[test]
    fn no_model_waits_for_another_one() {
        let mut admission = Admission::new(4);
        assert!(runs(&mut admission, 1, "a") && runs(&mut admission, 2, "a"));
        assert_eq!(admission.admit(asked(3, "a")), Admitted::Waits);
        assert!(runs(&mut admission, 4, "b") && runs(&mut admission, 5, "b"));
        assert_eq!(admission.admit(asked(6, "b")), Admitted::Waits);
        admission.ended(&name("b"));
        assert_eq!(admission.next_to_run().map(|next| next.0), Some(6));
        assert_eq!(admission.next_to_run(), None);
        assert_eq!(admission.counts(), SequenceCounts { running: 4, queued: 1 });
    }

    #[test]
    fn clients_that_left_the_queue_make_room_in_it() {
        let mut admission = Admission::new(2);
        assert!(runs(&mut admission, 1, "a") && runs(&mut admission, 2, "a"));
        let (left, stays) = (asked(3, "a"), asked(4, "a"));
        assert_eq!(admission.admit(left.clone()), Admitted::Waits);
        assert_eq!(admission.admit(stays.clone()), Admitted::Waits);
        left.2.set(false);
        // At once, though nobody that runs has ended.
        assert_eq!(admission.admit(asked(5, "a")), Admitted::Waits);
        assert_eq!(admission.counts(), SequenceCounts { running: 2, queued: 2 });
        stays.2.set(false);
        admission.forget_unwanted();
        assert_eq!(admission.counts(), SequenceCounts { running: 2, queued: 1 });
        admission.ended(&name("a"));
        assert_eq!(admission.next_to_run().map(|next| next.0), Some(5));
    }
}
