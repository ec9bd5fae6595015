//! Datagrams that measure a path to a peer, beside QUIC on the same socket.
//!
//! A question is answered by a datagram of the same length, and only to an address of a peer, so that
//! nobody can be made to send more than he has sent, or to strangers. They hold nothing that
//! anybody could not know, and are believed where a random number comes back. They begin with eight bytes
//! that no QUIC packet of ours does but by a chance of one in 2^56: those behind the first are a
//! connection's id, which is random.

/// How all of them begin.
const MAGIC: [u8; 8] = [0x16, 0xa3, 0x7b, 0x0e, 0xd9, 0x52, 0xc4, 0x68];

/// Their length in bytes: what every path carries, by QUIC's own demand.
pub(crate) const PROBE_BYTES: usize = 1200;

/// Of a question, on the path that the node which dialed prefers.
const PREFERRED: u8 = 1;

/// What a probe is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// To be sent back.
    Question {
        /// Comes back in the answer.
        nonce: u64,
        /// Its number in a train, from 0.
        index: u8,
        /// Whether who dialed prefers this path.
        preferred: bool,
    },
    /// What was sent back.
    Answer {
        /// The question's.
        nonce: u64,
        /// The question's.
        index: u8,
    },
}

impl Probe {
    /// As it travels.
    pub(crate) fn encode(self) -> [u8; PROBE_BYTES] {
        let (kind, nonce, index, flags) = match self {
            Self::Question { nonce, index, preferred } => {
                (0, nonce, index, if preferred { PREFERRED } else { 0 })
            }
            Self::Answer { nonce, index } => (1, nonce, index, 0),
        };
        let fields = MAGIC.into_iter().chain(nonce.to_be_bytes()).chain([kind, index, flags]);
        let mut bytes = [0; PROBE_BYTES];
        for (byte, field) in bytes.iter_mut().zip(fields) {
            *byte = field;
        }
        bytes
    }

    /// `None` for what is no probe.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (nonce, rest) = rest.split_first_chunk::<8>()?;
        let ([kind, index, flags], _) = rest.split_first_chunk::<3>()?;
        if *magic != MAGIC || bytes.len() != PROBE_BYTES {
            return None;
        }
        let (nonce, index) = (u64::from_be_bytes(*nonce), *index);
        match kind {
            0 => Some(Self::Question { nonce, index, preferred: flags & PREFERRED != 0 }),
            1 => Some(Self::Answer { nonce, index }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_survive_the_wire_and_nothing_else_is_one() {
        let probes = [
            Probe::Question { nonce: 7, index: 31, preferred: true },
            Probe::Question { nonce: u64::MAX, index: 0, preferred: false },
            Probe::Answer { nonce: 7, index: 255 },
        ];
        for probe in probes {
            let bytes = probe.encode();
            assert_eq!(Probe::decode(&bytes), Some(probe));
            assert_eq!(Probe::decode(&bytes[..PROBE_BYTES - 1]), None);
        }
        let mut other = probes[0].encode();
        other[7] ^= 1;
        assert_eq!(Probe::decode(&other), None);
        assert_eq!(Probe::decode(&[]), None);
        let mut unknown = probes[0].encode();
        unknown[16] = 2;
        assert_eq!(Probe::decode(&unknown), None);
    }
}
