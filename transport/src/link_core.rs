//! What the halves of a link and its carrier share: the open lanes, the queues, the end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{self, sleep};

use crate::datagram::{DatagramError, DatagramInlet, datagram_queue};
use crate::frame::Frame;
use crate::lane::{IDLE, Lane, MAX_ACTIVATION_STREAMS};
use crate::lane_table::{LaneTable, StreamId};
use crate::link::{CloseReason, Inbound, Peer, SendError};
use crate::paths::Path;
use crate::queue::{self, PushError, Queued};

/// Between two looks whether a peer was heard: an answer on a LAN takes less, a restart of a node far more.
const LISTEN_EVERY: Duration = Duration::from_millis(10);

/// Moves frames from this side's queues to the other side's.
pub(crate) trait Carrier: Send + Sync {
    /// Begins to carry what comes out of `outgoing`, until it or the link ends.
    fn open(&self, core: &Arc<Core>, lane: Lane, outgoing: Outgoing);
    /// Sends a datagram or drops it, without waiting.
    fn send_datagram(&self, datagram: Bytes) -> Result<(), Undelivered>;
    /// Tells the other side that the link is over.
    fn close(&self, reason: &CloseReason);
    fn rtt(&self) -> Duration;
    /// Grows with what comes from the other side, and proves that it does.
    fn heard(&self) -> u64;
    /// The peer can be reached at these addresses as well.
    fn set_alternates(&self, addresses: &[SocketAddr]);
    /// The paths to the other side, if there are several.
    fn paths(&self) -> Vec<Path>;
    /// The other side may have lost the path in use.
    fn probe_all_paths(&self);
    /// Where the other side is now, if that can change.
    fn address(&self) -> Option<SocketAddr>;
}

/// Why a carrier did not send a datagram.
pub(crate) enum Undelivered {
    TooLarge { limit: usize },
    Unsupported,
    Gone,
}

/// A link, as its halves and its carrier's tasks see it.
pub(crate) struct Core {
    peer: Peer,
    dialed_by_us: bool,
    carrier: Box<dyn Carrier>,
    /// What is open; `None` once the link is gone.
    lanes: Mutex<Option<Lanes>>,
    end: watch::Sender<Option<CloseReason>>,
}

/// The queues of the open streams.
struct Lanes {
    table: LaneTable,
    queues: HashMap<Stream, queue::Sender<Frame>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stream {
    Control,
    Exchange,
    Activation(StreamId),
    Bulk,
}

/// What is to be sent on one stream.
pub(crate) struct Outgoing {
    stream: Stream,
    queue: queue::Receiver<Frame>,
}

impl Outgoing {
    /// The next frame; `None` when the stream is to end. Cancel-safe.
    pub(crate) async fn next(&mut self, core: &Core) -> Option<Queued<Frame>> {
        let Stream::Activation(stream) = self.stream else {
            return self.queue.pop().await;
        };
        loop {
            if let Ok(next) = tokio::time::timeout(IDLE, self.queue.pop()).await {
                return next;
            }
            core.end_idle(stream);
        }
    }

    /// The other side has all of the stream.
    pub(crate) fn ended(self, core: &Core) {
        if let (Stream::Activation(stream), Some(lanes)) = (self.stream, core.lanes().as_mut()) {
            lanes.table.ended(stream);
        }
    }
}

impl Core {
    pub(crate) fn new(peer: Peer, dialed_by_us: bool, carrier: Box<dyn Carrier>) -> Arc<Self> {
        let table = LaneTable::new(MAX_ACTIVATION_STREAMS);
        let lanes = Mutex::new(Some(Lanes { table, queues: HashMap::new() }));
        Arc::new(Self { peer, dialed_by_us, carrier, lanes, end: watch::Sender::new(None) })
    }

    pub(crate) const fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(crate) const fn dialed_by_us(&self) -> bool {
        self.dialed_by_us
    }

    pub(crate) fn rtt(&self) -> Duration {
        self.carrier.rtt()
    }

    /// Whether the peer says anything within `patience`. One that lives says something at each keep-alive.
    pub(crate) async fn is_heard(&self, patience: Duration) -> bool {
        let before = self.carrier.heard();
        let deadline = time::Instant::now() + patience;
        loop {
            if self.end.borrow().is_some() {
                return false;
            }
            if self.carrier.heard() != before {
                return true;
            }
            if time::Instant::now() >= deadline {
                return false;
            }
            sleep(LISTEN_EVERY).await;
        }
    }

    pub(crate) fn set_alternates(&self, addresses: &[SocketAddr]) {
        self.carrier.set_alternates(addresses);
    }

    pub(crate) fn paths(&self) -> Vec<Path> {
        self.carrier.paths()
    }

    pub(crate) fn probe_all_paths(&self) {
        self.carrier.probe_all_paths();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.carrier.address().unwrap_or(self.peer.address)
    }

    /// Ends the link; the first reason stands.
    pub(crate) fn end(&self, reason: CloseReason) {
        let told = reason.clone();
        let first = self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(reason);
            }
            first
        });
        if first {
            let lanes = self.lanes().take();
            for queue in lanes.iter().flat_map(|lanes| lanes.queues.values()) {
                queue.close();
            }
            self.carrier.close(&told);
            tracing::debug!(
                peer = %self.peer.incarnation,
                address = %self.peer.address,
                reason = %told,
                "link closed"
            );
        }
    }

    pub(crate) async fn ended(&self) -> CloseReason {
        let mut end = self.end.subscribe();
        let seen = end.wait_for(Option::is_some).await;
        // `self.end` outlives this call, so the wait cannot fail; the fallback is never seen.
        seen.ok().and_then(|end| end.clone()).unwrap_or_else(gone)
    }

    pub(crate) fn send_datagram(&self, datagram: Bytes) -> Result<(), DatagramError> {
        let ended = self.end.borrow().clone();
        if let Some(reason) = ended {
            return Err(DatagramError::Closed(reason));
        }
        let length = datagram.len();
        self.carrier.send_datagram(datagram).map_err(|why| match why {
            Undelivered::TooLarge { limit } => DatagramError::TooLarge { length, limit },
            Undelivered::Unsupported => DatagramError::Unsupported,
            Undelivered::Gone => DatagramError::Closed(gone()),
        })
    }

    /// Queues a frame, if there is room.
    pub(crate) fn try_push(
        self: &Arc<Self>,
        lane: Lane,
        length: usize,
        frame: Frame,
    ) -> Result<(), PushError> {
        // Locked, so that the stream does not end meanwhile and the next frame overtake this one.
        let mut lanes = self.lanes();
        self.queue(&mut lanes, lane)?.try_push(length, frame)
    }

    /// The queue of a lane, to wait for room in it.
    pub(crate) fn outgoing(
        self: &Arc<Self>,
        lane: Lane,
    ) -> Result<queue::Sender<Frame>, PushError> {
        self.queue(&mut self.lanes(), lane).cloned()
    }

    /// How many streams carry activations.
    pub(crate) fn activation_streams(&self) -> usize {
        self.lanes().as_ref().map_or(0, |lanes| lanes.table.streams())
    }

    /// The queue of the stream for a lane, which opens if it is not open yet.
    fn queue<'a>(
        self: &Arc<Self>,
        lanes: &'a mut Option<Lanes>,
        lane: Lane,
    ) -> Result<&'a queue::Sender<Frame>, PushError> {
        let Lanes { table, queues } = lanes.as_mut().ok_or(PushError::Closed)?;
        let stream = match lane {
            Lane::Control => Stream::Control,
            Lane::Exchange => Stream::Exchange,
            Lane::Bulk => Stream::Bulk,
            Lane::Activation(key) => Stream::Activation(table.place(Instant::now(), key).0),
        };
        Ok(queues.entry(stream).or_insert_with(|| {
            let (sender, queue) = queue::queue(lane.send_queue());
            self.carrier.open(self, lane, Outgoing { stream, queue });
            sender
        }))
    }

    /// Ends a stream on which nothing was sent for long, unless somebody is about to.
    fn end_idle(&self, stream: StreamId) {
        let mut lanes = self.lanes();
        let Some(Lanes { table, queues }) = lanes.as_mut() else {
            return;
        };
        let named = Stream::Activation(stream);
        if queues.get(&named).is_some_and(queue::Sender::is_idle) {
            queues.remove(&named);
            table.end(stream);
        }
    }

    pub(crate) fn send_error(&self, lane: Lane, error: PushError) -> SendError {
        match error {
            PushError::Full => SendError::Full { lane, limit: lane.send_queue() },
            PushError::Closed => SendError::Closed(self.end.borrow().clone().unwrap_or_else(gone)),
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Option<Lanes>> {
        // Nothing panics while it is held, and a map is whole after every operation anyway.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gone() -> CloseReason {
    CloseReason::Failed("it is being torn down".to_owned())
}

/// Where a carrier puts what arrives.
#[derive(Clone)]
pub(crate) struct Inlets {
    control: queue::Sender<Inbound>,
    exchange: queue::Sender<Inbound>,
    activation: queue::Sender<Inbound>,
    bulk: queue::Sender<Inbound>,
    pub(crate) datagrams: DatagramInlet,
}

/// Where a link's receiver takes it from. It ends when all clones of the inlets are gone.
pub(crate) struct Outlets {
    pub(crate) control: queue::Receiver<Inbound>,
    pub(crate) exchange: queue::Receiver<Inbound>,
    pub(crate) activation: queue::Receiver<Inbound>,
    pub(crate) bulk: queue::Receiver<Inbound>,
    pub(crate) datagrams: queue::Receiver<Bytes>,
}

pub(crate) fn inbound_queues() -> (Inlets, Outlets) {
    let (control, control_out) = queue::queue(Lane::Control.receive_queue());
    let (exchange, exchange_out) = queue::queue(Lane::Exchange.receive_queue());
    let (activation, activation_out) = queue::queue(Lane::Activation(0).receive_queue());
    let (bulk, bulk_out) = queue::queue(Lane::Bulk.receive_queue());
    let (datagrams, datagrams_out) = datagram_queue();
    (
        Inlets { control, exchange, activation, bulk, datagrams },
        Outlets {
            control: control_out,
            exchange: exchange_out,
            activation: activation_out,
            bulk: bulk_out,
            datagrams: datagrams_out,
        },
    )
}

impl Inlets {
    /// Hands a frame to the receiver, waiting for room.
    pub(crate) async fn push(&self, lane: Lane, frame: Frame) -> Result<(), PushError> {
        let queue = match lane {
            Lane::Control => &self.control,
            Lane::Exchange => &self.exchange,
            Lane::Activation(_) => &self.activation,
            Lane::Bulk => &self.bulk,
        };
        queue.push(frame.length(), Inbound { lane, frame }).await
    }
}

#[cfg(test)]
mod tests {
    use planaria_config::{Incarnation, NodeId};

    use super::*;

    /// Keeps what it is to carry.
    #[derive(Default)]
    struct Kept(Arc<Mutex<Vec<Outgoing>>>);

    impl Carrier for Kept {
        fn open(&self, _: &Arc<Core>, _: Lane, outgoing: Outgoing) {
            self.0.lock().unwrap().push(outgoing);
        }
        fn send_datagram(&self, _: Bytes) -> Result<(), Undelivered> {
            Err(Undelivered::Gone)
        }
        fn close(&self, _: &CloseReason) {}
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

    #[tokio::test]
    async fn a_stream_ends_when_nothing_is_under_way_on_it() {
        let kept = Kept::default();
        let opened = Arc::clone(&kept.0);
        let peer = Peer {
            incarnation: Incarnation { node: NodeId::from_bytes([1; 32]), boot_count: 1 },
            name: String::new(),
            info: Bytes::new(),
            features: Vec::new(),
            process: None,
            address: ([127, 0, 0, 1], 1).into(),
        };
        let core = Core::new(peer, true, Box::new(kept));
        let send = |lane| core.try_push(lane, 1, Frame::message(Bytes::from_static(b"x")));
        let lane = Lane::Activation(5);
        send(lane).unwrap();
        core.end_idle(0);
        send(lane).unwrap();
        let mut first = opened.lock().unwrap().pop().unwrap();
        for _ in 0..2 {
            assert!(first.next(&core).await.is_some(), "it was not idle");
        }
        // Somebody is about to send.
        let sender = core.outgoing(lane).unwrap();
        core.end_idle(0);
        sender.push(1, Frame::message(Bytes::new())).await.unwrap();
        drop(sender);
        assert!(first.next(&core).await.is_some());
        core.end_idle(0);
        assert!(first.next(&core).await.is_none());
        assert_eq!(core.activation_streams(), 1, "the other side may not have all of it");
        first.ended(&core);
        assert_eq!(core.activation_streams(), 0);
        send(lane).unwrap();
        assert_eq!((core.activation_streams(), opened.lock().unwrap().len()), (1, 1));
    }
}
