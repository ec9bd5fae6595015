//! A link between nodes that can reach each other in two ways outlives the loss of one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use planaria_transport::{Lane, Link};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::support::{LOOPBACK, frame, next, node, number, soon};

/// A way to a node that can be cut: it passes datagrams on, both ways, for a single caller.
struct Way {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Way {
    async fn to(node: SocketAddr) -> Self {
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
                        drop(far.send_to(&out[..length], node).await);
                    }
                    Ok((length, _)) = far.recv_from(&mut back) => {
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

/// Frames that are sent both ways arrive, each once and in order, while `disturb` does its worst.
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
    let way = Way::to(b.local_addr()).await;
    let (dialed, accepted) = soon(async { tokio::join!(a.dial(way.address), b.accept()) }).await;
    let (at_a, at_b) = (dialed.unwrap(), accepted.unwrap().unwrap());
    assert_eq!(at_a.peer().address, way.address);
    // Both can do without it, if they know.
    at_a.set_alternates(&[b.local_addr()]);
    at_b.set_alternates(&[a.local_addr()]);
    talk(at_a, at_b, async || way.cut().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_side_may_know_of_the_other_path_and_the_other_not() {
    let (a, b) = (node(1, "a"), node(1, "b"));
    let direct = b.local_addr();
    let way = Way::to(direct).await;
    let (dialed, accepted) = soon(async { tokio::join!(a.dial(way.address), b.accept()) }).await;
    let (at_a, at_b) = (dialed.unwrap(), accepted.unwrap().unwrap());
    // Who dials may move, as QUIC has it; who was dialed follows.
    at_a.set_alternates(&[direct]);
    talk(at_a, at_b, async || way.cut().await).await;
}
