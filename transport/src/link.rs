//! A link: what two nodes hold of each other while they are connected.
//!
//! A [`Link`] is made by an [`Endpoint`](crate::Endpoint) (over QUIC) or by
//! [`memory_pair`](crate::memory_pair) (within a process); what follows is the same for both.
//! Sending never blocks: each lane has a bounded queue, and a carrier moves its frames. Receiving
//! comes from bounded queues too, one for each class of lane, so whoever does not receive slows
//! the sender of that class down and nobody else. Datagrams slow nobody down: they are dropped.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use planaria_config::Incarnation;
use thiserror::Error;

use crate::datagram::{DatagramError, DatagramReceiver};
use crate::frame::Frame;
use crate::lane::Lane;
use crate::link_core::{Core, Outlets};
use crate::paths::Path;
use crate::queue;

/// The node at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Which life of which node. The node is proved by its certificate.
    pub incarnation: Incarnation,
    /// What people call it, in its own words.
    pub name: String,
    /// What its upper layer says of itself, as of the greeting.
    pub info: Bytes,
    /// What it understands beyond what every node of this major version does, a word each.
    pub features: Vec<String>,
    /// Which process it is, if it says so: two that share an identity differ in it.
    pub process: Option<u64>,
    /// Where it was when the link was made.
    pub address: SocketAddr,
}

/// A live connection to a peer. Dropping it closes it.
#[derive(Debug)]
pub struct Link {
    sender: LinkSender,
    receiver: LinkReceiver,
}

/// Sends to the peer. Clones share the link; the link lives until its receiver is dropped.
#[derive(Clone)]
pub struct LinkSender {
    core: Arc<Core>,
}

/// Receives from the peer, by urgency. Take the fields apart to receive each class on its own;
/// dropping any of them closes the link.
#[derive(Debug)]
pub struct LinkReceiver {
    /// Frames of the control lane.
    pub control: LaneReceiver,
    /// Frames of the exchange lane.
    pub exchange: LaneReceiver,
    /// Frames of all activation lanes.
    pub activation: LaneReceiver,
    /// Frames of the bulk lane.
    pub bulk: LaneReceiver,
    /// Datagrams.
    pub datagrams: DatagramReceiver,
}

/// Receives the lanes of one class, each in order.
pub struct LaneReceiver {
    core: Arc<Core>,
    queue: queue::Receiver<Inbound>,
}

/// A frame that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The lane for which the stream was opened that it came on. Activations of other lanes may share it.
    pub lane: Lane,
    /// The frame.
    pub frame: Frame,
}

/// Why a frame was not taken. It was not sent and will not be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SendError {
    /// The peer does not keep up. Try later, or give the peer up.
    #[error("the {lane} is full: {limit} bytes wait to be sent")]
    Full {
        /// The lane.
        lane: Lane,
        /// How many bytes may wait on it.
        limit: usize,
    },
    /// The link is gone.
    #[error("the link is gone: {0}")]
    Closed(CloseReason),
    /// The lane never carries a frame of this length. Cut it up.
    #[error("a frame of {length} bytes is over the {lane}'s cap of {cap}")]
    TooLarge {
        /// The lane.
        lane: Lane,
        /// The frame's length.
        length: usize,
        /// The lane's cap.
        cap: usize,
    },
}

/// Why a link ended. Frames that were still queued may or may not have arrived.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CloseReason {
    /// This node closed it.
    #[error("closed here: {0}")]
    Here(String),
    /// The peer closed it and gave this reason.
    #[error("closed by the peer: {0}")]
    Peer(String),
    /// The peer sent what no peer may send.
    #[error("the peer broke the protocol: {0}")]
    Violation(String),
    /// Nothing was heard from the peer: dead, frozen or cut off.
    #[error("nothing was heard from the peer for {0:?}")]
    Silent(Duration),
    /// The connection failed in another way.
    #[error("the connection failed: {0}")]
    Failed(String),
}

impl Link {
    pub(crate) fn new(core: Arc<Core>, outlets: Outlets) -> Self {
        let lane = |queue| LaneReceiver { core: Arc::clone(&core), queue };
        let receiver = LinkReceiver {
            control: lane(outlets.control),
            exchange: lane(outlets.exchange),
            activation: lane(outlets.activation),
            bulk: lane(outlets.bulk),
            datagrams: DatagramReceiver::new(Arc::clone(&core), outlets.datagrams),
        };
        Self { sender: LinkSender { core }, receiver }
    }

    pub(crate) const fn core(&self) -> &Arc<Core> {
        &self.sender.core
    }

    /// The node at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.sender.peer()
    }

    /// Whether this node dialed. Of two links between a pair, both sides can so choose the same.
    #[must_use]
    pub fn dialed_by_us(&self) -> bool {
        self.sender.dialed_by_us()
    }

    /// The current estimate of the round trip to the peer; zero within a process.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.sender.rtt()
    }

    /// See [`LinkSender::set_alternates`].
    pub fn set_alternates(&self, addresses: &[SocketAddr]) {
        self.sender.set_alternates(addresses);
    }

    /// The two halves, for different tasks.
    #[must_use]
    pub fn split(self) -> (LinkSender, LinkReceiver) {
        (self.sender, self.receiver)
    }
}

impl LinkSender {
    /// The node at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.core.peer()
    }

    /// Whether this node dialed.
    #[must_use]
    pub fn dialed_by_us(&self) -> bool {
        self.core.dialed_by_us()
    }

    /// The current estimate of the round trip to the peer; zero within a process.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.core.rtt()
    }

    /// The peer can be reached at these addresses as well, and at no others that were said before.
    /// When it does not answer where it was last heard from, it is tried at all of them, so that the
    /// link outlives the loss of a path; what was lost with it is sent again. At most eight count.
    pub fn set_alternates(&self, addresses: &[SocketAddr]) {
        self.core.set_alternates(addresses);
    }

    /// The paths to the peer that [`set_alternates`](Self::set_alternates) told of and the one by which
    /// the link was made, each measured every few seconds; none if there is only one. The node that
    /// dialed has both use another once that was clearly better for a while.
    #[must_use]
    pub fn paths(&self) -> Vec<Path> {
        self.core.paths()
    }

    /// The peer should have answered by now: until it is heard where it was last heard from, it is
    /// tried at its other addresses as well. Nobody need ask for this; whoever waits for an answer
    /// knows sooner than the link that it is late.
    pub fn probe_all_paths(&self) {
        self.core.probe_all_paths();
    }

    /// Where the peer is now: a node that dialed and then gets another address keeps its links.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.core.address()
    }

    /// Queues a frame and returns at once. `Ok` promises nothing about its arrival.
    ///
    /// # Errors
    /// When the lane is full, the frame too long, or the link gone.
    pub fn try_send(&self, lane: Lane, frame: Frame) -> Result<(), SendError> {
        let length = admit(lane, &frame)?;
        let pushed = self.core.try_push(lane, length, frame);
        pushed.map_err(|error| self.core.send_error(lane, error))
    }

    /// Queues a frame as soon as the lane has room.
    ///
    /// # Errors
    /// When the frame is too long, or the link gone; never [`SendError::Full`].
    pub async fn send(&self, lane: Lane, frame: Frame) -> Result<(), SendError> {
        let length = admit(lane, &frame)?;
        let pushed = match self.core.outgoing(lane) {
            Ok(queue) => queue.push(length, frame).await,
            Err(error) => Err(error),
        };
        pushed.map_err(|error| self.core.send_error(lane, error))
    }

    /// Sends a datagram if it can be sent now or soon; when datagrams pile up, the oldest are
    /// dropped. Returns at once. `Ok` promises nothing about its arrival.
    ///
    /// # Errors
    /// When it is too long for the path, the peer takes none, or the link is gone.
    pub fn try_send_datagram(&self, datagram: Bytes) -> Result<(), DatagramError> {
        self.core.send_datagram(datagram)
    }

    /// How many streams are open for activations, or about to end.
    #[must_use]
    pub fn activation_streams(&self) -> usize {
        self.core.activation_streams()
    }

    /// Closes the link at once and tells the peer why. Queued frames are dropped.
    pub fn close(&self, reason: &str) {
        self.core.end(CloseReason::Here(reason.to_owned()));
    }

    /// Resolves when the link is gone, for whatever reason.
    pub async fn closed(&self) -> CloseReason {
        self.core.ended().await
    }
}

impl LinkReceiver {
    /// The next frame: control before exchanges before activations before bulk, each lane in order. `None` once
    /// the link is gone and everything that had arrived is taken. Datagrams are not among them.
    /// Cancel-safe.
    pub async fn recv(&mut self) -> Option<Inbound> {
        tokio::select! {
            biased;
            Some(inbound) = self.control.recv() => Some(inbound),
            Some(inbound) = self.exchange.recv() => Some(inbound),
            Some(inbound) = self.activation.recv() => Some(inbound),
            Some(inbound) = self.bulk.recv() => Some(inbound),
            else => None,
        }
    }
}

impl LaneReceiver {
    /// The next frame of this class; `None` as in [`LinkReceiver::recv`]. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Inbound> {
        self.queue.pop().await.map(|queued| queued.item)
    }
}

impl Drop for LaneReceiver {
    fn drop(&mut self) {
        self.core.end(CloseReason::Here("nobody receives from it any more".to_owned()));
    }
}

impl fmt::Debug for LinkSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.core.peer();
        write!(f, "LinkSender({} at {})", peer.incarnation, peer.address)
    }
}

impl fmt::Debug for LaneReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneReceiver({})", self.core.peer().incarnation)
    }
}

fn admit(lane: Lane, frame: &Frame) -> Result<usize, SendError> {
    let (length, cap) = (frame.length(), lane.cap());
    if length > cap { Err(SendError::TooLarge { lane, length, cap }) } else { Ok(length) }
}
