//! What is to be placed, and what would be if a node died: asked by the scheduler, worked out elsewhere.

use std::collections::BTreeMap;

use planaria_config::{LayerSet, ModelName, NodeId};
use planaria_engine::partition::group::rank_bytes;
use planaria_engine::partition::usable;
use planaria_protocol::plan::{Plan, ShardKey, WorkerKey};

use super::machine::SchedulerEvent;
use super::placement::{Excluded, Layout, Placed, Settled, Situation, Sizing, place_all, sizings};
use crate::membership::View;

/// All that a division of layers depends on. To solve it takes as long as a search for one, so that is not done by
/// an actor.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacementProblem {
    /// Tells the answers to different questions apart.
    pub number: u64,
    /// The members.
    pub view: View,
    /// What is to be placed.
    pub sizing: Sizing,
    /// Who is left out.
    pub excluded: Excluded,
    /// The plans in force.
    pub in_force: BTreeMap<ModelName, Plan>,
    /// What its planner has dealt out already.
    pub settled: BTreeMap<ModelName, Settled>,
}

/// For each node that holds layers: the layout of every model without it, `None` where there is none.
pub type Failovers = BTreeMap<NodeId, BTreeMap<ModelName, Option<Layout>>>;

impl PlacementProblem {
    /// A layout for each desired model, or why there is none, as the scheduler is told it.
    #[must_use]
    pub fn placed(&self) -> SchedulerEvent {
        SchedulerEvent::Placed { number: self.number, placed: self.place_for(&self.view) }
    }

    /// The layouts without each of the nodes that hold layers now, and what `me` can keep for them, as its scheduler
    /// is told it.
    #[must_use]
    pub fn failovers_planned(&self, me: NodeId) -> SchedulerEvent {
        let failovers = self.failovers();
        let standby = self.standby(me, &failovers);
        SchedulerEvent::FailoversPlanned { number: self.number, failovers, standby }
    }

    fn failovers(&self) -> Failovers {
        let nodes = self.in_force.values().flat_map(Plan::nodes);
        let mut failovers = Failovers::new();
        for node in nodes {
            failovers.entry(node).or_insert_with(|| self.without(node));
        }
        failovers
    }

    fn without(&self, node: NodeId) -> BTreeMap<ModelName, Option<Layout>> {
        let placed = self.place_for(&self.view.without(node)).into_iter();
        placed.map(|(model, placed)| (model, placed.ok().map(|placed| placed.layout))).collect()
    }

    fn place_for(&self, view: &View) -> BTreeMap<ModelName, Result<Placed, String>> {
        place_all(Situation {
            view,
            sizing: self.sizing,
            excluded: &self.excluded,
            in_force: &self.in_force,
            settled: &self.settled,
        })
    }

    /// Whether another problem has the same answer, but for what was measured meanwhile.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.in_force == other.in_force
            && self.excluded == other.excluded
            && self.settled == other.settled
            && self.view.placement_facts() == other.view.placement_facts()
    }

    /// The shards that `me` would need without one of the others and can hold besides those that it has:
    /// those that serve most losses first, then the smallest.
    fn standby(&self, me: NodeId, failovers: &Failovers) -> Vec<ShardKey> {
        let Some(own) = self.view.member(me).map(|member| &member.report) else {
            return Vec::new();
        };
        let sizings = sizings(&self.view, self.sizing);
        let bytes = |key: &WorkerKey, layers: &LayerSet| {
            let Sizing { context, max_sequences, .. } = *sizings.get(&key.model)?;
            let held = own.models.iter().find(|held| held.digest == key.digest)?;
            let (geometry, context) = (&held.geometry, context.min(held.geometry.max_context));
            match key.rank_on(me) {
                None => Some(geometry.peak_bytes_of(layers, context, max_sequences)),
                // A rank has one stage.
                Some((_, units)) => {
                    let layers = *layers.runs().first()?;
                    rank_bytes(geometry, layers, units, context, max_sequences)
                }
            }
        };
        let current: Vec<ShardKey> =
            self.in_force.values().filter_map(|plan| ShardKey::of(plan, me)).collect();
        let mut losses: BTreeMap<ShardKey, usize> = BTreeMap::new();
        for (model, layout) in failovers.values().flatten() {
            let stages = layout.iter().flat_map(|layout| &layout.stages);
            // A rank that is left takes over in its place: what it would load beside would be held twice.
            let mine =
                stages.filter(|stage| stage.incarnation.node == me && stage.ranks.is_empty());
            for (stage, layout) in mine.zip(layout) {
                let worker = WorkerKey::whole(model.clone(), layout.digest);
                let key = ShardKey { worker, layers: stage.layers };
                if !current.contains(&key) {
                    *losses.entry(key).or_default() += 1;
                }
            }
        }
        // What each worker would hold, and what all of them would take.
        let mut held: BTreeMap<WorkerKey, LayerSet> = BTreeMap::new();
        for ShardKey { worker, layers } in current {
            let known = held.entry(worker).or_default();
            *known = known.with(layers);
        }
        let taken = |held: &BTreeMap<WorkerKey, LayerSet>| {
            let all = held.iter().filter_map(|(key, layers)| bytes(key, layers));
            all.fold(0, u64::saturating_add)
        };
        let alone = |key: &ShardKey| bytes(&key.worker, &key.layers.into());
        let mut wanted: Vec<(usize, u64, ShardKey)> =
            losses.into_iter().filter_map(|(key, n)| Some((n, alone(&key)?, key))).collect();
        wanted.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let fits = |(_, _, key): (usize, u64, ShardKey)| {
            let mut with = held.clone();
            let known = with.entry(key.worker.clone()).or_default();
            *known = known.with(key.layers);
            (u128::from(taken(&with)) <= usable(own.memory_bytes)).then(|| {
                held = with;
                key
            })
        };
        wanted.into_iter().filter_map(fits).collect()
    }
}
