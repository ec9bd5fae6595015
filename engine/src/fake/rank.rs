//! A stage that is one rank of a group: it has some units of each layer.
//!
//! What all units together give in a half of a layer are whole numbers of 24 bits. A number `n` falls to `V` units so that those
//! before unit `u` have `n * u / V` of it, rounded down: whatever is added of these, in whatever order, is exact in `f32`.

use std::ops::Range;
use std::time::Duration;

use planaria_kernels::FoldTree;

use super::FakeStage;
use super::step::Underway;
use crate::architecture::RankUnits;
use crate::model_dir::{FakeConfig, ModelError};
use crate::stage::{LoadProgress, Partials};

#[cfg(test)]
mod tests;

/// What makes a stage a rank of a group.
#[derive(Debug)]
pub(super) struct Rank {
    units: RankUnits,
    tree: FoldTree,
}

/// A step that goes on with a sum of all ranks.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) step: Underway,
    /// What the sum is, if nobody makes a mistake.
    pub(super) right: Vec<u32>,
}

impl Rank {
    /// The rank with these units.
    pub(super) fn new(config: &FakeConfig, units: RankUnits) -> Result<Self, ModelError> {
        let (own, kept, all) = (units.own(), units.kept(), config.units);
        let tree = FoldTree::new(all).filter(|_| kept.end <= all);
        let refused = || format!("units {own:?} of {kept:?} of {all} are no rank's");
        let tree = tree.ok_or_else(|| ModelError::Backend(refused()))?;
        Ok(Self { units, tree })
    }

    /// What its units have of a sum.
    pub(super) fn partials(&self, sum: &[u32]) -> Partials {
        let own = self.units.own();
        let nodes = self.tree.cover(|unit| own.contains(&unit));
        let part = |node: Range<u16>| {
            sum.iter().map(move |n| self.before(*n, node.end) - self.before(*n, node.start))
        };
        // Below 2^24, so it is that number.
        let own = nodes.into_iter().map(|node| part(node).map(|number| number as f32).collect());
        Partials { numbers: sum.len(), own: own.collect() }
    }

    /// What it holds of the weights of which all ranks hold `bytes`.
    pub(super) fn weights(&self, bytes: u64) -> u64 {
        self.part_of(bytes, &self.units.own())
    }

    /// What it holds of keys and values of which all ranks hold `bytes`.
    pub(super) fn kv(&self, bytes: u64) -> u64 {
        self.part_of(bytes, &self.units.kept())
    }

    /// How long half of a layer takes where a whole layer of all units takes `micros`.
    pub(super) fn pause(&self, micros: u32) -> Duration {
        let own = self.units.own();
        let halves = 2 * u32::from(self.tree.units());
        Duration::from_micros(micros.into()) * u32::from(own.end - own.start) / halves
    }

    /// How much of a number the units before this one have.
    fn before(&self, number: u32, unit: u16) -> u64 {
        u64::from(number) * u64::from(unit) / u64::from(self.tree.units())
    }

    fn part_of(&self, bytes: u64, units: &Range<u16>) -> u64 {
        let count = u128::from(units.end - units.start);
        let part = (u128::from(bytes) * count).div_ceil(u128::from(self.tree.units()));
        // No more than the whole.
        u64::try_from(part).unwrap_or(bytes)
    }
}

impl FakeStage {
    /// As [`Stage::take_units`](crate::stage::Stage::take_units).
    pub(super) fn become_rank(
        &mut self,
        units: RankUnits,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        let no_rank = || ModelError::Backend("a stage that is no rank has no units".to_owned());
        let had = self.rank.as_ref().ok_or_else(no_rank)?.units.kept();
        self.rank = Some(Rank::new(&self.config, units)?);
        let keeps = units.kept();
        if keeps.start < had.start || had.end < keeps.end {
            self.sequences.values_mut().for_each(|log| log.caches.clear());
        }
        // Blocks of former sequences have the keys and values of the former units.
        self.prefixes.set_limit(0);
        self.limit_prefixes();
        let bytes = self.weight_bytes(self.sequences.held());
        progress(LoadProgress { bytes_loaded: bytes, bytes_total: bytes });
        Ok(())
    }
}
