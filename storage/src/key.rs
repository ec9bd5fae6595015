//! What may name a row: types whose bytes sort as their values do.

use std::borrow::Cow;

use planaria_config::NodeId;

/// A type that can be the key of a [`Table`](crate::Table).
///
/// Bytes must sort as values do (a scan returns rows in the order of their bytes), and
/// `from_bytes` must undo `to_bytes`.
pub trait Key {
    /// What a scan hands back: the type itself, or its owned form.
    type Owned;

    /// The bytes under which the row is stored.
    fn to_bytes(&self) -> Cow<'_, [u8]>;

    /// The key that these bytes stand for; `None` when they stand for none.
    fn from_bytes(bytes: &[u8]) -> Option<Self::Owned>;
}

impl Key for str {
    type Owned = String;

    fn to_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.as_bytes())
    }

    fn from_bytes(bytes: &[u8]) -> Option<String> {
        std::str::from_utf8(bytes).ok().map(str::to_owned)
    }
}

impl Key for String {
    type Owned = Self;

    fn to_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.as_bytes())
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        str::from_bytes(bytes)
    }
}

impl Key for u64 {
    type Owned = Self;

    fn to_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.to_be_bytes().to_vec())
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

impl<const N: usize> Key for [u8; N] {
    type Owned = Self;

    fn to_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

impl Key for NodeId {
    type Owned = Self;

    fn to_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.as_bytes())
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip<K: Key<Owned = K> + PartialEq + std::fmt::Debug>(key: &K) {
        assert_eq!(K::from_bytes(&key.to_bytes()).as_ref(), Some(key));
    }

    proptest! {
        #[test]
        fn numbers_sort_as_their_bytes_do(a: u64, b: u64) {
            round_trip(&a);
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
        }

        #[test]
        fn texts_sort_as_their_bytes_do(a: String, b: String) {
            round_trip(&a);
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
        }

        #[test]
        fn digests_sort_as_their_bytes_do(a: [u8; 32], b: [u8; 32]) {
            let (a, b) = (NodeId::from_bytes(a), NodeId::from_bytes(b));
            round_trip(&a);
            round_trip(a.as_bytes());
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
        }
    }

    #[test]
    fn bytes_of_another_length_are_no_key() {
        assert_eq!(u64::from_bytes(&[0; 7]), None);
        assert_eq!(<[u8; 32]>::from_bytes(&[0; 33]), None);
        assert_eq!(str::from_bytes(&[0xff]), None);
    }
}
