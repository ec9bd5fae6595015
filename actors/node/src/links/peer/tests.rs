use std::time::Duration;

use bytes::Bytes;
use planaria_config::{Epoch, LayerRange, NodeId, SequenceId, Strategy};
use planaria_protocol::generation::GenerationError;
use planaria_protocol::plan::{Assignment, Plan, PlanParts};
use planaria_protocol::wire::DataBody;
use planaria_transport::{Frame, encode_message, memory_pair};
use serde::Serialize;

use super::*;
use crate::membership::send_control;
use crate::parts::{Parts, testing};

/// What a build of tomorrow says.
#[derive(Serialize)]
enum OfTomorrow {
    Sing { loudly: bool },
}

#[derive(Serialize)]
struct Header {
    epoch: Epoch,
    sequence: SequenceId,
    owner: Incarnation,
    attempt: u16,
    position: u32,
    body: OfTomorrow,
}

const PEER: NodeId = NodeId::from_bytes([9; 32]);

fn sing() -> Bytes {
    encode_message(&OfTomorrow::Sing { loudly: true }).unwrap()
}

/// A node with a link to a peer; the peer's end of it.
async fn linked() -> (Parts, LinkSender, LinkReceiver) {
    let node = testing::parts("here", 1);
    let ends = memory_pair(testing::peer(node.me.node, &[]), testing::peer(PEER, &[]));
    let (link, receiver) = ends.0.split();
    node.router.add_link(link.clone());
    let args = PeerArgs { deps: node.for_peer(), link, receiver };
    Actor::spawn(None, PeerActor, args).await.unwrap();
    let (sender, receiver) = ends.1.split();
    (node, sender, receiver)
}

/// So many messages of each class were left unread.
async fn unread(node: &Parts, expected: [u64; 3]) {
    let found = || ["control", "data", "bulk"].map(|class| node.metrics.unread(class));
    let deadline = Instant::now() + Duration::from_secs(30);
    while found() != expected {
        assert!(Instant::now() < deadline, "{:?}, not {expected:?}", found());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn messages_of_another_build_are_left_unread_and_the_link_stays() {
    let (node, peer, mut from_node) = linked().await;
    for lane in [Lane::Control, Lane::Activation(5), Lane::Bulk] {
        for _ in 0..3 {
            peer.try_send(lane, Frame::message(sing())).unwrap();
        }
    }
    unread(&node, [3, 3, 3]).await;
    // What it does know it goes on to answer.
    for left in [1, 0] {
        let sample = encode_message(&Bulk::Sample { left }).unwrap();
        peer.try_send(Lane::Bulk, Frame::message(sample)).unwrap();
    }
    let answer = tokio::time::timeout(Duration::from_secs(30), from_node.control.recv()).await;
    let answer = answer.unwrap().expect("the link stays").frame.header;
    let received::Received::Known(Control::Arrived { .. }) = received::read(&answer) else {
        panic!("{answer:?}");
    };
    // What no build writes ends the link.
    peer.try_send(Lane::Control, Frame::message(Bytes::from_static(b"\xc1"))).unwrap();
    let reason = tokio::time::timeout(Duration::from_secs(30), peer.closed()).await.unwrap();
    assert!(reason.to_string().contains("a control message could not be read"), "{reason}");
}

#[tokio::test]
async fn an_owner_is_told_of_a_frame_that_its_stage_does_not_understand() {
    let (node, peer, mut from_node) = linked().await;
    let owner = Incarnation { node: PEER, boot_count: 1 };
    let plan = |counter, incarnation| {
        let layers = LayerRange::inclusive(0, 1).unwrap();
        Plan::new(PlanParts {
            epoch: Epoch { counter, planner: PEER },
            model: "a".parse().unwrap(),
            digest: serde_json::from_str(&format!("\"{}\"", "ab".repeat(32))).unwrap(),
            layers: 2,
            strategy: Strategy::Latency,
            context: 64,
            max_sequences: 2,
            stages: vec![Assignment::alone(incarnation, layers)],
            content: None,
            takes_over: None,
        })
    };
    // In the second it is no stage, and its owner does not wait for it.
    node.router.prepare(&Arc::new(plan(4, node.me).unwrap()));
    node.router.prepare(&Arc::new(plan(5, owner).unwrap()));
    for counter in [5, 4] {
        let header = Header {
            epoch: Epoch { counter, planner: PEER },
            sequence: SequenceId::from_bits(counter.into()),
            owner,
            attempt: 2,
            position: 7,
            body: OfTomorrow::Sing { loudly: false },
        };
        let header = encode_message(&header).unwrap();
        peer.try_send(Lane::Activation(1), Frame::message(header)).unwrap();
    }
    let told = tokio::time::timeout(Duration::from_secs(30), from_node.activation.recv()).await;
    let told = told.unwrap().expect("the link stays").frame.header;
    let received::Received::Known::<DataHeader>(told) = received::read(&told) else {
        panic!("{told:?}");
    };
    assert_eq!((told.sequence, told.attempt, told.owner), (SequenceId::from_bits(4), 2, owner));
    let DataBody::Failed(GenerationError::NotReady { layers, reason, .. }) = told.body else {
        panic!("{told:?}");
    };
    assert!(layers == "0-1" && reason.contains("another build"), "{layers}: {reason}");
    unread(&node, [0, 2, 0]).await;
    assert!(send_control(&peer, &Control::Arrived { bytes: 1, micros: 1 }).is_ok());
}

#[tokio::test]
async fn a_peer_of_an_older_build_is_sent_nothing_that_it_does_not_know() {
    let node = testing::parts("here", 1);
    let abort = Control::Abort { epoch: Epoch { counter: 1, planner: PEER } };
    let ends = |features| {
        let (near, far) =
            memory_pair(testing::peer(node.me.node, &[]), testing::peer(PEER, features));
        (near.split(), far.split().1)
    };
    // The left end's peer is the right one.
    let ((newer, _kept), mut received) = ends(&["of-tomorrow", "abort"]);
    send_control(&newer, &abort).unwrap();
    let arrived = received.control.recv().await.unwrap().frame.header;
    assert!(matches!(received::read(&arrived), Received::Known(Control::Abort { .. })));

    let ((older, _kept), mut received) = ends(&[]);
    let refused = send_control(&older, &abort).unwrap_err();
    assert!(matches!(refused, crate::router::Undeliverable::NotUnderstood(_)), "{refused}");
    send_control(&older, &Control::Arrived { bytes: 1, micros: 1 }).unwrap();
    let arrived = received.control.recv().await.unwrap().frame.header;
    assert!(matches!(received::read(&arrived), Received::Known(Control::Arrived { .. })));
}
