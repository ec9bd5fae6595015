//! How a node leaves: it hands its layers over before it stops, so that no request fails.

use std::collections::BTreeMap;
use std::time::Duration;

use planaria_config::{ModelName, NodeId};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::context::Context;
use crate::membership::View;
use crate::scheduler::{ModelPlan, PlanTable};

/// What a node that is about to stop still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holds {
    /// Stages of plans, or shards that sequences pass through.
    Layers,
    /// Nothing but what nobody else can hold, for these reasons, by model.
    Stuck(Vec<String>),
    /// Nothing.
    Nothing,
}

/// Tells the cluster that this node is leaving, and waits until others hold what it held and no
/// sequence passes through it any more. Gives up after `patience`, and at once on what nobody else
/// can hold.
pub(crate) async fn drain(context: &Context, patience: Duration) {
    context.handles.membership.own_leaving();
    let (plans, view) = (context.plans.subscribe(), context.view.subscribe());
    match timeout(patience, handed_over(context.me.node, plans, view)).await {
        Ok(Holds::Stuck(models)) => tracing::warn!(?models, "nobody can take over"),
        Ok(_) => tracing::info!("nothing depends on this node any more"),
        Err(_) => tracing::warn!(?patience, "the node stops although others depend on it"),
    }
}

/// What it holds when that is no layers any more.
async fn handed_over(
    me: NodeId,
    mut plans: watch::Receiver<PlanTable>,
    mut view: watch::Receiver<View>,
) -> Holds {
    loop {
        let held = holds(me, &plans.borrow_and_update(), &view.borrow_and_update());
        if held != Holds::Layers {
            return held;
        }
        let changed = tokio::select! {
            changed = plans.changed() => changed,
            changed = view.changed() => changed,
        };
        if changed.is_err() {
            return held;
        }
    }
}

fn holds(me: NodeId, plans: &PlanTable, view: &View) -> Holds {
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
