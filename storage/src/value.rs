//! A value on disk: version (1 byte), CRC-32 (4 bytes, big endian), MessagePack with field names.
//!
//! The checksum covers the version and the row's key too, so a value that turns up under another
//! key is noticed.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The layout described above. A value with another number was written by another planaria.
const VERSION: u8 = 1;

/// Version and checksum.
const HEADER_BYTES: usize = 5;

/// Why bytes are no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ValueError {
    /// Written by a planaria that stores values in a newer way.
    Newer(u8),
    /// Not what was stored, for the reason given.
    Damaged(String),
}

pub(crate) fn encode<V: Serialize + ?Sized>(key: &[u8], value: &V) -> Result<Vec<u8>, String> {
    let payload = rmp_serde::to_vec_named(value).map_err(|error| error.to_string())?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(VERSION);
    bytes.extend(checksum(VERSION, key, &payload).to_be_bytes());
    bytes.extend(payload);
    Ok(bytes)
}

pub(crate) fn decode<V: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<V, ValueError> {
    let damaged = |why: &str| ValueError::Damaged(why.to_owned());
    let (version, rest) = bytes.split_first().ok_or_else(|| damaged("it is empty"))?;
    if *version > VERSION {
        return Err(ValueError::Newer(*version));
    }
    let (stored, payload) = rest.split_first_chunk().ok_or_else(|| damaged("it is cut short"))?;
    if u32::from_be_bytes(*stored) != checksum(*version, key, payload) {
        return Err(damaged("its checksum is wrong"));
    }
    rmp_serde::from_slice(payload)
        .map_err(|error| ValueError::Damaged(format!("it is of another type: {error}")))
}

fn checksum(version: u8, key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[version]);
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_comes_back(key: Vec<u8>, value: (u64, String, Option<Vec<u8>>)) {
            let bytes = encode(&key, &value).unwrap();
            prop_assert_eq!(decode(&key, &bytes), Ok(value));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode::<(u64, String)>(b"key", &bytes);
        }
    }

    #[test]
    fn any_single_flipped_bit_is_noticed() {
        let sound = encode(b"key", &(0u64, "text".to_owned())).unwrap();
        for at in 0..sound.len() * 8 {
            let mut flipped = sound.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(decode::<(u64, String)>(b"key", &flipped).is_err(), "bit {at}");
        }
    }

    #[test]
    fn a_value_under_another_key_is_noticed() {
        let bytes = encode(b"a", &1u8).unwrap();
        assert!(matches!(decode::<u8>(b"b", &bytes), Err(ValueError::Damaged(_))));
    }

    #[test]
    fn a_newer_value_says_so() {
        let mut bytes = encode(b"a", &1u8).unwrap();
        bytes[0] = VERSION + 1;
        assert_eq!(decode::<u8>(b"a", &bytes), Err(ValueError::Newer(VERSION + 1)));
    }
}
