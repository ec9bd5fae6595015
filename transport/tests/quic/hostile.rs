//! A peer with valid credentials that breaks the protocol loses its own link and nothing else.

use planaria_transport::{
    ACTIVATION_CAP, BULK_CAP, CONTROL_CAP, CloseReason, DatagramError, Endpoint, Lane, Link,
    LinkReceiver, LinkSender,
};

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{
    Authority, HELLO, LOOPBACK, frame, link, next, number, raw_client, raw_client_with,
    raw_connect, raw_greet, raw_read, soon, stream_header, wire,
};

/// A node with a good link, and with one to a raw peer.
struct Scene {
    ours: Authority,
    here: Endpoint,
    good: (LinkSender, LinkReceiver),
    at_good: (LinkSender, LinkReceiver),
    _good: Endpoint,
}

struct Raw {
    connection: quinn::Connection,
    control: quinn::SendStream,
    _receiving: quinn::RecvStream,
    _client: quinn::Endpoint,
}

impl Scene {
    async fn new() -> Self {
        let ours = Authority::new();
        let (here, good) = (ours.node("here"), ours.node("good"));
        let (at_good, at_here) = link(&good, &here).await;
        Self { ours, here, good: at_here.split(), at_good: at_good.split(), _good: good }
    }

    async fn raw(&self) -> (Raw, Link) {
        self.raw_with(quinn::TransportConfig::default()).await
    }

    async fn raw_with(&self, transport: quinn::TransportConfig) -> (Raw, Link) {
        let certified = self.ours.certify();
        let client = raw_client_with(transport, &self.ours, Some(&certified), "planaria/1");
        let connection = raw_connect(&client, &self.here).await;
        let (control, mut receiving) = raw_greet(&connection, &HELLO).await;
        let link = soon(self.here.accept()).await.unwrap().unwrap();
        raw_read(&mut receiving).await;
        (Raw { connection, control, _receiving: receiving, _client: client }, link)
    }

    /// The link to the raw peer ends with these words on both sides; the good one works on, and
    /// the next peer is let in.
    async fn ends(&mut self, raw: Raw, link: Link, words: &str) {
        let (sender, mut receiver) = link.split();
        let reason = soon(sender.closed()).await;
        assert!(matches!(reason, CloseReason::Violation(_)), "{reason:?}");
        assert!(reason.to_string().contains(words), "`{reason}` lacks `{words}`");
        while soon(receiver.recv()).await.is_some() {}
        match soon(raw.connection.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code, 2_u8.into());
                let told = String::from_utf8_lossy(&close.reason);
                assert!(told.contains(words), "`{told}` lacks `{words}`");
            }
            other => panic!("closed otherwise: {other}"),
        }
        self.good_goes_on().await;
    }

    async fn good_goes_on(&mut self) {
        for lane in [Lane::Control, Lane::Activation(1)] {
            self.good.0.try_send(lane, frame(8)).unwrap();
            assert_eq!(number(&next(&mut self.at_good.1).await), 8);
            self.at_good.0.try_send(lane, frame(9)).unwrap();
            assert_eq!(number(&next(&mut self.good.1).await), 9);
        }
    }
}

fn claim(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap().to_be_bytes()
}

#[tokio::test]
async fn frames_over_the_cap_of_their_lane() {
    let mut scene = Scene::new().await;
    let (mut raw, link) = scene.raw().await;
    raw.control.write_all(&claim(CONTROL_CAP + 1)).await.unwrap();
    scene
        .ends(raw, link, "control lane: a frame of 1048577 bytes is over the cap of 1048576")
        .await;

    for (class, cap) in [(1, ACTIVATION_CAP), (2, BULK_CAP)] {
        let (raw, link) = scene.raw().await;
        let mut stream = raw.connection.open_uni().await.unwrap();
        stream.write_all(&stream_header(class, 0)).await.unwrap();
        stream.write_all(&claim(cap + 1)).await.unwrap();
        scene.ends(raw, link, &format!("is over the cap of {cap}")).await;
    }
}

#[tokio::test]
async fn malformed_and_truncated_frames() {
    let mut scene = Scene::new().await;
    let (mut raw, link) = scene.raw().await;
    raw.control.write_all(&[0, 0, 0, 10, 0, 0, 0, 99]).await.unwrap();
    scene.ends(raw, link, "a frame of 10 bytes claims a header of 99").await;

    let (mut raw, link) = scene.raw().await;
    raw.control.write_all(&[0, 0, 0, 0]).await.unwrap();
    scene.ends(raw, link, "claims a length of 0 bytes").await;

    let (raw, link) = scene.raw().await;
    let mut stream = raw.connection.open_uni().await.unwrap();
    stream.write_all(&stream_header(2, 0)).await.unwrap();
    stream.write_all(&wire(&frame(1))[..13]).await.unwrap();
    stream.finish().unwrap();
    scene.ends(raw, link, "bulk lane: the stream ended inside a frame, 3 bytes short").await;

    let (raw, link) = scene.raw().await;
    let mut stream = raw.connection.open_uni().await.unwrap();
    stream.write_all(&stream_header(1, 5)).await.unwrap();
    stream.write_all(&wire(&frame(1))).await.unwrap();
    let (sender, mut receiver) = link.split();
    assert_eq!(number(&next(&mut receiver).await), 1);
    stream.reset(3_u8.into()).unwrap();
    let reason = soon(sender.closed()).await.to_string();
    assert!(reason.contains("activation lane 0000000000000005"), "{reason}");
    scene.good_goes_on().await;
}

#[tokio::test]
async fn streams_that_nobody_knows() {
    let mut scene = Scene::new().await;
    for (header, words) in [
        (stream_header(4, 0), "a stream of unknown class 4 and key 0"),
        (stream_header(3, 1), "a stream of unknown class 3 and key 1"),
        (stream_header(2, 1), "a stream of unknown class 2 and key 1"),
        (stream_header(0, 0), "a second control stream"),
    ] {
        let (raw, link) = scene.raw().await;
        let mut stream = raw.connection.open_uni().await.unwrap();
        stream.write_all(&header).await.unwrap();
        scene.ends(raw, link, words).await;
    }
    let (raw, link) = scene.raw().await;
    let mut stream = raw.connection.open_uni().await.unwrap();
    stream.write_all(b"abc").await.unwrap();
    stream.finish().unwrap();
    scene.ends(raw, link, "a stream ended after 3 of the 9 bytes of its header").await;

    let (mut raw, link) = scene.raw().await;
    raw.control.finish().unwrap();
    scene.ends(raw, link, "it ended the control stream").await;
}

#[tokio::test]
async fn garbage_on_every_kind_of_stream() {
    let mut scene = Scene::new().await;
    // A fixed xorshift, so that a failure comes back.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..12 {
        let garbage: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0] | 0x80
        })
        .take(64)
        .collect();
        let (mut raw, link) = scene.raw().await;
        if round % 2 == 0 {
            raw.control.write_all(&garbage).await.unwrap();
        } else {
            let mut stream = raw.connection.open_uni().await.unwrap();
            stream.write_all(&garbage).await.unwrap();
        }
        scene.ends(raw, link, "").await;
    }
}

#[tokio::test]
async fn datagrams_and_streams_that_never_speak_do_no_harm() {
    let mut scene = Scene::new().await;
    let (mut raw, link) = scene.raw().await;
    for _ in 0..2000 {
        raw.connection.send_datagram(vec![0; 1000].into()).unwrap();
    }
    let mut streams = Vec::new();
    for _ in 0..31 {
        let mut stream = raw.connection.open_uni().await.unwrap();
        stream.write_all(&[1]).await.unwrap();
        streams.push(stream);
    }
    raw.control.write_all(&wire(&frame(4))).await.unwrap();
    let (_sender, mut receiver) = link.split();
    assert_eq!(number(&next(&mut receiver).await), 4);
    scene.good_goes_on().await;
    // What was kept of the datagrams is bounded.
    raw.connection.close(0_u8.into(), b"");
    let mut kept = 0;
    while soon(receiver.datagrams.recv()).await.is_some() {
        kept += 1;
    }
    assert!(kept <= 2 * (64 << 10) / 1000, "{kept}");
}

#[tokio::test]
async fn datagrams_larger_than_any_of_ours_arrive_or_are_dropped() {
    let mut scene = Scene::new().await;
    let (raw, link) = scene.raw().await;
    let (_sender, mut receiver) = link.split();
    let largest = raw.connection.max_datagram_size().unwrap();
    soon(async {
        loop {
            raw.connection.send_datagram(vec![9; largest.min(1162)].into()).unwrap();
            let wait = std::time::Duration::from_millis(100);
            if let Ok(got) = tokio::time::timeout(wait, receiver.datagrams.recv()).await {
                assert_eq!(got.unwrap().len(), largest.min(1162));
                return;
            }
        }
    })
    .await;
    scene.good_goes_on().await;
}

#[tokio::test]
async fn a_peer_without_datagrams_is_told_apart() {
    let mut scene = Scene::new().await;
    let mut without = quinn::TransportConfig::default();
    without.datagram_receive_buffer_size(None);
    let (_raw, link) = scene.raw_with(without).await;
    let (sender, _receiver) = link.split();
    assert_eq!(sender.try_send_datagram(vec![1].into()), Err(DatagramError::Unsupported));
    scene.good_goes_on().await;
}

/// Bytes that callers sent, and that were sent to them.
#[derive(Default)]
struct Traffic {
    to_node: AtomicUsize,
    from_node: AtomicUsize,
}

/// Callers whose packets reach `node` with a source address that is not theirs, so that no answer reaches
/// them: they come from a socket that keeps to itself what it is answered.
async fn forged_callers(node: std::net::SocketAddr, count: usize) -> Arc<Traffic> {
    let ours = Authority::new();
    let relay = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    let relay_address = relay.local_addr().unwrap();
    let traffic = Arc::new(Traffic::default());
    let counted = Arc::clone(&traffic);
    tokio::spawn(async move {
        let mut packet = [0; 2048];
        loop {
            let (length, from) = relay.recv_from(&mut packet).await.unwrap();
            if from == node {
                counted.from_node.fetch_add(length, Ordering::Relaxed);
            } else {
                counted.to_node.fetch_add(length, Ordering::Relaxed);
                relay.send_to(&packet[..length], node).await.unwrap();
            }
        }
    });
    for _ in 0..count {
        let client = raw_client(&ours, Some(&ours.certify()), "planaria/1");
        tokio::spawn(async move {
            let calling = client.connect(relay_address, planaria_transport::CERTIFICATE_NAME);
            drop(calling.unwrap().await);
        });
    }
    traffic
}

#[tokio::test]
async fn callers_with_a_forged_address_take_no_place_of_who_has_it() {
    let ours = Authority::new();
    let (here, good) = (ours.node("here"), ours.node("good"));
    let traffic = forged_callers(here.local_addr(), 100).await;
    let sent = || traffic.to_node.load(Ordering::Relaxed);
    soon(async {
        while sent() < 100 * 1200 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    // Their handshakes would go on for half a minute. A node at the very address is let in at once.
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        let (dialed, accepted) = link(&good, &here).await;
        assert_eq!(dialed.peer().name, "here");
        assert_eq!(accepted.peer().name, "good");
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    let (to, from) = (sent(), traffic.from_node.load(Ordering::Relaxed));
    assert!(from < 3 * to, "{from} bytes were sent to an address that had sent {to}");
    assert!(from < to, "a Retry is smaller than what it answers");
}
