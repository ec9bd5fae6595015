use std::time::Duration;

use planaria_config::{Epoch, Incarnation, LayerRange, Strategy};
use planaria_control::scheduler::{ModelPlan, PlanTable};
use planaria_engine::sampler::SamplingParams;
use planaria_gateway::generation::Generator as _;
use planaria_protocol::generation::{GenerationError, Request, Until};
use planaria_protocol::plan::{Assignment, PlanParts};
use planaria_protocol::state::ModelState;
use planaria_protocol::wire::{DataBody, DataHeader};
use planaria_transport::{LinkReceiver, decode_message, memory_pair};
use ractor::Actor as _;
use tokio::time::timeout;

use super::*;
use crate::parts::Parts;
use crate::parts::testing::{parts, peer};
use crate::sequence::SequencesActor;

const SOON: Duration = Duration::from_secs(20);

fn node(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 32])
}

/// A node holds all layers.
fn plan(counter: u64, byte: u8) -> Arc<Plan> {
    let layers = LayerRange::inclusive(0, 3).unwrap();
    let incarnation = Incarnation { node: node(byte), boot_count: 1 };
    Arc::new(
        Plan::new(PlanParts {
            epoch: Epoch { counter, planner: node(1) },
            model: "m".parse().unwrap(),
            digest: "00".repeat(32).parse().unwrap(),
            layers: 4,
            strategy: Strategy::RingMemoryWeighted,
            context: 64,
            max_sequences: 2,
            stages: vec![Assignment::alone(incarnation, layers)],
            content: None,
            takes_over: None,
        })
        .unwrap(),
    )
}

/// Links a node to another one, which receives.
fn link(owner: &Parts, byte: u8) -> (LinkReceiver, LinkReceiver) {
    let (here, there) = memory_pair(peer(owner.me.node, &[]), peer(node(byte), &[]));
    let (sender, keep) = here.split();
    owner.router.add_link(sender);
    (there.split().1, keep)
}

async fn next(receiver: &mut LinkReceiver) -> DataHeader {
    let inbound = timeout(SOON, receiver.recv()).await.unwrap().unwrap();
    decode_message(&inbound.frame.header).unwrap()
}

async fn released(receiver: &mut LinkReceiver) -> DataHeader {
    loop {
        let header = next(receiver).await;
        if matches!(header.body, DataBody::Release { .. }) {
            return header;
        }
    }
}

fn in_force(node: &Parts, plan: &Arc<Plan>) {
    node.router.follow([&**plan].into_iter());
    let of_model = ModelPlan {
        plan: Some(Arc::clone(plan)),
        state: ModelState::Ready,
        reason: String::new(),
        obstacle: None,
        unpinned: None,
        agreement: None,
        content: None,
        left_out: Vec::new(),
        failovers: Vec::new(),
    };
    let models = [(plan.model().clone(), of_model)].into();
    node.plans.send_replace(PlanTable { models });
}

#[tokio::test]
async fn places_are_freed_by_the_plan_that_a_sequence_ran_under_last() {
    let owner = parts("owner", 1);
    let (mut first, _keep_first) = link(&owner, 2);
    let (mut second, _keep_second) = link(&owner, 3);
    let [old, new] = [plan(1, 2), plan(2, 3)];
    let sequence = SequenceId::from_bits(7);
    let places = Places::take(owner.for_sequence(), sequence, Arc::clone(&old));
    let named = RunningReport { sequence, epoch: old.epoch() };
    assert_eq!(owner.running.all(), [named]);
    places.moved(&new, 3);
    let former = next(&mut first).await;
    assert_eq!((former.epoch, former.attempt), (old.epoch(), 2));
    assert_eq!(owner.running.all()[0].epoch, new.epoch());
    drop(places);
    let last = next(&mut second).await;
    assert_eq!((last.epoch, last.attempt, last.sequence), (new.epoch(), u16::MAX, sequence));
    assert!(owner.running.all().is_empty());
}

#[tokio::test]
async fn a_sequence_that_moves_and_ends_at_once_leaves_nothing_anywhere() {
    let owner = parts("owner", 1);
    let (mut first, _keep_first) = link(&owner, 2);
    let (mut second, _keep_second) = link(&owner, 3);
    let [old, new] = [plan(1, 2), plan(2, 3)];
    in_force(&owner, &old);
    let args = owner.for_sequences();
    let (actor, _) = SequencesActor::spawn(None, SequencesActor, args).await.unwrap();
    owner.handles.sequences.0.fill(actor.clone());
    let request = Request {
        model: old.model().clone(),
        prompt: vec![1, 2, 3],
        begun: Vec::new(),
        sampling: SamplingParams::greedy(),
        until: Until { eos: Vec::new(), max_tokens: 9 },
        trace: None,
    };
    let generation = owner.handles.sequences.submit(request).await.unwrap();
    let opening = next(&mut first).await;
    in_force(&owner, &new);
    let error = GenerationError::NotReady {
        node: "first".to_owned(),
        layers: "0-3".to_owned(),
        reason: "its worker restarts".to_owned(),
    };
    owner.router.deliver(DataHeader { body: DataBody::Failed(error), ..opening }, Bytes::new());
    let recall = next(&mut second).await;
    assert!(matches!(recall.body, DataBody::StateQuery { .. }), "{recall:?}");
    // The client leaves.
    drop(generation);
    assert_eq!(released(&mut first).await.epoch, old.epoch());
    assert_eq!(released(&mut second).await.epoch, new.epoch());
    actor.stop(None);
}

#[tokio::test]
async fn what_runs_is_freed_when_whoever_supervises_it_is_killed() {
    let owner = parts("owner", 1);
    let (mut first, _keep_first) = link(&owner, 2);
    let plan = plan(1, 2);
    in_force(&owner, &plan);
    let args = owner.for_sequences();
    let (actor, _) = SequencesActor::spawn(None, SequencesActor, args).await.unwrap();
    owner.handles.sequences.0.fill(actor.clone());
    let request = Request {
        model: plan.model().clone(),
        prompt: vec![1, 2, 3],
        begun: Vec::new(),
        sampling: SamplingParams::greedy(),
        until: Until { eos: Vec::new(), max_tokens: 9 },
        trace: None,
    };
    let _generation = owner.handles.sequences.submit(request).await.unwrap();
    next(&mut first).await;
    actor.kill();
    assert_eq!(released(&mut first).await.epoch, plan.epoch());
}
