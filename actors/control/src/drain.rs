//! What a node still holds that is about to stop.

use std::collections::BTreeMap;

use planaria_config::{ModelName, NodeId};

use crate::membership::View;
use crate::scheduler::{ModelPlan, PlanTable};

/// What a node that is about to stop still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// Stages of plans, or shards that sequences pass through.
    Layers,
    /// Nothing but what nobody else can hold, for these reasons, by model.
    Stuck(Vec<String>),
    /// Nothing.
    Nothing,
}

/// Answers that its own clients wait for.
#[must_use]
pub fn answers(me: NodeId, view: &View) -> u32 {
    let own = view.member(me).map(|member| member.report.sequences).unwrap_or_default();
    own.running.saturating_add(own.queued)
}

/// What `me` holds, by the plans in force and what it reports.
#[must_use]
pub fn holds(me: NodeId, plans: &PlanTable, view: &View) -> Holds {
    let own = view.member(me).map(|member| &member.report);
    // Until the scheduler knows of it, nobody has planned for it.
    let Some(own) = own.filter(|own| own.leaving) else {
        return Holds::Layers;
    };
    let mine: BTreeMap<&ModelName, &ModelPlan> = plans
        .models
        .iter()
        .filter(|(_, model)| model.plan.as_ref().is_some_and(|plan| plan.stage_of(me).is_some()))
        .collect();
    let obstacle = |name: &ModelName| mine.get(name).and_then(|model| model.obstacle.as_ref());
    let can_move = |name: &&ModelName| obstacle(name).is_none();
    let used = own.shards.iter().map(|shard| &shard.model);
    if mine.keys().copied().chain(used).any(|name| can_move(&name)) {
        return Holds::Layers;
    }
    let stuck = mine.keys().filter_map(|name| Some(format!("{name}: {}", obstacle(name)?)));
    let stuck: Vec<String> = stuck.collect();
    if stuck.is_empty() { Holds::Nothing } else { Holds::Stuck(stuck) }
}
