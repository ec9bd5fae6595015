//! What is read of a data frame that a later build has made.

use planaria_config::{Epoch, Incarnation, NodeId, SequenceId};
use serde::Deserialize;

use super::{DataBody, DataHeader};

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
    use rmp_serde::{from_slice, to_vec_named};
    use serde::Serialize;

    use super::*;

    #[derive(Serialize)]
    enum OfTomorrow {
        Sing { loudly: bool },
        Hush,
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
        let owner = Incarnation { node, boot_count: 2 };
        let body = OfTomorrow::Sing { loudly: false };
        let header = Header { epoch, sequence, owner, attempt: 5, position: 6, mood: "good", body };
        let bytes = to_vec_named(&header).unwrap();
        assert!(from_slice::<DataHeader>(&bytes).is_err());
        let envelope: Envelope = from_slice(&bytes).unwrap();
        let expected = Envelope { epoch, sequence, owner, attempt: 5, position: 6 };
        assert_eq!(envelope, expected);
        let again = to_vec_named(&envelope.header(DataBody::PrefixGone)).unwrap();
        assert_eq!(from_slice::<Envelope>(&again).unwrap(), expected);
        assert!(from_slice::<Envelope>(&to_vec_named(&OfTomorrow::Hush).unwrap()).is_err());
    }
}
