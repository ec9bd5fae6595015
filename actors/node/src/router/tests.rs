use planaria_config::SequenceId;
use planaria_protocol::generation::GenerationError;
use planaria_protocol::wire::Forward;

use super::*;
use crate::parts::testing::{parts, plan, recorded, recorder, told};
use crate::sequence::SequencesMessage;
use crate::worker::HostMessage;

#[tokio::test]
async fn what_waits_for_a_worker_is_bounded_in_bytes_and_the_owner_hears_of_it() {
    let node = parts("here", 1);
    let mut sequences = recorded(&node.handles.sequences.0).await;
    let (worker, mut waiting) = recorder::<HostMessage>().await;
    let plan = plan(3, &[(node.me, 0, 3)]);
    node.router.prepare(&plan);
    node.router.add_worker(WorkerKey::of(&plan), WorkerHandle::new(worker));
    let forward = Forward { stage: 0, tokens: vec![1], open: None, sample: false, more: false };
    let header = DataHeader {
        epoch: plan.epoch(),
        sequence: SequenceId::from_bits(1),
        owner: node.me,
        attempt: 0,
        position: 0,
        trace: None,
        sent: None,
        body: DataBody::Forward(forward),
    };
    let payload = Bytes::from(vec![0; QUEUE_LIMIT / 4 - (64 << 10)]);
    let frames = |count| (0..count).map(|_| (header.clone(), payload.clone()));
    for (header, payload) in frames(5) {
        node.router.deliver(header, payload);
    }
    let refused = told(&mut sequences, |message| match message {
        SequencesMessage::Frame(header) => match header.body {
            DataBody::Failed(error) => Some(error),
            _ => None,
        },
        _ => None,
    });
    let GenerationError::NotReady { layers, reason, .. } = refused.await else {
        panic!("it can be tried again")
    };
    assert_eq!((layers.as_str(), reason.as_str()), ("0-3", "256 MiB wait for its worker already"));
    let frame = |message| match message {
        HostMessage::Frame(_, _, _, payload) => Some(payload),
        _ => None,
    };
    for _ in 0..4 {
        assert_eq!(told(&mut waiting, frame).await.len(), payload.len());
    }
    // What it has taken makes room.
    for (header, payload) in frames(1) {
        node.router.deliver(header, payload);
    }
    assert_eq!(told(&mut waiting, frame).await.len(), payload.len());
}
