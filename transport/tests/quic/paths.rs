//! A link between nodes that can reach each other by two paths outlives the loss of one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use planaria_transport::{Endpoint, Identity, Lane, Link, LinkSender};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::support::{LOOPBACK, config, credentials, frame, next, node, number, soon};

/// A path to a node that can be cut: it passes datagrams on, in both directions, for a single caller.
struct Relay {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    async fn to(node: SocketAddr) -> Self {
        Self::slow(node, Duration::ZERO).await
    }

    /// One that takes this long for each datagram, in either direction.
    async fn slow(node: SocketAddr, delay: Duration) -> Self {
        let near = Arc::new(UdpSocket::bind(LOOPBACK).await.unwrap());
        let far = UdpSocket::bind(LOOPBACK).await.unwrap();
        let address = near.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut out, mut back) = (vec![0; 65_536], vec![0; 65_536]);
            let mut caller = None;
            loop {
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut out) => {
                        caller = Some(from);
                        pass(delay).await;
                        drop(far.send_to(&out[..length], node).await);
                    }
                    Ok((length, _)) = far.recv_from(&mut back) => {
                        pass(delay).await;
                        if let Some(caller) = caller {
                            drop(near.send_to(&back[..length], caller).await);
                        }
                    }
                }
            }
        });
        Self { address, task }
    }

    async fn cut(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

async fn pass(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

/// Frames that are sent in both directions arrive, each once and in order, while `disturb` does its worst.
async fn talk(at_a: Link, at_b: Link, disturb: impl AsyncFnOnce()) {
    const FRAMES: u64 = 2000;
    let (to_b, mut from_b) = at_a.split();
    let (to_a, mut from_a) = at_b.split();
    let sending = tokio::spawn(async move {
        for count in 0..FRAMES {
            for side in [&to_b, &to_a] {
                side.send(Lane::Activation(1), frame(count)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        (to_a, to_b)
    });
    let mut disturb = Some(disturb);
    for count in 0..FRAMES {
        if count == FRAMES / 4
            && let Some(disturb) = disturb.take()
        {
            disturb().await;
        }
        assert_eq!(number(&next(&mut from_a).await), count);
        assert_eq!(number(&next(&mut from_b).await), count);
    }
    soon(sending).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_path_costs_no_frame() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let path = Relay::to(b.local_addr()).await;
    let (dialed, accepted) = soon(async { tokio::join!(a.dial(path.address), b.accept()) }).await;
    let (at_a, at_b) = (dialed.unwrap(), accepted.unwrap().unwrap());
    assert_eq!(at_a.peer().address, path.address);
    // Both can do without it, if they know.
    at_a.set_alternates(&[b.local_addr()]);
    at_b.set_alternates(&[a.local_addr()]);
    talk(at_a, at_b, async || path.cut().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_side_may_know_of_the_other_path_and_the_other_not() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let direct = b.local_addr();
    let path = Relay::to(direct).await;
    let (dialed, accepted) = soon(async { tokio::join!(a.dial(path.address), b.accept()) }).await;
    let (at_a, at_b) = (dialed.unwrap(), accepted.unwrap().unwrap());
    // Who dials may move, as QUIC has it; who was dialed follows.
    at_a.set_alternates(&[direct]);
    talk(at_a, at_b, async || path.cut().await).await;
}

/// A node that measures its paths more often than anybody would.
fn measuring(name: &str) -> Endpoint {
    let mut config = config(name);
    config.limits.measure = Duration::from_millis(200);
    Endpoint::bind(&credentials(1, &Identity::generate().unwrap()), config).unwrap()
}

async fn goes_by(link: &LinkSender, address: SocketAddr) {
    let by = async || {
        while !link.paths().iter().any(|path| path.in_use && path.address == address) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(by()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_use_a_path_that_is_measured_to_be_better() {
    let (a, b) = (measuring("a"), measuring("b"));
    let path = Relay::slow(b.local_addr(), Duration::from_millis(1)).await;
    let (dialed, accepted) = soon(async { tokio::join!(a.dial(path.address), b.accept()) }).await;
    let (at_a, at_b) = (dialed.unwrap(), accepted.unwrap().unwrap());
    at_a.set_alternates(&[b.local_addr()]);
    at_b.set_alternates(&[a.local_addr()]);
    let ((to_b, _from_b), (to_a, _from_a)) = (at_a.split(), at_b.split());
    soon(async { tokio::join!(goes_by(&to_b, b.local_addr()), goes_by(&to_a, a.local_addr())) })
        .await;
    for (link, direct) in [(&to_b, b.local_addr()), (&to_a, a.local_addr())] {
        let paths = link.paths();
        let measured = |is_direct: bool| {
            let path = paths.iter().find(|path| (path.address == direct) == is_direct).unwrap();
            (path.rtt.unwrap(), path.bytes_per_second.unwrap())
        };
        let ((fast, wide), (slow, narrow)) = (measured(true), measured(false));
        assert!(fast < slow && wide > narrow, "{paths:?}");
        // At a millisecond for each packet, no more than 1.2 MB in a second pass.
        assert!(slow >= Duration::from_millis(2) && narrow < 1_300_000, "{paths:?}");
    }
}
