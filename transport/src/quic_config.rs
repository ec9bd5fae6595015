//! How QUIC is set up: what is noticed when, and how much memory a peer can make us use.

use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

use crate::lane::MAX_UNI_STREAMS;

/// The times that an endpoint lives by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How often a quiet link is proved alive. Default 250 ms: six chances before the link is
    /// given up, for one small packet each.
    pub keep_alive: Duration,
    /// A link on which nothing is heard for this long is gone. Default 1.5 s.
    ///
    /// A killed process (SIGKILL) says nothing, so this is when its peers notice it; so is a
    /// frozen one (SIGSTOP), which finds its links gone if it thaws later than this and goes on
    /// undisturbed if it thaws sooner. Lower notices sooner and takes a busy machine or a Wi-Fi
    /// channel scan (up to about a second) for a death; higher lets clients wait. The smaller of
    /// both sides' values counts, and never less than three probe timeouts of the path.
    pub idle: Duration,
    /// How long dialing and greeting may take, on either side. Default 5 s: a lost first packet
    /// is sent again after 0.3, 0.9 and 2.1 s, and that should still succeed.
    pub handshake: Duration,
    /// How often the paths to a peer that has several are measured: a packet by each of them, and a train
    /// of up to 38 kB every sixth time. Default 5 s; a better path is used after four times as long.
    pub measure: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_millis(250),
            idle: Duration::from_millis(1500),
            handshake: Duration::from_secs(5),
            measure: Duration::from_secs(5),
        }
    }
}

/// Times that contradict one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLimits {
    /// A quiet link would be given up between two proofs of life.
    #[error("keep_alive must be over zero and at most half of idle, so that one may be lost")]
    KeepAlive,
    /// QUIC cannot express it, or nothing could be done in no time.
    #[error("idle, handshake and measure must be over zero and below a year")]
    Range,
}

impl Limits {
    pub(crate) fn check(self) -> Result<(), InvalidLimits> {
        let year = Duration::from_secs(365 * 24 * 3600);
        if [self.idle, self.handshake, self.measure]
            .iter()
            .any(|time| time.is_zero() || *time > year)
        {
            Err(InvalidLimits::Range)
        } else if self.keep_alive.is_zero() || self.keep_alive.saturating_mul(2) > self.idle {
            Err(InvalidLimits::KeepAlive)
        } else {
            Ok(())
        }
    }
}

/// The configuration of one side of a connection. The dialing side opens the control stream and
/// accepts no bidirectional stream.
pub(crate) fn transport_config(limits: Limits, dialing: bool) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(IdleTimeout::try_from(limits.idle).ok())
        .keep_alive_interval(Some(limits.keep_alive))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(u32::from(!dialing)))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_UNI_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
    Arc::new(config)
}

/// What a round trip is taken for before one was measured. A first packet that is not answered goes
/// again after three of them: nodes that start together dial some that do not listen yet, and with
/// QUIC's own guess (333 ms) each of them would wait a second. On a slower path it goes twice.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// What a peer may send on one stream before it is read. 2 MiB keep 10 Gbit/s busy over a round
/// trip of 1.6 ms, more than a LAN has.
const STREAM_WINDOW: u32 = 2 << 20;
/// The same for a whole connection, and what may be sent and not yet acknowledged: the windows of all streams together. So
/// streams that nobody reads never use up the room of the control stream, neither at the receiver nor at the sender. A seventh
/// more, because a receiver that has read tells the sender only once it is worth an eighth of this window.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * (MAX_UNI_STREAMS + 1) / 7 * 8;
/// Datagrams of a peer that were not read yet, or not sent: a few hundred small ones. They are
/// worthless when late, so more would help nobody; past it the oldest are dropped.
const DATAGRAM_BUFFER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_must_make_sense() {
        let limits = Limits::default();
        assert_eq!(limits.check(), Ok(()));
        let keep_alive = limits.idle;
        assert_eq!(Limits { keep_alive, ..limits }.check(), Err(InvalidLimits::KeepAlive));
        assert_eq!(Limits { idle: Duration::MAX, ..limits }.check(), Err(InvalidLimits::Range));
        assert_eq!(
            Limits { handshake: Duration::ZERO, ..limits }.check(),
            Err(InvalidLimits::Range)
        );
    }
}
