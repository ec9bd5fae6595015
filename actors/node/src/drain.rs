//! How a node leaves: it takes no requests any more, hands its layers over, and lets the answers of its own
//! clients end before it stops.

use std::time::Duration;

use planaria_config::NodeId;
use planaria_control::drain::{Holds, answers, holds};
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::parts::Parts;

/// Refuses new requests, tells the cluster that this node is leaving, and waits until others hold what it held,
/// no sequence passes through it any more, and those of its own clients have ended. Gives up after `patience`,
/// and on what nobody else can hold as soon as nobody uses it.
pub async fn drain(node: &Parts, patience: Duration) {
    node.leaving.send_replace(true);
    // What it admitted is in the view before it is leaving there.
    if !node.handles.sequences.refuse().await {
        tracing::warn!("sequences do not say that they refuse requests");
    }
    node.handles.membership.own_leaving();
    let watched = Watched {
        plans: node.plans.subscribe(),
        view: node.view.subscribe(),
        busy: node.busy.subscribe(),
    };
    match timeout(patience, handed_over(node.me.node, watched)).await {
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
