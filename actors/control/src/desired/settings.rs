//! What the models that a node's settings name mean beside the map.
//!
//! Settings are read at every start, and a wish that is read again is not a new one: what
//! `planaria models rm` removed would come back with the next restart of any node whose settings
//! name it. So a node asserts a model when its settings begin to name it, and remembers that.
//!
//! - A model that this node knows nothing of is taken for granted ([`Stamp::unsaid`]): it is
//!   served unless somebody in the cluster has ever said otherwise, also if this node has yet to
//!   hear of it. So a new machine with the settings of the others neither resets what was changed
//!   nor brings back what was removed.
//! - One that this node knows to be wanted stays as it is.
//! - One that this node knows to be removed is wanted again: somebody has changed the settings
//!   since.
//! - One that the settings no longer name is forgotten if it was only ever taken for granted. Other
//!   nodes that know of it bring it back, since theirs may name it; `planaria models rm` removes it
//!   from all.

use std::collections::BTreeSet;

use planaria_config::{ModelName, NodeId};
use planaria_protocol::desired::clock::{Clock, Stamp};
use planaria_protocol::desired::map::{DesiredMap, DesiredSpec, Entry};

/// What a start changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assertion {
    /// Entries that are new in the map.
    pub put: Vec<(ModelName, Entry)>,
    /// Models to remember as asserted.
    pub asserted: Vec<ModelName>,
    /// Models that the settings do not name any more, and whether nobody else asked for them, so
    /// that they are forgotten.
    pub dropped: Vec<(ModelName, bool)>,
    /// Models that the settings name, and that were removed since they began to.
    pub overruled: Vec<(ModelName, Entry)>,
}

/// Compares the models that the settings name with what `me` has asserted before.
#[must_use]
pub fn assert(
    me: NodeId,
    now: u64,
    map: &DesiredMap,
    before: &BTreeSet<ModelName>,
    named: &[ModelName],
) -> Assertion {
    let mut assertion = Assertion::default();
    let mut clock = Clock::new(me);
    for model in named.iter().collect::<BTreeSet<_>>() {
        let known = map.get(model);
        let removed = known.filter(|entry| entry.wanted.is_none());
        match (before.contains(model), removed) {
            (true, Some(entry)) => assertion.overruled.push((model.clone(), entry)),
            (false, Some(entry)) => {
                let stamp = clock.tick(now, Some(entry.stamp));
                let wanted = Some(DesiredSpec::default());
                assertion.put.push((model.clone(), Entry { stamp, wanted }));
            }
            (false, None) if known.is_none() => {
                let wanted = Some(DesiredSpec::default());
                let entry = Entry { stamp: Stamp::unsaid(me), wanted };
                assertion.put.push((model.clone(), entry));
            }
            (_, None) => {}
        }
        if !before.contains(model) {
            assertion.asserted.push(model.clone());
        }
    }
    let dropped = before.iter().filter(|model| !named.contains(model)).map(|model| {
        let is_granted = map.get(model).is_some_and(|entry| entry.stamp.at().is_none());
        (model.clone(), is_granted)
    });
    assertion.dropped = dropped.collect();
    assertion
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_800_000_000_000;

    fn me() -> NodeId {
        NodeId::from_bytes([1; 32])
    }

    fn other() -> NodeId {
        NodeId::from_bytes([2; 32])
    }

    fn model() -> ModelName {
        "m".parse().unwrap()
    }

    fn said(wanted: Option<DesiredSpec>) -> DesiredMap {
        let stamp = Clock::new(other()).tick(NOON, None);
        DesiredMap::from_iter([(model(), Entry { stamp, wanted })])
    }

    fn asserted() -> BTreeSet<ModelName> {
        BTreeSet::from([model()])
    }

    #[test]
    fn a_model_that_nobody_spoke_of_is_taken_for_granted() {
        let first = assert(me(), NOON, &DesiredMap::default(), &BTreeSet::new(), &[model()]);
        let entry = Entry { stamp: Stamp::unsaid(me()), wanted: Some(DesiredSpec::default()) };
        assert_eq!((first.put, first.asserted), (vec![(model(), entry)], vec![model()]));
        let mut map = said(None);
        assert!(!map.put(&model(), entry), "a removal holds against it");
    }

    #[test]
    fn a_wish_that_is_read_again_is_not_a_new_one() {
        let again = assert(me(), NOON + 1, &said(None), &asserted(), &[model()]);
        assert_eq!((again.put, again.asserted, again.overruled.len()), (vec![], vec![], 1));
        let kept =
            assert(me(), NOON + 1, &said(Some(DesiredSpec::default())), &asserted(), &[model()]);
        assert_eq!(kept, Assertion::default());
    }

    #[test]
    fn settings_that_begin_to_name_a_removed_model_bring_it_back() {
        let mut map = said(None);
        // Also when this machine's clock is behind.
        let first = assert(me(), NOON - 1, &map, &BTreeSet::new(), &[model(), model()]);
        assert_eq!(first.put.len(), 1);
        assert!(map.put(&model(), first.put[0].1));
    }

    #[test]
    fn settings_that_begin_to_name_a_wanted_model_leave_it_as_it_is() {
        let wanted = DesiredSpec { context: Some(99), ..DesiredSpec::default() };
        let first = assert(me(), NOON + 1, &said(Some(wanted)), &BTreeSet::new(), &[model()]);
        assert_eq!((first.put, first.asserted), (vec![], vec![model()]));
    }

    #[test]
    fn settings_that_no_longer_name_a_model_withdraw_what_nobody_else_asked_for() {
        let now = assert(me(), NOON, &said(Some(DesiredSpec::default())), &asserted(), &[]);
        assert_eq!((now.put, now.dropped), (vec![], vec![(model(), false)]));
        let granted = DesiredMap::granted(other(), [model()]);
        let now = assert(me(), NOON, &granted, &asserted(), &[]);
        assert_eq!((now.put, now.dropped), (vec![], vec![(model(), true)]));
        // Of those that never were in the settings nothing is said.
        assert_eq!(assert(me(), NOON, &granted, &BTreeSet::new(), &[]), Assertion::default());
    }

    #[test]
    fn a_tombstone_that_was_forgotten_does_not_bring_the_model_back_by_itself() {
        let later = assert(me(), NOON, &DesiredMap::default(), &asserted(), &[model()]);
        assert_eq!(later.put, vec![]);
    }
}
