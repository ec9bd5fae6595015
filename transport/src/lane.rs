//! The lanes of a link: what shares a stream, how urgent it is, how much of it may pile up.

use std::fmt;
use std::time::Duration;

/// A lane keeps its frames in order. Between lanes there is no order, only urgency: control before exchanges before
/// activations before bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Small messages that must not wait.
    Control,
    /// What members of a group exchange in the middle of a step, for which all of them wait. Only to a peer that is known to
    /// read it: one that does not know the lane ends the link over it.
    Exchange,
    /// Hidden states, in order for each key of the caller's. There may be any number of keys: they share
    /// the link's streams once each of these has one.
    Activation(u64),
    /// Large and patient: weights, logs to replay.
    Bulk,
}

/// Cap on the length of a control frame: 1 MiB. Larger things are bulk.
pub const CONTROL_CAP: usize = 1 << 20;
/// Cap on the length of an activation frame: 64 MiB, a prefill step of 2048 tokens of 8192 f32
/// values, the widest common hidden state. A longer prompt goes in several steps.
pub const ACTIVATION_CAP: usize = (64 << 20) + (64 << 10);
/// Cap on the length of a bulk frame: 16 MiB. Whoever moves more cuts it up.
pub const BULK_CAP: usize = 16 << 20;

/// How many streams one side uses for activations on a link; more keys than that share them. Two plans of
/// a dozen edges each have their own. Their flow-control windows together bound what a link buffers.
pub const MAX_ACTIVATION_STREAMS: usize = 31;

/// The streams that a peer may have open: those for activations, its exchange lane and its bulk lane.
pub(crate) const MAX_UNI_STREAMS: u32 = 33;

/// A stream for activations on which nothing was sent for so long ends. Longer than a pause between two
/// tokens of any answer, so that no stream is opened in the middle of one.
pub(crate) const IDLE: Duration = Duration::from_secs(30);

impl Lane {
    /// The longest frame (see [`Frame::length`](crate::Frame::length)) that this lane carries.
    #[must_use]
    pub const fn cap(self) -> usize {
        match self {
            Self::Control => CONTROL_CAP,
            Self::Exchange | Self::Activation(_) => ACTIVATION_CAP,
            Self::Bulk => BULK_CAP,
        }
    }

    /// Bytes that may wait here to be sent, on each lane; a single longer frame may wait alone.
    ///
    /// More would only hide that the peer does not keep up; less would stall on a burst: a few
    /// hundred control messages, the steps of a full batch, one bulk frame while another is sent.
    pub(crate) const fn send_queue(self) -> usize {
        match self {
            Self::Control => 4 << 20,
            Self::Exchange | Self::Activation(_) => 16 << 20,
            Self::Bulk => 32 << 20,
        }
    }

    /// Bytes that may wait for the receiver, in all lanes of this class together; past it their
    /// streams are not read, and flow control stops the sender.
    pub(crate) const fn receive_queue(self) -> usize {
        match self {
            Self::Control => 4 << 20,
            Self::Exchange | Self::Activation(_) => 64 << 20,
            Self::Bulk => 16 << 20,
        }
    }

    /// For quinn: streams of a higher number are sent first.
    pub(crate) const fn priority(self) -> i32 {
        match self {
            Self::Control => 3,
            Self::Exchange => 2,
            Self::Activation(_) => 1,
            Self::Bulk => 0,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control lane"),
            Self::Exchange => f.write_str("exchange lane"),
            Self::Activation(key) => write!(f, "activation lane {key:016x}"),
            Self::Bulk => f.write_str("bulk lane"),
        }
    }
}

/// What every stream begins with: its class (one byte) and key (eight, big-endian; zero where the
/// class has none). A stream is invisible to its receiver until something is written to it.
pub(crate) const STREAM_HEADER: usize = 9;

/// A class of stream that this version does not know, or a key where none belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stream of unknown class {class} and key {key}")]
pub(crate) struct UnknownStream {
    class: u8,
    key: u64,
}

impl Lane {
    pub(crate) const fn stream_header(self) -> [u8; STREAM_HEADER] {
        let (class, key) = match self {
            Self::Control => (0, 0),
            Self::Activation(key) => (1, key),
            Self::Bulk => (2, 0),
            Self::Exchange => (3, 0),
        };
        let [a, b, c, d, e, f, g, h] = u64::to_be_bytes(key);
        [class, a, b, c, d, e, f, g, h]
    }

    pub(crate) const fn from_stream_header(
        header: [u8; STREAM_HEADER],
    ) -> Result<Self, UnknownStream> {
        let [class, a, b, c, d, e, f, g, h] = header;
        match (class, u64::from_be_bytes([a, b, c, d, e, f, g, h])) {
            (0, 0) => Ok(Self::Control),
            (1, key) => Ok(Self::Activation(key)),
            (2, 0) => Ok(Self::Bulk),
            (3, 0) => Ok(Self::Exchange),
            (class, key) => Err(UnknownStream { class, key }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn stream_headers_name_their_lane(header: [u8; STREAM_HEADER], key: u64) {
            for lane in [Lane::Control, Lane::Exchange, Lane::Activation(key), Lane::Bulk] {
                assert_eq!(Lane::from_stream_header(lane.stream_header()), Ok(lane));
            }
            if let Ok(lane) = Lane::from_stream_header(header) {
                assert_eq!(lane.stream_header(), header);
            }
        }
    }

    #[test]
    fn unknown_streams_are_named() {
        let error = Lane::from_stream_header([9, 0, 0, 0, 0, 0, 0, 0, 4]).unwrap_err();
        assert_eq!(error.to_string(), "a stream of unknown class 9 and key 4");
        assert!(Lane::from_stream_header([0, 0, 0, 0, 0, 0, 0, 0, 1]).is_err());
    }
}
