//! Links within a process, for simulation and tests: the same [`Link`], no network.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::datagram::DATAGRAM_CAP;
use crate::lane::Lane;
use crate::link::{CloseReason, Link, Peer};
use crate::link_core::{Carrier, Core, Inlets, Outgoing, Undelivered, inbound_queues};
use crate::paths::Path;

/// Two ends of one link: `left` and `right` say who is at each end, so the first link's peer is
/// `right`. The left end counts as the one that dialed.
///
/// Order, bounds and reasons are those of a link over QUIC; nothing is lost or delayed, but for
/// datagrams that nobody takes. Each frame crosses in a task of the current runtime.
///
/// # Panics
/// Outside a tokio runtime.
#[must_use]
pub fn memory_pair(left: Peer, right: Peer) -> (Link, Link) {
    let (to_left, left_outlets) = inbound_queues();
    let (to_right, right_outlets) = inbound_queues();
    let left_side = Arc::new(Side::new(to_right));
    let right_side = Arc::new(Side::new(to_left));
    let left_core = Core::new(right, true, Box::new(Arc::clone(&left_side)));
    let right_core = Core::new(left, false, Box::new(Arc::clone(&right_side)));
    // Both cells are empty until here.
    let _ = left_side.other.set(Arc::downgrade(&right_core));
    let _ = right_side.other.set(Arc::downgrade(&left_core));
    (Link::new(left_core, left_outlets), Link::new(right_core, right_outlets))
}

/// Carries from one end to the other.
struct Side {
    runtime: Handle,
    other: OnceLock<Weak<Core>>,
    /// The other end's queues; `None` once the link is gone, so that its receiver ends.
    inlets: Mutex<Option<Inlets>>,
}

impl Side {
    fn new(inlets: Inlets) -> Self {
        Self {
            runtime: Handle::current(),
            other: OnceLock::new(),
            inlets: Mutex::new(Some(inlets)),
        }
    }

    fn inlets(&self) -> std::sync::MutexGuard<'_, Option<Inlets>> {
        self.inlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier for Arc<Side> {
    fn open(&self, core: &Arc<Core>, lane: Lane, outgoing: Outgoing) {
        if let Some(inlets) = self.inlets().clone() {
            self.runtime.spawn(carry(Arc::clone(core), lane, outgoing, inlets));
        }
    }

    fn send_datagram(&self, datagram: Bytes) -> Result<(), Undelivered> {
        if datagram.len() > DATAGRAM_CAP {
            return Err(Undelivered::TooLarge { limit: DATAGRAM_CAP });
        }
        self.inlets().as_ref().ok_or(Undelivered::Gone)?.datagrams.put(datagram);
        Ok(())
    }

    fn close(&self, reason: &CloseReason) {
        self.inlets().take();
        if let Some(other) = self.other.get().and_then(Weak::upgrade) {
            other.end(match reason {
                CloseReason::Here(words) => CloseReason::Peer(words.clone()),
                reason => CloseReason::Peer(reason.to_string()),
            });
        }
    }

    fn rtt(&self) -> Duration {
        Duration::ZERO
    }

    fn heard(&self) -> u64 {
        0
    }

    fn set_alternates(&self, _: &[SocketAddr]) {}

    fn paths(&self) -> Vec<Path> {
        Vec::new()
    }

    fn probe_all_paths(&self) {}

    fn address(&self) -> Option<SocketAddr> {
        None
    }
}

async fn carry(core: Arc<Core>, lane: Lane, mut outgoing: Outgoing, inlets: Inlets) {
    let carry = async {
        while let Some(queued) = outgoing.next(&core).await {
            if inlets.push(lane, queued.item.clone()).await.is_err() {
                return;
            }
        }
        outgoing.ended(&core);
    };
    tokio::select! {
        () = carry => {}
        _ = core.ended() => {}
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use planaria_config::{Incarnation, NodeId};

    use super::*;
    use crate::frame::Frame;
    use crate::lane::{CONTROL_CAP, MAX_ACTIVATION_STREAMS};
    use crate::link::SendError;

    fn peer(byte: u8) -> Peer {
        Peer {
            incarnation: Incarnation { node: NodeId::from_bytes([byte; 32]), boot_count: 1 },
            name: format!("node {byte}"),
            info: Bytes::new(),
            features: Vec::new(),
            process: None,
            address: ([127, 0, 0, 1], u16::from(byte)).into(),
        }
    }

    fn frame(number: u32) -> Frame {
        Frame::message(Bytes::copy_from_slice(&number.to_be_bytes()))
    }

    #[tokio::test]
    async fn both_ways_in_order() {
        let (left, right) = memory_pair(peer(1), peer(2));
        assert_eq!((left.peer(), right.peer()), (&peer(2), &peer(1)));
        assert!(left.dialed_by_us() && !right.dialed_by_us());
        let (left, mut from_right) = left.split();
        let (right, mut from_left) = right.split();
        for number in 0..100 {
            left.try_send(Lane::Activation(7), frame(number)).unwrap();
            right.try_send(Lane::Control, frame(number)).unwrap();
        }
        for number in 0..100 {
            let inbound = from_left.recv().await.unwrap();
            assert_eq!((inbound.lane, inbound.frame), (Lane::Activation(7), frame(number)));
            assert_eq!(from_right.recv().await.unwrap().frame, frame(number));
        }
    }

    #[tokio::test]
    async fn control_overtakes_what_waits() {
        let (left, right) = memory_pair(peer(1), peer(2));
        let (left, _keep) = left.split();
        let (_keep_too, mut from_left) = right.split();
        left.try_send(Lane::Bulk, frame(3)).unwrap();
        left.try_send(Lane::Activation(1), frame(2)).unwrap();
        tokio::task::yield_now().await;
        left.try_send(Lane::Control, frame(1)).unwrap();
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        for number in 1..=3 {
            assert_eq!(from_left.recv().await.unwrap().frame, frame(number));
        }
    }

    #[tokio::test]
    async fn closing_says_why_on_both_sides() {
        let (left, right) = memory_pair(peer(1), peer(2));
        let (left, mut from_right) = left.split();
        let (right, mut from_left) = right.split();
        left.try_send(Lane::Control, frame(1)).unwrap();
        tokio::task::yield_now().await;
        left.close("going home");
        assert_eq!(left.closed().await, CloseReason::Here("going home".to_owned()));
        assert_eq!(right.closed().await.to_string(), "closed by the peer: going home");
        // What had arrived is still there, then the end.
        assert_eq!(from_left.recv().await.unwrap().frame, frame(1));
        assert_eq!(from_left.recv().await, None);
        assert_eq!(from_right.recv().await, None);
        let error = right.try_send(Lane::Control, frame(2)).unwrap_err();
        assert_eq!(error.to_string(), "the link is gone: closed by the peer: going home");
        left.close("again");
        assert_eq!(left.closed().await, CloseReason::Here("going home".to_owned()));
    }

    #[tokio::test]
    async fn dropping_a_receiver_closes() {
        let (left, right) = memory_pair(peer(1), peer(2));
        let (right, _from_left) = right.split();
        drop(left);
        assert!(matches!(right.closed().await, CloseReason::Peer(_)));
    }

    #[tokio::test]
    async fn who_does_not_receive_stops_that_class_only() {
        let (left, right) = memory_pair(peer(1), peer(2));
        let (left, _from_right) = left.split();
        let (_right, mut from_left) = right.split();
        let big = Frame { header: Bytes::new(), payload: vec![0; 1 << 20].into() };
        let mut sent = 0;
        let error = loop {
            match left.try_send(Lane::Bulk, big.clone()) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            tokio::task::yield_now().await;
        };
        let limit = Lane::Bulk.send_queue();
        assert_eq!(error, SendError::Full { lane: Lane::Bulk, limit });
        assert!(sent <= (limit + Lane::Bulk.receive_queue()) >> 20, "{sent}");

        left.try_send(Lane::Control, frame(1)).unwrap();
        assert_eq!(from_left.control.recv().await.unwrap().frame, frame(1));
        from_left.bulk.recv().await.unwrap();
        left.send(Lane::Bulk, big).await.unwrap();
        assert!(sent > 0);
    }

    #[tokio::test]
    async fn datagrams_cross_and_are_dropped_when_nobody_takes_them() {
        let (left, right) = memory_pair(peer(1), peer(2));
        let (left, _from_right) = left.split();
        let (_right, mut from_left) = right.split();
        left.try_send_datagram(Bytes::new()).unwrap();
        left.try_send_datagram(vec![7; DATAGRAM_CAP].into()).unwrap();
        assert_eq!(from_left.datagrams.recv().await, Some(Bytes::new()));
        assert_eq!(from_left.datagrams.recv().await, Some(vec![7; DATAGRAM_CAP].into()));
        let error = left.try_send_datagram(vec![7; DATAGRAM_CAP + 1].into()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a datagram of 1101 bytes is longer than the 1100 that the path carries"
        );
        for number in 0..10_000_u32 {
            left.try_send_datagram(Bytes::copy_from_slice(&number.to_be_bytes())).unwrap();
        }
        left.close("enough");
        let mut kept = 0;
        while let Some(datagram) = from_left.datagrams.recv().await {
            assert_eq!(datagram[..], u32::to_be_bytes(kept));
            kept += 1;
        }
        assert!((100..10_000).contains(&kept), "{kept}");
        let error = left.try_send_datagram(Bytes::new()).unwrap_err();
        assert_eq!(error.to_string(), "the link is gone: closed here: enough");
    }

    #[tokio::test]
    async fn limits_are_errors_with_numbers() {
        let (left, _right) = memory_pair(peer(1), peer(2));
        let (left, _from_right) = left.split();
        let error =
            left.try_send(Lane::Control, Frame::message(vec![0; CONTROL_CAP].into())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a frame of 1048580 bytes is over the control lane's cap of 1048576"
        );
    }

    #[tokio::test]
    async fn any_number_of_lanes_is_carried_each_in_order() {
        let (left, right) = memory_pair(peer(1), peer(2));
        let (left, _from_right) = left.split();
        let (_right, mut from_left) = right.split();
        let keys = 300;
        for number in 0..3 {
            for key in 0..keys {
                left.try_send(Lane::Activation(u64::from(key)), frame(number * keys + key))
                    .unwrap();
            }
        }
        assert_eq!(left.activation_streams(), MAX_ACTIVATION_STREAMS);
        let mut came = vec![0; keys as usize];
        for _ in 0..3 * keys {
            let inbound = from_left.recv().await.unwrap();
            let number = u32::from_be_bytes(inbound.frame.header[..].try_into().unwrap());
            let count = &mut came[(number % keys) as usize];
            assert_eq!(number / keys, *count, "in order");
            *count += 1;
        }
    }
}
