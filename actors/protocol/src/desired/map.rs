//! What the cluster is to serve, as a map in which the last writer wins.
//!
//! Each model has one entry: the last wish about it, or a tombstone where it was removed. Of two
//! entries the one with the later stamp holds, so maps can be merged in any order, any number of
//! times, and all nodes come to the same one.
//!
//! Tombstones are kept for [`TOMBSTONE_AGE`], and the latest [`MOST_TOMBSTONES`] of them. A node
//! that was away for longer than that brings back what was removed meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use planaria_config::{ModelName, NodeId, Strategy};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::clock::Stamp;

/// Models that can be wanted at once. Each of them takes memory for a shard; a cluster serves a
/// few.
pub const MOST_WANTED: usize = 64;

/// How long it is remembered that a model was removed: longer than a machine is usually switched
/// off.
pub const TOMBSTONE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Tombstones that are kept, so that a script which adds and removes all day long does not fill
/// reports. The earliest go first.
pub const MOST_TOMBSTONES: usize = 256;

/// Entries of a peer's map; one with more is refused. Honest maps come near it only when a dozen
/// parts of a split cluster were filled to the limit with different models. At this size a map
/// takes less than half of what a control message may.
const MOST_ENTRIES: usize = 1024;

/// How a model is to be served. What is `None` is left to the settings of the node that plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredSpec {
    /// How its layers are dealt out.
    pub strategy: Option<Strategy>,
    /// Longest sequence to keep memory for, in tokens.
    pub context: Option<u32>,
    /// Number of such sequences at once.
    pub max_sequences: Option<u32>,
}

/// The last word about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was said, and by whom.
    pub stamp: Stamp,
    /// `None`: the model was removed.
    pub wanted: Option<DesiredSpec>,
}

impl Entry {
    /// Whether this one holds against `other`. Stamps differ unless two processes ran with one
    /// identity; even then all nodes decide alike.
    #[must_use]
    pub fn beats(&self, other: &Self) -> bool {
        self.rank() > other.rank()
    }

    fn rank(&self) -> impl Ord + use<> {
        let wanted = self.wanted.map(|wanted| {
            (wanted.strategy.map(Strategy::name), wanted.context, wanted.max_sequences)
        });
        (self.stamp, wanted)
    }
}

/// The last word about every model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DesiredMap(BTreeMap<ModelName, Entry>);

/// A map that no honest peer sends. Nothing of it was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unacceptable {
    /// It is too large.
    #[error("it has {0} entries, and {MOST_ENTRIES} are allowed: remove models")]
    TooLarge(usize),
    /// Nothing could ever supersede it.
    #[error("what it says of {0} is dated past the end of time")]
    Endless(ModelName),
}

impl DesiredMap {
    /// It for members of builds that know nothing of groups, to which `tensor` is `latency`; `None` if it says nothing else to
    /// them. (Of two entries with one stamp the one with groups holds.)
    #[must_use]
    pub fn without_groups(&self) -> Option<Self> {
        let wants = |entry: &Entry| entry.wanted.and_then(|wanted| wanted.strategy);
        let is_of_groups = |entry: &Entry| wants(entry) == Some(Strategy::Tensor);
        self.0.values().any(is_of_groups).then(|| {
            let mut map = self.clone();
            for entry in map.0.values_mut().filter(|entry| is_of_groups(entry)) {
                if let Some(wanted) = &mut entry.wanted {
                    wanted.strategy = Some(Strategy::Latency);
                }
            }
            map
        })
    }

    /// What is wanted when `node` takes these models for granted.
    pub fn granted(node: NodeId, models: impl IntoIterator<Item = ModelName>) -> Self {
        let entry = Entry { stamp: Stamp::unsaid(node), wanted: Some(DesiredSpec::default()) };
        models.into_iter().map(|model| (model, entry)).collect()
    }

    /// The last word about a model.
    #[must_use]
    pub fn get(&self, model: &ModelName) -> Option<Entry> {
        self.0.get(model).copied()
    }

    /// Every entry, tombstones too, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&ModelName, &Entry)> {
        self.0.iter()
    }

    /// What is to be served, by name.
    pub fn wanted(&self) -> impl Iterator<Item = (&ModelName, &DesiredSpec)> {
        self.0.iter().filter_map(|(model, entry)| Some((model, entry.wanted.as_ref()?)))
    }

    /// Takes over an entry if it holds against the one that is there; whether it did.
    pub fn put(&mut self, model: &ModelName, entry: Entry) -> bool {
        let holds = self.0.get(model).is_none_or(|known| entry.beats(known));
        if holds {
            self.0.insert(model.clone(), entry);
        }
        holds
    }

    /// Drops an entry. It comes back from whoever has it.
    pub fn forget(&mut self, model: &ModelName) {
        self.0.remove(model);
    }

    /// Takes over every entry that holds against the one that is there. Commutative, associative
    /// and idempotent.
    pub fn merge(&mut self, other: &Self) {
        for (model, entry) in &other.0 {
            self.put(model, *entry);
        }
    }

    /// Forgets tombstones that are too old at `now` (milliseconds since 1970), or too many.
    pub fn forget_tombstones(&mut self, now: u64) {
        let age = u64::try_from(TOMBSTONE_AGE.as_millis()).unwrap_or(u64::MAX);
        let oldest = now.saturating_sub(age);
        self.0.retain(|_, entry| {
            entry.wanted.is_some() || entry.stamp.at().is_some_and(|at| at >= oldest)
        });
        let buried = |(model, entry): (&ModelName, &Entry)| {
            entry.wanted.is_none().then(|| (entry.stamp, model.clone()))
        };
        let mut tombstones: Vec<_> = self.0.iter().filter_map(buried).collect();
        tombstones.sort_unstable();
        let surplus = tombstones.len().saturating_sub(MOST_TOMBSTONES);
        for (_, model) in tombstones.into_iter().take(surplus) {
            self.0.remove(&model);
        }
    }

    /// Whether a map from a peer can be merged.
    ///
    /// # Errors
    /// When it is too large, or has entries that nothing could supersede.
    pub fn check(&self) -> Result<(), Unacceptable> {
        if self.0.len() > MOST_ENTRIES {
            return Err(Unacceptable::TooLarge(self.0.len()));
        }
        match self.0.iter().find(|(_, entry)| !entry.stamp.can_be_followed()) {
            Some((model, _)) => Err(Unacceptable::Endless(model.clone())),
            None => Ok(()),
        }
    }
}

impl FromIterator<(ModelName, Entry)> for DesiredMap {
    fn from_iter<T: IntoIterator<Item = (ModelName, Entry)>>(entries: T) -> Self {
        Self(entries.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use planaria_config::Strategy;
    use proptest::collection::btree_map;
    use proptest::prelude::*;
    use proptest::strategy::Strategy as _;

    use super::*;
    use crate::desired::clock::Clock;

    const NOON: u64 = 1_800_000_000_000;

    fn name(number: usize) -> ModelName {
        format!("m{number}").parse().unwrap()
    }

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn stamp(byte: u8, at: u64) -> Stamp {
        Clock::new(id(byte)).tick(at, None)
    }

    fn maps() -> impl proptest::strategy::Strategy<Value = DesiredMap> {
        // Few models, times and nodes, so that entries meet, also with equal stamps.
        let entry =
            (0_u8..3, 0_u64..4, proptest::option::of(0_u32..3)).prop_map(|(node, at, w)| Entry {
                stamp: stamp(node, at),
                wanted: w.map(|w| DesiredSpec { context: Some(w), ..DesiredSpec::default() }),
            });
        btree_map((0_usize..4).prop_map(name), entry, 0..4).prop_map(DesiredMap)
    }

    fn merged(a: &DesiredMap, b: &DesiredMap) -> DesiredMap {
        let mut merged = a.clone();
        merged.merge(b);
        merged
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(
            a in maps(), b in maps(), c in maps()
        ) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(&merged(&a, &a), &a);
            prop_assert_eq!(merged(&merged(&a, &b), &b), merged(&a, &b));
        }
    }

    fn wanted(strategy: Option<Strategy>) -> Entry {
        let wanted = DesiredSpec { strategy, context: Some(8), max_sequences: Some(2) };
        Entry { stamp: stamp(1, NOON), wanted: Some(wanted) }
    }

    #[test]
    fn tensor_is_latency_to_members_that_know_no_groups_and_nothing_else_changes() {
        let (tensor, latency) = (Some(Strategy::Tensor), Some(Strategy::Latency));
        let others = [
            wanted(latency),
            wanted(Some(Strategy::RingMemoryWeighted)),
            wanted(None),
            Entry { stamp: stamp(1, NOON), wanted: None },
        ];
        let map = |entries: &[Entry]| -> DesiredMap {
            entries.iter().enumerate().map(|(number, entry)| (name(number), *entry)).collect()
        };
        assert_eq!(map(&others).without_groups(), None);
        assert_eq!(DesiredMap::default().without_groups(), None);
        let told = map(&[&others[..], &[wanted(tensor)]].concat()).without_groups();
        assert_eq!(told, Some(map(&[&others[..], &[wanted(latency)]].concat())));
    }

    /// Members of older builds pass it on as they were told it.
    #[test]
    fn of_two_entries_with_one_stamp_the_one_with_groups_holds() {
        let tensor = wanted(Some(Strategy::Tensor));
        for other in [Some(Strategy::Latency), Some(Strategy::RingMemoryWeighted), None] {
            assert!(tensor.beats(&wanted(other)) && !wanted(other).beats(&tensor), "{other:?}");
        }
        let asked: DesiredMap = [(name(1), tensor)].into_iter().collect();
        let passed_on = asked.without_groups().unwrap();
        for (a, b) in [(&asked, &passed_on), (&passed_on, &asked)] {
            assert_eq!(merged(a, b), asked);
        }
        // What is said later holds, whatever it is.
        let later = Entry { stamp: stamp(1, NOON + 1), ..wanted(Some(Strategy::Latency)) };
        assert!(later.beats(&tensor));
    }

    #[test]
    fn tombstones_are_bounded_in_age_and_number_and_wishes_are_not() {
        let month = u64::try_from(TOMBSTONE_AGE.as_millis()).unwrap();
        let gone = |at| Entry { stamp: stamp(1, at), wanted: None };
        let mut map = DesiredMap::granted(id(1), [name(0)]);
        map.put(&name(1), gone(NOON - month - 1));
        map.put(&name(2), gone(NOON - month));
        map.put(&name(3), Entry { wanted: Some(DesiredSpec::default()), ..gone(1) });
        map.forget_tombstones(NOON);
        let left: Vec<_> = map.entries().map(|(model, _)| model.clone()).collect();
        assert_eq!(left, [name(0), name(2), name(3)]);

        for number in 0..2 * MOST_TOMBSTONES {
            map.put(&name(100 + number), gone(NOON + number as u64));
        }
        map.forget_tombstones(NOON);
        assert_eq!(map.entries().count(), 2 + MOST_TOMBSTONES);
        assert_eq!(map.wanted().count(), 2);
        assert!(map.get(&name(100 + MOST_TOMBSTONES)).is_some(), "the latest are kept");
        // What a peer still remembers changes nothing.
        let before = map.clone();
        map.put(&name(2), gone(NOON - month));
        map.forget_tombstones(NOON);
        assert_eq!(map, before);
    }

    #[test]
    fn maps_that_no_honest_peer_sends_are_refused() {
        let many = DesiredMap::granted(id(1), (0..=MOST_ENTRIES).map(name));
        assert!(many.check().unwrap_err().to_string().contains("1025 entries"));
        let endless = r#"{"m": {"stamp": {"wall": 18446744073709551615, "counter": 0, "node":
            "1111111111111111111111111111111111111111111111111111111111111111"}, "wanted": null}}"#;
        let endless: DesiredMap = serde_json::from_str(endless).unwrap();
        assert!(matches!(endless.check(), Err(Unacceptable::Endless(_))));
        assert!(DesiredMap::granted(id(1), (0..MOST_ENTRIES).map(name)).check().is_ok());
    }

    /// Bytes that a control message may have: `CONTROL_CAP` of the transport.
    const CONTROL_MESSAGE: usize = 1 << 20;

    #[test]
    fn a_full_map_fits_into_a_report() {
        let long = |number| format!("{}/{number:0>99}", "a".repeat(100)).parse().unwrap();
        let wanted = DesiredSpec {
            strategy: Some(Strategy::RingMemoryWeighted),
            context: Some(u32::MAX),
            max_sequences: Some(u32::MAX),
        };
        let entry = Entry { stamp: stamp(1, NOON), wanted: Some(wanted) };
        let map: DesiredMap = (0..MOST_ENTRIES).map(|number| (long(number), entry)).collect();
        let bytes = rmp_serde::to_vec_named(&map).unwrap().len();
        assert!(2 * bytes < CONTROL_MESSAGE, "{bytes}");
    }
}
