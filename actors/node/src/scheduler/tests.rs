use std::collections::BTreeMap;

use planaria_control::membership::Member;
use planaria_control::scheduler::ModelPlan;
use planaria_control::testing::{member, model};
use planaria_protocol::state::ModelState;
use tokio::time::timeout;

use super::*;
use crate::parts::Parts;
use crate::parts::testing::{parts, recorded, told};
use planaria_pipeline::stage::workers::WorkersEvent;

/// A node that is alone and has the model that is to be served.
async fn started() -> (Parts, ActorRef<SchedulerMessage>) {
    let node = parts("here", 1);
    let (actor, _) = Actor::spawn(None, SchedulerActor, node.for_scheduler()).await.unwrap();
    node.handles.scheduler.0.fill(actor.clone());
    let alone = View::of([Member { incarnation: node.me, ..member(1, 1, 4096) }]);
    node.view.send_replace(alone.clone());
    node.handles.scheduler.members(alone);
    (node, actor)
}

/// What is told of the model once it is as wanted.
async fn table(node: &Parts, is_so: impl Fn(&ModelPlan) -> bool) -> PlanTable {
    let mut plans = node.plans.subscribe();
    let waiting = plans.wait_for(|table| table.models.get(&model()).is_some_and(&is_so));
    timeout(Duration::from_secs(30), waiting).await.expect("in time").unwrap().clone()
}

#[tokio::test]
async fn a_plan_is_loaded_then_told_and_written_down() {
    let (node, actor) = started().await;
    let mut workers = recorded(&node.handles.workers.0).await;
    let mut ledger = recorded(&node.handles.ledger.0).await;
    let plan = told(&mut workers, |message| match message {
        WorkersEvent::Load(plan) => Some(plan),
        _ => None,
    })
    .await;
    assert_eq!(plan.nodes().collect::<Vec<_>>(), [node.me.node]);
    node.handles.scheduler.shards_loaded(plan.epoch(), Ok(()));
    let written = told(&mut ledger, |message| match message {
        crate::ledger::LedgerMessage::Plan(plan) => Some(plan.epoch()),
        _ => None,
    });
    assert_eq!(written.await, plan.epoch());
    let table = table(&node, |model| model.plan.is_some()).await;
    assert_eq!(table.models[&model()].plan.as_deref(), Some(&*plan));
    let seen = node.cluster.borrow().clone();
    assert_eq!(seen.models[0].epoch, Some(plan.epoch()));
    actor.stop(None);
}

#[tokio::test]
async fn a_node_that_cannot_load_says_why_and_the_model_is_unavailable() {
    let (node, actor) = started().await;
    let mut workers = recorded(&node.handles.workers.0).await;
    let plan = told(&mut workers, |message| match message {
        WorkersEvent::Load(plan) => Some(plan),
        _ => None,
    })
    .await;
    let reason = "the disk is gone".to_owned();
    node.handles.scheduler.shards_loaded(plan.epoch(), Err(reason));
    let table = table(&node, |model| model.state == ModelState::Unavailable).await;
    let models: BTreeMap<_, _> = table.models;
    assert!(models[&model()].reason.contains("the disk is gone"), "{models:?}");
    actor.stop(None);
}
