//! What the halves of a link and its carrier share: the open lanes, the queues, the end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::datagram::{DatagramError, DatagramInlet, datagram_queue};
use crate::frame::Frame;
use crate::lane::{Lane, MAX_ACTIVATION_LANES};
use crate::link::{CloseReason, Inbound, Peer, SendError};
use crate::paths::Path;
use crate::queue::{self, PushError};

/// Between two looks whether a peer was heard: an answer on a LAN takes less, a restart of a node far more.
const LISTEN_EVERY: Duration = Duration::from_millis(10);

/// Moves frames from this side's queues to the other side's.
pub(crate) trait Carrier: Send + Sync {
    /// Begins to carry what comes out of `outgoing`, until it or the link ends.
    fn open(&self, core: &Arc<Core>, lane: Lane, outgoing: queue::Receiver<Frame>);
    /// Sends a datagram or drops it, without waiting.
    fn send_datagram(&self, datagram: Bytes) -> Result<(), Undelivered>;
    /// Tells the other side that the link is over.
    fn close(&self, reason: &CloseReason);
    fn rtt(&self) -> Duration;
    /// Grows with what comes from the other side, and proves that it does.
    fn heard(&self) -> u64;
    /// The peer can be reached at these addresses as well.
    fn set_alternates(&self, addresses: &[SocketAddr]);
    /// The ways to the other side, if there are several.
    fn paths(&self) -> Vec<Path>;
    /// The other side may have lost the way in use.
    fn doubt(&self);
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
    /// Queues of the open lanes; `None` once the link is gone.
    lanes: Mutex<Option<HashMap<Lane, queue::Sender<Frame>>>>,
    end: watch::Sender<Option<CloseReason>>,
}

impl Core {
    pub(crate) fn new(peer: Peer, dialed_by_us: bool, carrier: Box<dyn Carrier>) -> Arc<Self> {
        let lanes = Mutex::new(Some(HashMap::new()));
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
        let deadline = Instant::now() + patience;
        loop {
            if self.end.borrow().is_some() {
                return false;
            }
            if self.carrier.heard() != before {
                return true;
            }
            if Instant::now() >= deadline {
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

    pub(crate) fn doubt(&self) {
        self.carrier.doubt();
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
            for queue in lanes.iter().flat_map(HashMap::values) {
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

    /// Ends a lane after what is queued on it.
    pub(crate) fn finish(&self, lane: Lane) {
        if let Some(lanes) = self.lanes().as_mut() {
            lanes.remove(&lane);
        }
    }

    /// The queue of a lane, which opens if it is not open yet.
    pub(crate) fn outgoing(
        self: &Arc<Self>,
        lane: Lane,
    ) -> Result<queue::Sender<Frame>, SendError> {
        let mut lanes = self.lanes();
        let Some(open) = lanes.as_mut() else {
            drop(lanes);
            return Err(self.send_error(lane, PushError::Closed));
        };
        if let Some(queue) = open.get(&lane) {
            return Ok(queue.clone());
        }
        let activations = open.keys().filter(|lane| matches!(lane, Lane::Activation(_))).count();
        if matches!(lane, Lane::Activation(_)) && activations >= MAX_ACTIVATION_LANES {
            return Err(SendError::TooManyLanes);
        }
        let (sender, receiver) = queue::queue(lane.send_queue());
        open.insert(lane, sender.clone());
        self.carrier.open(self, lane, receiver);
        Ok(sender)
    }

    pub(crate) fn send_error(&self, lane: Lane, error: PushError) -> SendError {
        match error {
            PushError::Full => SendError::Full { lane, limit: lane.send_queue() },
            PushError::Closed => SendError::Closed(self.end.borrow().clone().unwrap_or_else(gone)),
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Option<HashMap<Lane, queue::Sender<Frame>>>> {
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
    activation: queue::Sender<Inbound>,
    bulk: queue::Sender<Inbound>,
    pub(crate) datagrams: DatagramInlet,
}

/// Where a link's receiver takes it from. It ends when all clones of the inlets are gone.
pub(crate) struct Outlets {
    pub(crate) control: queue::Receiver<Inbound>,
    pub(crate) activation: queue::Receiver<Inbound>,
    pub(crate) bulk: queue::Receiver<Inbound>,
    pub(crate) datagrams: queue::Receiver<Bytes>,
}

pub(crate) fn inbound_queues() -> (Inlets, Outlets) {
    let (control, control_out) = queue::queue(Lane::Control.receive_queue());
    let (activation, activation_out) = queue::queue(Lane::Activation(0).receive_queue());
    let (bulk, bulk_out) = queue::queue(Lane::Bulk.receive_queue());
    let (datagrams, datagrams_out) = datagram_queue();
    (
        Inlets { control, activation, bulk, datagrams },
        Outlets {
            control: control_out,
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
            Lane::Activation(_) => &self.activation,
            Lane::Bulk => &self.bulk,
        };
        queue.push(frame.length(), Inbound { lane, frame }).await
    }
}
