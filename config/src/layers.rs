//! A contiguous range of a model's layers.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A range of layers, counted from 0; never empty.
///
/// Written and serialized with both ends inclusive, as everything that people and scripts read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Inclusive", into = "Inclusive")]
pub struct LayerRange {
    first: u32,
    last: u32,
}

/// The last layer of a range came before its first, or is more than any model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("layers {first} to {last} are no range")]
pub struct InvalidLayerRange {
    first: u32,
    last: u32,
}

/// A text that is no range of layers.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotLayers {
    /// It is written otherwise.
    #[error("`{0}` is no range of layers: write `0-11`, or `7` for a single one")]
    Unreadable(String),
    /// There is no such range.
    #[error(transparent)]
    Invalid(#[from] InvalidLayerRange),
}

/// More layers than any model has, so that a count never overflows, whoever sent the range.
const MAX_LAYERS: u32 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Inclusive {
    first_layer: u32,
    last_layer: u32,
}

impl LayerRange {
    /// The layers from `first` to `last`, both included.
    ///
    /// # Errors
    /// When `last` comes before `first`, or is more than any model has.
    pub const fn inclusive(first: u32, last: u32) -> Result<Self, InvalidLayerRange> {
        if last < first || last >= MAX_LAYERS {
            Err(InvalidLayerRange { first, last })
        } else {
            Ok(Self { first, last })
        }
    }

    /// The layers from `start` up to but not including `end`; `None` when that is nothing.
    #[must_use]
    pub const fn half_open(start: u32, end: u32) -> Option<Self> {
        if start < end && end <= MAX_LAYERS {
            Some(Self { first: start, last: end - 1 })
        } else {
            None
        }
    }

    /// The first layer.
    #[must_use]
    pub const fn first(self) -> u32 {
        self.first
    }

    /// The last layer, included.
    #[must_use]
    pub const fn last(self) -> u32 {
        self.last
    }

    /// How many layers, at least one.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.last - self.first + 1
    }

    /// Whether `layer` is one of them.
    #[must_use]
    pub const fn contains(self, layer: u32) -> bool {
        self.first <= layer && layer <= self.last
    }

    /// The layers as a half-open range.
    #[must_use]
    pub const fn range(self) -> Range<u32> {
        self.first..self.last + 1
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for LayerRange {
    type Err = NotLayers;

    fn from_str(text: &str) -> Result<Self, NotLayers> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |part: &str| part.trim().parse::<u32>();
        match (number(first), number(last)) {
            (Ok(first), Ok(last)) => Ok(Self::inclusive(first, last)?),
            _ => Err(NotLayers::Unreadable(text.to_owned())),
        }
    }
}

impl From<LayerRange> for Inclusive {
    fn from(range: LayerRange) -> Self {
        Self { first_layer: range.first, last_layer: range.last }
    }
}

impl TryFrom<Inclusive> for LayerRange {
    type Error = InvalidLayerRange;

    fn try_from(range: Inclusive) -> Result<Self, InvalidLayerRange> {
        Self::inclusive(range.first_layer, range.last_layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_bounds() {
        let range = LayerRange::half_open(4, 9).unwrap();
        assert_eq!((range.first(), range.last(), range.count()), (4, 8, 5));
        assert!(range.contains(8) && !range.contains(9));
        assert_eq!(LayerRange::half_open(3, 3), None);
        assert!(LayerRange::inclusive(3, 2).is_err());
        assert!(LayerRange::inclusive(0, u32::MAX).is_err());
    }

    #[test]
    fn ranges_survive_text() {
        let range = LayerRange::inclusive(4, 11).unwrap();
        assert_eq!(range.to_string().parse(), Ok(range));
        assert_eq!("7".parse(), Ok(LayerRange::inclusive(7, 7).unwrap()));
        for wrong in ["", "-", "4-", "a-b", "11-4", "-3", "1-2-3"] {
            assert!(wrong.parse::<LayerRange>().is_err(), "{wrong}");
        }
    }
}
