//! Datagrams: small messages that are worthless when late.
//!
//! A datagram arrives whole or not at all, in no order. Nothing waits for one: when there is no
//! room, some are dropped, by the sender the oldest, by the receiver the newest.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use thiserror::Error;

use crate::link::CloseReason;
use crate::link_core::Core;
use crate::queue;

/// Any link carries datagrams up to this length: what fits beside QUIC's own bytes into the
/// smallest packet that every path must carry (1200).
pub const DATAGRAM_CAP: usize = 1100;

/// Bytes of datagrams that may wait for the receiver: a few hundred of those that are sent.
const RECEIVE_QUEUE: usize = 64 << 10;

/// Why a datagram was not sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DatagramError {
    /// No packet on this path carries that much. Make it shorter than [`DATAGRAM_CAP`], or use a
    /// lane.
    #[error("a datagram of {length} bytes is longer than the {limit} that the path carries")]
    TooLarge {
        /// The datagram's length.
        length: usize,
        /// The longest that the path carries now.
        limit: usize,
    },
    /// The peer takes no datagrams. It is not a Planaria node of this version.
    #[error("the peer takes no datagrams")]
    Unsupported,
    /// The link is gone.
    #[error("the link is gone: {0}")]
    Closed(CloseReason),
}

/// Receives datagrams. Dropping it closes the link.
pub struct DatagramReceiver {
    core: Arc<Core>,
    queue: queue::Receiver<Bytes>,
}

/// Where a carrier puts datagrams that arrive.
#[derive(Clone)]
pub(crate) struct DatagramInlet {
    queue: queue::Sender<Bytes>,
    dropped: Arc<AtomicU64>,
}

pub(crate) fn datagram_queue() -> (DatagramInlet, queue::Receiver<Bytes>) {
    let (sender, receiver) = queue::queue(RECEIVE_QUEUE);
    (DatagramInlet { queue: sender, dropped: Arc::default() }, receiver)
}

impl DatagramInlet {
    /// Hands a datagram to the receiver, or drops it when too many wait already.
    pub(crate) fn put(&self, datagram: Bytes) {
        if self.queue.try_push(datagram.len(), datagram).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::debug!(dropped, "datagrams came faster than they were taken");
            }
        }
    }
}

impl DatagramReceiver {
    pub(crate) const fn new(core: Arc<Core>, queue: queue::Receiver<Bytes>) -> Self {
        Self { core, queue }
    }

    /// The next datagram; `None` once the link is gone and everything that had arrived is taken.
    /// Cancel-safe.
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.queue.pop().await.map(|queued| queued.item)
    }
}

impl Drop for DatagramReceiver {
    fn drop(&mut self) {
        self.core.end(CloseReason::Here("nobody receives from it any more".to_owned()));
    }
}

impl fmt::Debug for DatagramReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatagramReceiver({})", self.core.peer().incarnation)
    }
}
