//! Messages as bytes: msgpack with field names.
//!
//! Names, not positions, so that a newer node may add fields which an older one skips. Tensors do
//! not belong here; they are a frame's payload.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A message that could not be written; a defect of its type, not of its contents.
#[derive(Debug, Error)]
#[error("the message cannot be written: {0}")]
pub struct Unencodable(#[from] rmp_serde::encode::Error);

/// Bytes that are not the expected message. Nothing of it may be used.
#[derive(Debug, Error)]
pub enum Malformed {
    /// Not msgpack, or msgpack of another shape.
    #[error("not the expected message: {0}")]
    Shape(#[from] rmp_serde::decode::Error),
    /// The message is complete and bytes are left over.
    #[error("{left} bytes follow the message")]
    Trailing {
        /// How many.
        left: usize,
    },
}

/// Writes a message.
///
/// Give fields of bytes the type `Bytes` or mark them with `serde_bytes`: a plain `Vec<u8>` takes
/// up to twice the space.
///
/// # Errors
/// When the type cannot be written as msgpack, such as a sequence without a length.
pub fn encode_message<T: Serialize>(message: &T) -> Result<Bytes, Unencodable> {
    Ok(rmp_serde::to_vec_named(message)?.into())
}

/// Reads a message that is all of `bytes`.
///
/// # Errors
/// When the bytes are not such a message, or more than one.
pub fn decode_message<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let mut left = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut left);
    reader.set_max_depth(MAX_DEPTH);
    let message = T::deserialize(&mut reader)?;
    if left.is_empty() { Ok(message) } else { Err(Malformed::Trailing { left: left.len() }) }
}

/// Far deeper than any message of ours, far shallower than what would use up a thread's stack.
const MAX_DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        step: u64,
        data: Bytes,
    }

    #[derive(Serialize, Deserialize)]
    struct New {
        step: u64,
        data: Bytes,
        #[serde(default)]
        hint: Option<String>,
    }

    #[test]
    fn older_and_newer_nodes_read_each_other() {
        let new = New { step: 3, data: Bytes::from_static(b"abc"), hint: Some("x".to_owned()) };
        let old: Old = decode_message(&encode_message(&new).unwrap()).unwrap();
        assert_eq!(old, Old { step: 3, data: Bytes::from_static(b"abc") });
        let new: New = decode_message(&encode_message(&old).unwrap()).unwrap();
        assert_eq!((new.step, new.data, new.hint), (old.step, old.data, None));
    }

    #[test]
    fn bytes_take_their_own_length() {
        let message = Old { step: 0, data: vec![0xff; 1000].into() };
        assert!(encode_message(&message).unwrap().len() < 1020);
    }

    #[test]
    fn what_follows_a_message_is_an_error() {
        let mut bytes = encode_message(&7_u32).unwrap().to_vec();
        bytes.push(0);
        let error = decode_message::<u32>(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "1 bytes follow the message");
    }

    #[test]
    fn depth_is_bounded() {
        let deep = vec![0x91; 100_000];
        assert!(decode_message::<serde::de::IgnoredAny>(&deep).is_err());
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = decode_message::<Old>(&bytes);
            let _ = decode_message::<Vec<String>>(&bytes);
        }
    }
}
