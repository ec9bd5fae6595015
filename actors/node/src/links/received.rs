//! Messages as they come from a peer, which may run a later build.
//!
//! A link is closed over what no build of this protocol writes: bytes that are not one msgpack value.
//! Everything else that cannot be read is a message of another build. It is left unread, counted, and
//! logged once in a while, and the link stays.

use planaria_transport::decode_message;
use serde::de::{DeserializeOwned, IgnoredAny};

/// A message, or why there is none.
#[derive(Debug)]
pub(crate) enum Received<T> {
    /// It is one that this build knows.
    Known(T),
    /// It is one of another build; in words, what this one stumbled over.
    Unknown(String),
    /// It is no message of any build.
    Garbage(String),
}

/// Reads a message.
#[must_use]
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Received<T> {
    match decode_message(bytes) {
        Ok(message) => Received::Known(message),
        Err(error) if decode_message::<IgnoredAny>(bytes).is_ok() => {
            Received::Unknown(error.to_string())
        }
        Err(error) => Received::Garbage(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use planaria_protocol::wire::{Bulk, Control};
    use planaria_transport::encode_message;
    use serde::Serialize;

    use super::*;

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
}
