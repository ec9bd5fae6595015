//! Messages as they come from a peer, which may run a later build.
//!
//! A link is closed over what no build of this protocol writes: bytes that are not one msgpack value.
//! Everything else that cannot be read is a message of another build. It is left unread, counted, and
//! logged once in a while, and the link stays.

use planaria_config::{Epoch, Incarnation, NodeId, SequenceId};
use planaria_transport::decode_message;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{DataBody, DataHeader};

/// A message, or why there is none.
#[derive(Debug)]
pub enum Received<T> {
    /// It is one that this build knows.
    Known(T),
    /// It is one of another build; in words, what this one stumbled over.
    Unknown(String),
    /// It is no message of any build.
    Garbage(String),
}

/// Reads a message.
#[must_use]
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Received<T> {
    match decode_message(bytes) {
        Ok(message) => Received::Known(message),
        Err(error) if decode_message::<IgnoredAny>(bytes).is_ok() => {
            Received::Unknown(error.to_string())
        }
        Err(error) => Received::Garbage(error.to_string()),
    }
}

/// What every build says of a data frame, whatever it carries.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Envelope {
    epoch: Epoch,
    sequence: SequenceId,
    owner: Incarnation,
    #[serde(default)]
    attempt: u16,
    position: u32,
}

impl Envelope {
    /// The envelope of a frame whose header this build does not know.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        decode_message(bytes).ok()
    }

    /// The plan under which the frame was sent.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The node whose client waits.
    #[must_use]
    pub const fn owner(&self) -> NodeId {
        self.owner.node
    }

    /// A header with another body in the same envelope.
    #[must_use]
    pub fn header(&self, body: DataBody) -> DataHeader {
        let Self { epoch, sequence, owner, attempt, position } = *self;
        DataHeader { epoch, sequence, owner, attempt, position, trace: None, sent: None, body }
    }
}

#[cfg(test)]
mod tests {
    use planaria_transport::encode_message;
    use serde::Serialize;

    use super::*;
    use crate::wire::{Bulk, Control};

    #[derive(Serialize)]
    enum OfTomorrow {
        Sing { loudly: bool },
        Hush,
    }

    #[test]
    fn a_message_of_another_build_is_told_from_garbage() {
        for message in [OfTomorrow::Sing { loudly: true }, OfTomorrow::Hush] {
            let bytes = encode_message(&message).unwrap();
            assert!(matches!(read::<Control>(&bytes), Received::Unknown(_)));
            assert!(matches!(read::<Bulk>(&bytes), Received::Unknown(_)));
        }
        let known = encode_message(&Control::Arrived { bytes: 1, micros: 2 }).unwrap();
        assert!(matches!(read::<Control>(&known), Received::Known(Control::Arrived { .. })));
        let twice = [&known[..], &known[..]].concat();
        let text = "GET / HTTP/1.1\r\n\r\n".as_bytes();
        for garbage in [&known[..known.len() - 1], &twice, text, &[], &[0xc1]] {
            assert!(matches!(read::<Control>(garbage), Received::Garbage(_)), "{garbage:?}");
        }
    }

    #[test]
    fn the_envelope_of_a_frame_is_read_whatever_is_in_it() {
        #[derive(Serialize)]
        struct Header {
            epoch: Epoch,
            sequence: SequenceId,
            owner: Incarnation,
            attempt: u16,
            position: u32,
            mood: &'static str,
            body: OfTomorrow,
        }
        let node = NodeId::from_bytes([3; 32]);
        let (epoch, sequence) = (Epoch { counter: 4, planner: node }, SequenceId::from_bits(9));
        let owner = Incarnation { node, generation: 2 };
        let body = OfTomorrow::Sing { loudly: false };
        let header = Header { epoch, sequence, owner, attempt: 5, position: 6, mood: "good", body };
        let bytes = encode_message(&header).unwrap();
        assert!(matches!(read::<DataHeader>(&bytes), Received::Unknown(_)));
        let envelope = Envelope::read(&bytes).unwrap();
        let expected = Envelope { epoch, sequence, owner, attempt: 5, position: 6 };
        assert_eq!(envelope, expected);
        let again = encode_message(&envelope.header(DataBody::PrefixGone)).unwrap();
        assert_eq!(Envelope::read(&again), Some(expected));
        assert_eq!(Envelope::read(&encode_message(&OfTomorrow::Hush).unwrap()), None);
    }
}
