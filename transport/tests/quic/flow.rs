//! Order, urgency and back pressure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use planaria_transport::{
    ACTIVATION_CAP, CONTROL_CAP, DATAGRAM_CAP, DatagramError, Frame, Lane, MAX_ACTIVATION_STREAMS,
    SendError,
};

use crate::support::{frame, link, next, node, number, sized_frame, soon};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_and_control_passes_bulk() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;
    let (to_b, mut from_b) = at_a.split();
    let (to_a, mut from_a) = at_b.split();

    let answered = Arc::new(AtomicBool::new(false));
    let bulk_sent = Arc::new(AtomicU64::new(0));
    let bulk = tokio::spawn({
        let (to_b, answered, sent) = (to_b.clone(), Arc::clone(&answered), Arc::clone(&bulk_sent));
        async move {
            // Bulk flows for as long as the others talk.
            let payload = Bytes::from(vec![1; MIB]);
            while !answered.load(Ordering::Relaxed) {
                let count = sent.fetch_add(1, Ordering::Relaxed);
                let frame = Frame { payload: payload.clone(), ..frame(count) };
                to_b.send(Lane::Bulk, frame).await.unwrap();
            }
            to_b.send(Lane::Bulk, sized_frame(u64::MAX, 0)).await.unwrap();
        }
    });
    let echo = tokio::spawn(async move {
        let mut bulk = 0;
        loop {
            let inbound = soon(from_a.recv()).await.unwrap();
            match inbound.lane {
                Lane::Bulk if number(&inbound) == u64::MAX => return bulk,
                Lane::Bulk => {
                    assert_eq!(number(&inbound), bulk);
                    bulk += 1;
                }
                lane => to_a.try_send(lane, inbound.frame).unwrap(),
            }
        }
    });
    // The pipe is full before the first question is asked.
    soon(async {
        while bulk_sent.load(Ordering::Relaxed) < 40 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for count in 0..200 {
        to_b.try_send(Lane::Control, frame(count)).unwrap();
        to_b.try_send(Lane::Activation(count % 3), sized_frame(count, 16 << 10)).unwrap();
        for _ in 0..2 {
            assert_eq!(number(&next(&mut from_b).await), count);
        }
    }
    answered.store(true, Ordering::Relaxed);
    soon(bulk).await.unwrap();
    assert_eq!(soon(echo).await.unwrap(), bulk_sent.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_lane_keeps_its_order() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;
    let (to_b, _from_b) = at_a.split();
    let (_to_a, mut from_a) = at_b.split();
    let lanes =
        [Lane::Control, Lane::Exchange, Lane::Activation(1), Lane::Activation(2), Lane::Bulk];
    let sending = tokio::spawn(async move {
        for count in 0..500 {
            for lane in lanes {
                to_b.send(lane, sized_frame(count, 100)).await.unwrap();
            }
        }
        to_b
    });
    let mut expected = [0; 5];
    for _ in 0..2500 {
        let inbound = next(&mut from_a).await;
        let lane = lanes.iter().position(|lane| *lane == inbound.lane).unwrap();
        assert_eq!(number(&inbound), expected[lane]);
        expected[lane] += 1;
    }
    assert_eq!(expected, [500; 5]);
    drop(sending.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_receive_stops_the_sender_and_not_control() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;
    let (to_b, _from_b) = at_a.split();
    let (_to_a, mut from_a) = at_b.split();

    // All lanes, until every one of them has been full for a while.
    let payload = Bytes::from(vec![1; MIB]);
    let lanes: Vec<Lane> = (0..MAX_ACTIVATION_STREAMS as u64)
        .map(Lane::Activation)
        .chain([Lane::Exchange, Lane::Bulk])
        .collect();
    let mut accepted = 0;
    let mut quiet = 0;
    while quiet < 50 {
        let before = accepted;
        for lane in &lanes {
            let frame = Frame { payload: payload.clone(), ..frame(0) };
            match to_b.try_send(*lane, frame) {
                Ok(()) => accepted += 1,
                Err(SendError::Full { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        quiet = if accepted == before { quiet + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Per lane: 16 MiB (bulk 32) wait here, 2 MiB are under way, one frame is being read; and the
    // receiver's queues hold 64, 64 and 16 MiB.
    let bound = (16 + 2 + 2) * (MAX_ACTIVATION_STREAMS + 1) + (32 + 2 + 2) + 64 + 64 + 16;
    assert!(accepted <= bound, "{accepted} MiB are not bounded by {bound}");

    for count in 0..100 {
        to_b.try_send(Lane::Control, frame(count)).unwrap();
        let inbound = soon(from_a.control.recv()).await.unwrap();
        assert_eq!(number(&inbound), count);
    }
    // Who receives again sets it going again.
    let bulk = soon(from_a.bulk.recv()).await.unwrap();
    assert_eq!(bulk.frame.payload, payload);
    soon(to_b.send(Lane::Bulk, frame(1))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_frames_pass() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;
    let (to_b, _from_b) = at_a.split();
    let (_to_a, mut from_a) = at_b.split();
    let largest = |cap: usize| sized_frame(1, cap - 12);
    to_b.try_send(Lane::Activation(1), largest(ACTIVATION_CAP)).unwrap();
    to_b.try_send(Lane::Control, largest(CONTROL_CAP)).unwrap();
    assert_eq!(next(&mut from_a).await.frame, largest(CONTROL_CAP));
    assert_eq!(next(&mut from_a).await.frame, largest(ACTIVATION_CAP));
    let over = to_b.try_send(Lane::Control, largest(CONTROL_CAP + 1));
    assert!(matches!(over, Err(SendError::TooLarge { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_lanes_share_the_streams_that_a_peer_allows() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;
    let (to_b, _from_b) = at_a.split();
    let (_to_a, mut from_a) = at_b.split();
    let (lanes, rounds) = (300, 5);
    for round in 0..rounds {
        for lane in 0..lanes {
            to_b.try_send(Lane::Activation(lane), frame(round * lanes + lane)).unwrap();
        }
    }
    // Bulk has its own stream all the same.
    to_b.try_send(Lane::Bulk, frame(0)).unwrap();
    let mut seen = vec![0; usize::try_from(lanes).unwrap()];
    for _ in 0..lanes * rounds {
        let number = number(&soon(from_a.activation.recv()).await.unwrap());
        let count = &mut seen[usize::try_from(number % lanes).unwrap()];
        assert_eq!(number / lanes, *count, "each lane keeps its order");
        *count += 1;
    }
    soon(from_a.bulk.recv()).await.unwrap();
    assert_eq!(to_b.activation_streams(), MAX_ACTIVATION_STREAMS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_pass_while_bulk_fills_the_link() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;
    let (to_b, mut from_b) = at_a.split();
    let (to_a, from_a) = at_b.split();
    let bulk = tokio::spawn({
        let to_b = to_b.clone();
        async move {
            let payload = Bytes::from(vec![1; MIB]);
            while to_b
                .send(Lane::Bulk, Frame { payload: payload.clone(), ..frame(0) })
                .await
                .is_ok()
            {}
        }
    });
    let (mut lane, mut datagrams) = (from_a.bulk, from_a.datagrams);
    let taken = tokio::spawn(async move { while lane.recv().await.is_some() {} });
    let echo = tokio::spawn(async move {
        while let Some(datagram) = datagrams.recv().await {
            if to_a.try_send_datagram(datagram).is_err() {
                break;
            }
        }
    });
    for number in 0..100_u8 {
        // One may be lost even here, so each is asked for until it comes.
        let asked = Bytes::from(vec![number; DATAGRAM_CAP]);
        let answered = async {
            loop {
                to_b.try_send_datagram(asked.clone()).unwrap();
                let wait = Duration::from_millis(100);
                match tokio::time::timeout(wait, from_b.datagrams.recv()).await {
                    Ok(Some(answer)) if answer == asked => return,
                    Ok(None) => panic!("the link ended"),
                    _ => {}
                }
            }
        };
        soon(answered).await;
    }
    to_b.close("enough");
    for task in [bulk, taken, echo] {
        soon(task).await.unwrap();
    }
}

#[tokio::test]
async fn datagrams_that_no_packet_holds_are_refused_in_words() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;
    let (to_b, _from_b) = at_a.split();
    let (_to_a, mut from_a) = at_b.split();
    let error = to_b.try_send_datagram(vec![0; 60_000].into()).unwrap_err();
    assert!(matches!(error, DatagramError::TooLarge { length: 60_000, .. }), "{error}");
    soon(async {
        while to_b.try_send_datagram(Bytes::new()).is_ok() {
            let wait = Duration::from_millis(100);
            if let Ok(got) = tokio::time::timeout(wait, from_a.datagrams.recv()).await {
                assert_eq!(got, Some(Bytes::new()));
                return;
            }
        }
        panic!("the link ended");
    })
    .await;
    to_b.close("enough");
    let error = to_b.try_send_datagram(Bytes::new()).unwrap_err();
    assert_eq!(error.to_string(), "the link is gone: closed here: enough");
}
