//! How a node leaves: it takes no requests any more, hands its layers over, and lets the answers of its own
//! clients end before it stops.

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

/// Refuses new requests, tells the cluster that this node is leaving, and waits until others hold what it held,
/// no sequence passes through it any more, and those of its own clients have ended. Gives up after `patience`,
/// and on what nobody else can hold as soon as nobody uses it.
pub(crate) async fn drain(context: &Context, patience: Duration) {
    context.leaving.send_replace(true);
    // What it admitted is in the view before it is leaving there.
    if !context.handles.sequences.refuse().await {
        tracing::warn!("sequences do not say that they refuse requests");
    }
    context.handles.membership.own_leaving();
    let watched = Watched {
        plans: context.plans.subscribe(),
        view: context.view.subscribe(),
        busy: context.busy.subscribe(),
    };
    match timeout(patience, handed_over(context.me.node, watched)).await {
        Ok(Holds::Stuck(models)) => tracing::warn!(?models, "nobody can take over"),
        Ok(_) => tracing::info!("nothing depends on this node any more"),
        Err(_) => tracing::warn!(
            ?patience,
            "the node stops although answers run here, or others depend on it: see drain-timeout"
        ),
    }
}

/// What it depends on how long a node stays.
struct Watched {
    plans: watch::Receiver<PlanTable>,
    view: watch::Receiver<View>,
    busy: watch::Receiver<bool>,
}

/// What it holds when that is no layers any more.
async fn handed_over(me: NodeId, watched: Watched) -> Holds {
    let Watched { mut plans, mut view, mut busy } = watched;
    loop {
        let held = holds(me, &plans.borrow_and_update(), &view.borrow_and_update());
        let answers = answers(me, &view.borrow());
        let is_used = *busy.borrow_and_update() && matches!(held, Holds::Stuck(_));
        if held != Holds::Layers && answers == 0 && !is_used {
            return held;
        }
        let changed = tokio::select! {
            changed = plans.changed() => changed,
            changed = view.changed() => changed,
            changed = busy.changed() => changed,
        };
        if changed.is_err() {
            return held;
        }
    }
}

/// Answers that its own clients wait for.
fn answers(me: NodeId, view: &View) -> u32 {
    let own = view.member(me).map(|member| member.report.sequences).unwrap_or_default();
    own.running.saturating_add(own.queued)
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
