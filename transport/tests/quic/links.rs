//! Two nodes that mean well.

use std::time::Duration;

use bytes::Bytes;
use planaria_transport::{
    BindError, CloseReason, Endpoint, EndpointConfig, Identity, InvalidHello, Lane, MAX_INFO,
    SendError,
};

use crate::support::{config, credentials, frame, link, next, node, number, soon};

#[tokio::test]
async fn two_nodes_know_each_other_and_talk_both_ways() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;

    assert_eq!(at_a.peer().incarnation.node, b.node_id());
    assert_eq!(at_b.peer().incarnation.node, a.node_id());
    assert_eq!(at_a.peer().incarnation.boot_count, 1);
    assert_eq!((&at_a.peer().name[..], &at_b.peer().name[..]), ("b", "a"));
    assert_eq!(at_a.peer().info, "info of b");
    assert_eq!(at_b.peer().info, "info of a");
    assert_eq!(at_a.peer().address, b.local_addr());
    assert_eq!(at_b.peer().address, a.local_addr());
    assert!(at_a.dialed_by_us() && !at_b.dialed_by_us());
    assert!(at_a.rtt() > Duration::ZERO);

    let (to_b, mut from_b) = at_a.split();
    let (to_a, mut from_a) = at_b.split();
    for lane in [Lane::Control, Lane::Exchange, Lane::Activation(u64::MAX), Lane::Bulk] {
        to_b.try_send(lane, frame(1)).unwrap();
        to_a.try_send(lane, frame(2)).unwrap();
        let (inbound, answer) = (next(&mut from_a).await, next(&mut from_b).await);
        assert_eq!((inbound.lane, inbound.frame), (lane, frame(1)));
        assert_eq!((answer.lane, answer.frame), (lane, frame(2)));
    }
}

#[tokio::test]
async fn each_may_dial_the_other_and_many_links_live_side_by_side() {
    let nodes: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| node(1, name)).collect();
    let mut links = Vec::new();
    for dialer in &nodes {
        for listener in nodes.iter().filter(|node| node.node_id() != dialer.node_id()) {
            links.push(link(dialer, listener).await);
        }
    }
    for (count, (from, to)) in (0..).zip(links) {
        let (sender, _keep) = from.split();
        let (_keep_too, mut receiver) = to.split();
        sender.try_send(Lane::Control, frame(count)).unwrap();
        assert_eq!(number(&next(&mut receiver).await), count);
    }
}

#[tokio::test]
async fn a_restart_is_a_new_incarnation_of_the_same_node() {
    let identity = Identity::generate().unwrap();
    let listener = node(1, "listener");
    for boot_count in 1..=2 {
        let mut config = config("restarted");
        config.hello.boot_count = boot_count;
        let endpoint = Endpoint::bind(&credentials(1, &identity), config).unwrap();
        let (_, seen) = link(&endpoint, &listener).await;
        assert_eq!(seen.peer().incarnation.node, identity.node_id());
        assert_eq!(seen.peer().incarnation.boot_count, boot_count);
    }
}

#[tokio::test]
async fn new_info_goes_into_later_greetings() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    a.set_info(Bytes::from_static(b"new")).unwrap();
    b.set_info(Bytes::from_static(b"also new")).unwrap();
    let (at_a, at_b) = link(&a, &b).await;
    assert_eq!((&at_a.peer().info[..], &at_b.peer().info[..]), (&b"also new"[..], &b"new"[..]));
    let length = MAX_INFO + 1;
    assert_eq!(a.set_info(vec![0; length].into()), Err(InvalidHello::Info { length }));
}

#[tokio::test]
async fn a_close_is_told_with_its_reason() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;
    let (to_b, mut from_b) = at_a.split();
    let (to_a, mut from_a) = at_b.split();
    to_b.close("plan 7 does not need you");
    assert_eq!(soon(to_a.closed()).await, CloseReason::Peer("plan 7 does not need you".to_owned()));
    assert_eq!(soon(to_b.closed()).await, CloseReason::Here("plan 7 does not need you".to_owned()));
    assert_eq!(soon(from_a.recv()).await, None);
    assert_eq!(soon(from_b.recv()).await, None);
    assert!(matches!(to_a.try_send(Lane::Control, frame(0)), Err(SendError::Closed(_))));
}

#[tokio::test]
async fn a_dropped_link_is_closed() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let (at_a, at_b) = link(&a, &b).await;
    let (to_a, _from_a) = at_b.split();
    drop(at_a);
    assert!(matches!(soon(to_a.closed()).await, CloseReason::Peer(_)));
}

#[tokio::test]
async fn closing_an_endpoint_closes_its_links_and_nothing_else() {
    let (a, b, c) = (node(1, "a"), node(1, "b"), node(1, "c"));
    let (_keep, a_at_b) = link(&a, &b).await;
    let (c_at_b, b_at_c) = link(&b, &c).await;
    let (to_a, _from_a) = a_at_b.split();
    a.close("shutting down").await;
    assert_eq!(soon(to_a.closed()).await.to_string(), "closed by the peer: shutting down");
    assert!(soon(a.accept()).await.is_none());
    let error = a.dial(b.local_addr()).await.unwrap_err();
    assert!(error.to_string().contains("this endpoint is closed"), "{error}");

    let (to_c, _from_c) = c_at_b.split();
    let (_to_b, mut from_b) = b_at_c.split();
    to_c.try_send(Lane::Control, frame(5)).unwrap();
    assert_eq!(number(&next(&mut from_b).await), 5);
}

#[tokio::test]
async fn a_dropped_endpoint_frees_its_address() {
    let identity = Identity::generate().unwrap();
    let first = Endpoint::bind(&credentials(1, &identity), config("first")).unwrap();
    let again = EndpointConfig { listen: first.local_addr(), ..config("second") };
    drop(first);
    soon(async {
        while Endpoint::bind(&credentials(1, &identity), again.clone()).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let first = node(1, "first");
    let identity = Identity::generate().unwrap();
    let config = EndpointConfig { listen: first.local_addr(), ..config("second") };
    let error = Endpoint::bind(&credentials(1, &identity), config).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }));
    let words = error.to_string();
    assert!(words.contains(&first.local_addr().to_string()) && words.contains("in use"), "{words}");
}

#[tokio::test]
async fn a_configuration_that_makes_no_sense_is_refused() {
    let bind = |config| {
        Endpoint::bind(&credentials(1, &Identity::generate().unwrap()), config).unwrap_err()
    };
    let mut unnamed = config("x");
    unnamed.hello.name.clear();
    assert!(matches!(bind(unnamed), BindError::Hello(InvalidHello::Name)));
    let mut impatient = config("x");
    impatient.limits.idle = impatient.limits.keep_alive;
    assert!(matches!(bind(impatient), BindError::Limits(_)));
    let elsewhere = EndpointConfig { listen: ([192, 0, 2, 1], 0).into(), ..config("x") };
    assert!(bind(elsewhere).to_string().contains("cannot listen on UDP 192.0.2.1:0"));
}

#[test]
fn an_endpoint_needs_a_runtime() {
    let identity = Identity::generate().unwrap();
    let error = Endpoint::bind(&credentials(1, &identity), config("x")).unwrap_err();
    assert!(matches!(error, BindError::NoRuntime));
}

/// A runtime that nobody drives is a process that was stopped: its socket stays open, and nothing
/// answers.
#[test]
fn a_frozen_peer_is_noticed() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (ours, theirs) = (runtime(), runtime());
    let bind = |name: &str| {
        let credentials = credentials(1, &Identity::generate().unwrap());
        let mut config = config(name);
        config.limits.keep_alive = Duration::from_millis(100);
        config.limits.idle = Duration::from_millis(800);
        Endpoint::bind(&credentials, config).unwrap()
    };
    let (address_out, address_in) = std::sync::mpsc::channel();
    let (freeze, frozen) = tokio::sync::oneshot::channel::<()>();
    let peer = std::thread::spawn(move || {
        let held = theirs.block_on(async {
            let endpoint = bind("frozen");
            address_out.send(endpoint.local_addr()).unwrap();
            let link = soon(endpoint.accept()).await.unwrap().unwrap();
            let _ = frozen.await;
            (endpoint, link)
        });
        (theirs, held)
    });
    let address = address_in.recv().unwrap();
    ours.block_on(async {
        let watcher = bind("watcher");
        let (sender, mut receiver) = soon(watcher.dial(address)).await.unwrap().split();
        freeze.send(()).unwrap();
        let reason = soon(sender.closed()).await;
        assert_eq!(reason, CloseReason::Silent(Duration::from_millis(800)));
        assert_eq!(reason.to_string(), "nothing was heard from the peer for 800ms");
        assert_eq!(soon(receiver.recv()).await, None);
    });
    let (theirs, held) = peer.join().unwrap();
    let _entered = theirs.enter();
    drop(held);
}
