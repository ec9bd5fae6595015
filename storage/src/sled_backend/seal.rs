//! The proof that a store's rows are all there.
//!
//! sled forgives damage: on opening, it drops whatever follows a record that it cannot read, be it
//! the end of its log or a part of the middle, and says nothing. So every commit carries a seal,
//! which counts commits and sums a hash of every row. It is kept twice: as a row of the same
//! atomic batch, and in a file beside sled (the watermark) after the flush. Rows that do not add
//! up to their seal, or a seal older than the watermark, mean that something was lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// The version of everything below the row level: directory layout, seal, key prefixes. A store
/// with a larger number is left alone.
pub const SCHEMA: u32 = 1;

const SEAL_BYTES: usize = 24;
const MAGIC: [u8; 8] = *b"planaria";
const WATERMARK_BYTES: usize = MAGIC.len() + SEAL_BYTES;

/// What is known of the rows after one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) schema: u32,
    /// Commits since the store was made.
    pub(crate) generation: u64,
    /// Sum of [`row_hash`] over all rows, wrapping.
    pub(crate) digest: u64,
}

impl Seal {
    /// That of a store without rows.
    pub(crate) const NEW: Self = Self { schema: SCHEMA, generation: 0, digest: 0 };

    pub(crate) fn encode(self) -> [u8; SEAL_BYTES] {
        let mut bytes = [0; SEAL_BYTES];
        let parts = self
            .schema
            .to_be_bytes()
            .into_iter()
            .chain(self.generation.to_be_bytes())
            .chain(self.digest.to_be_bytes());
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = from;
        }
        let crc = crc32fast::hash(&bytes[..SEAL_BYTES - 4]);
        bytes[SEAL_BYTES - 4..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (schema, rest) = bytes.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (digest, rest) = rest.split_first_chunk()?;
        let crc: [u8; 4] = rest.try_into().ok()?;
        let seal = Self {
            schema: u32::from_be_bytes(*schema),
            generation: u64::from_be_bytes(*generation),
            digest: u64::from_be_bytes(*digest),
        };
        let sealed = bytes.get(..SEAL_BYTES - 4)?;
        (u32::from_be_bytes(crc) == crc32fast::hash(sealed)).then_some(seal)
    }

    /// The seal after a row changed from one value to another; `None` is no row.
    pub(crate) fn change(&mut self, key: &[u8], from: Option<&[u8]>, to: Option<&[u8]>) {
        let hash = |value: Option<&[u8]>| value.map_or(0, |value| row_hash(key, value));
        self.digest = self.digest.wrapping_sub(hash(from)).wrapping_add(hash(to));
    }
}

/// FNV-1a, 64 bits, over the key's length, the key and the value. It guards against accidents
/// only, and has to be the same in every build forever. Parameters: Fowler, Noll, Vo,
/// draft-eastlake-fnv.
fn row_hash(key: &[u8], value: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let length = (key.len() as u64).to_be_bytes();
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
    length.iter().chain(key).chain(value).fold(OFFSET, mix)
}

/// The file that holds the seal of the last acknowledged commit.
///
/// It is overwritten in place without `fsync`: after a power loss it may be older than the rows,
/// which weakens the check and never fails a sound store.
#[derive(Debug)]
pub(crate) struct Watermark {
    file: File,
}

/// What a watermark file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// There is none: a new store, or somebody removed it.
    Missing,
    /// It is there and holds no seal.
    Unreadable,
    /// The seal of the last acknowledged commit.
    Seal(Seal),
}

impl Watermark {
    /// Reads without changing anything.
    pub(crate) fn read(path: &Path) -> io::Result<Mark> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(WATERMARK_BYTES as u64 + 1).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Mark::Missing),
            Err(error) => return Err(error),
        };
        let seal = bytes.strip_prefix(&MAGIC).and_then(Seal::decode);
        Ok(seal.map_or(Mark::Unreadable, Mark::Seal))
    }

    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.set_len(WATERMARK_BYTES as u64)?;
        Ok(Self { file })
    }

    pub(crate) fn write(&mut self, seal: Seal) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(seal.encode());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_seal_comes_back_and_no_flipped_bit_does(
            schema: u32, generation: u64, digest: u64, at in 0..SEAL_BYTES, bit in 0u8..8,
        ) {
            let seal = Seal { schema, generation, digest };
            let mut bytes = seal.encode();
            prop_assert_eq!(Seal::decode(&bytes), Some(seal));
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Seal::decode(&bytes), None);
        }

        #[test]
        fn the_digest_depends_on_the_rows_and_not_on_how_they_came_about(
            first: Vec<u8>, second: Vec<u8>, other: Vec<u8>,
        ) {
            let mut direct = Seal::NEW;
            direct.change(b"key", None, Some(&second));
            direct.change(&other, None, Some(b"value"));
            let mut indirect = Seal::NEW;
            indirect.change(&other, None, Some(b"value"));
            indirect.change(b"key", None, Some(&first));
            indirect.change(b"key", Some(&first), Some(&second));
            prop_assert_eq!(direct, indirect);
        }
    }

    #[test]
    fn a_byte_moved_between_key_and_value_changes_the_digest() {
        assert_ne!(row_hash(b"ab", b"c"), row_hash(b"a", b"bc"));
    }

    #[test]
    fn the_watermark_is_read_back_and_a_stranger_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        assert_eq!(Watermark::read(&path).unwrap(), Mark::Missing);
        let seal = Seal { generation: 7, ..Seal::NEW };
        Watermark::open(&path).unwrap().write(seal).unwrap();
        assert_eq!(Watermark::read(&path).unwrap(), Mark::Seal(seal));
        std::fs::write(&path, "something else").unwrap();
        assert_eq!(Watermark::read(&path).unwrap(), Mark::Unreadable);
    }
}
