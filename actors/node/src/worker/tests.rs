use planaria_config::NodeId;
use planaria_protocol::state::ShardState;
use planaria_protocol::wire::{DataBody, DataHeader, Forward, Opening};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::inventory::testing::fake_model;
use crate::membership::MembershipMessage;
use crate::parts::Parts;
use crate::parts::testing::{parts, plan, plan_of, recorded, told};
use crate::scheduler::SchedulerMessage;
use crate::sequence::SequencesMessage;

async fn started() -> (Parts, ActorRef<WorkersEvent>, UnboundedReceiver<SchedulerMessage>) {
    let node = parts("here", 1);
    let scheduler = recorded(&node.handles.scheduler.0).await;
    let (actor, _) = Actor::spawn(None, WorkersActor, node.for_workers()).await.unwrap();
    node.handles.workers.0.fill(actor.clone());
    (node, actor, scheduler)
}

/// Whether the layers of a plan were loaded, and if not, why.
async fn loaded(heard: &mut UnboundedReceiver<SchedulerMessage>) -> Result<(), String> {
    use planaria_control::scheduler::machine::SchedulerEvent;
    told(heard, |message| match message {
        SchedulerMessage::Event(SchedulerEvent::ShardsLoaded { result, .. }) => Some(result),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn what_cannot_be_loaded_is_answered_with_the_reason_and_looked_for() {
    let (node, actor, mut scheduler) = started().await;
    let mut inventory = recorded(&node.handles.inventory.0).await;
    node.handles.workers.load(plan(3, &[(node.me, 0, 3)]));
    let reason = loaded(&mut scheduler).await.unwrap_err();
    assert!(reason.contains("are not here"), "{reason}");
    assert!(inventory.recv().await.is_some(), "somebody looks for them");
    let stranger = Incarnation { node: NodeId::from_bytes([9; 32]), boot_count: 1 };
    node.handles.workers.load(plan(4, &[(stranger, 0, 3)]));
    assert_eq!(loaded(&mut scheduler).await.unwrap_err(), "the plan has no stage for it");
    actor.stop(None);
}

/// The binary of this test is no worker, so the process ends as soon as it has begun.
#[tokio::test]
async fn a_worker_that_dies_again_and_again_is_given_up_and_owners_hear_that_it_is_not_there() {
    let (node, actor, mut scheduler) = started().await;
    let mut membership = recorded(&node.handles.membership.0).await;
    let mut sequences = recorded(&node.handles.sequences.0).await;
    let models = tempfile::tempdir().unwrap();
    let inventory = fake_model(models.path(), 4);
    let held = inventory.get(&"m".parse().unwrap()).unwrap().clone();
    node.inventory.send_replace(Arc::new(inventory));
    let plan = plan_of(3, &[(node.me, 0, 3)], held.digest);
    node.router.prepare(&plan);
    node.handles.workers.load(Arc::clone(&plan));
    let state = told(&mut membership, |message| match message {
        MembershipMessage::OwnShards(shards) => shards.first().map(|shard| shard.state),
        _ => None,
    });
    assert_eq!(state.await, ShardState::Loading);

    let opening = Opening {
        sampling: planaria_engine::sampler::SamplingParams::greedy(),
        until: planaria_protocol::generation::Until { eos: Vec::new(), max_tokens: 5 },
        reuse: false,
        prefix: Vec::new(),
        trace: None,
        waits: false,
    };
    let (tokens, open) = (vec![1, 2], Some(Box::new(opening)));
    let forward = Forward { stage: 0, tokens, open, sample: true, more: false };
    let header = DataHeader {
        epoch: plan.epoch(),
        sequence: planaria_config::SequenceId::from_bits(1),
        owner: node.me,
        attempt: 0,
        position: 0,
        trace: None,
        sent: None,
        body: DataBody::Forward(forward),
    };
    node.router.deliver(header, bytes::Bytes::new());
    let answer = told(&mut sequences, |message| match message {
        SequencesMessage::Frame(header) => Some(header.body),
        _ => None,
    });
    let answer = answer.await;
    assert!(matches!(answer, DataBody::Failed(_)), "{answer:?}");

    let reason = loaded(&mut scheduler).await.unwrap_err();
    assert!(reason.contains("exit status"), "{reason}");
    let failed = told(&mut membership, |message| match message {
        MembershipMessage::OwnShards(shards) => {
            shards.into_iter().find(|shard| shard.state == ShardState::Failed)
        }
        _ => None,
    });
    assert!(failed.await.reason.contains("exit status"));
    assert!(node.restarts.all()["worker"] >= 3, "{:?}", node.restarts.all());
    actor.stop(None);
}
