//! Some of a model's layers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::LayerRange;

/// Layers as the fewest ranges that hold them: in order, with a gap between each two.
///
/// What a worker holds: most of the time one range, and two while it changes to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(from = "Vec<LayerRange>", into = "Vec<LayerRange>")]
pub struct LayerSet {
    runs: Vec<LayerRange>,
}

impl LayerSet {
    /// No layers.
    pub const EMPTY: Self = Self { runs: Vec::new() };

    /// Its ranges, in order.
    #[must_use]
    pub fn runs(&self) -> &[LayerRange] {
        &self.runs
    }

    /// Its layers, in order.
    pub fn layers(&self) -> impl Iterator<Item = u32> {
        self.runs.iter().flat_map(|run| run.range())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether `layer` is one of them.
    #[must_use]
    pub fn contains(&self, layer: u32) -> bool {
        self.runs.iter().any(|run| run.contains(layer))
    }

    /// Whether all of `layers` are among them.
    #[must_use]
    pub fn covers(&self, layers: LayerRange) -> bool {
        self.runs.iter().any(|run| run.contains(layers.first()) && run.contains(layers.last()))
    }

    /// With these layers, too.
    #[must_use]
    pub fn with(&self, layers: LayerRange) -> Self {
        self.runs.iter().copied().chain([layers]).collect()
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.layers().filter(|layer| !other.contains(*layer)).filter_map(alone).collect()
    }

    /// Those that are in `other`, too.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        self.layers().filter(|layer| other.contains(*layer)).filter_map(alone).collect()
    }
}

fn alone(layer: u32) -> Option<LayerRange> {
    LayerRange::half_open(layer, layer.checked_add(1)?)
}

impl From<LayerRange> for LayerSet {
    fn from(layers: LayerRange) -> Self {
        Self { runs: vec![layers] }
    }
}

/// Ranges in any order, which may overlap.
impl From<Vec<LayerRange>> for LayerSet {
    fn from(mut ranges: Vec<LayerRange>) -> Self {
        ranges.sort_unstable();
        let mut runs: Vec<LayerRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match runs.last_mut() {
                Some(run) if range.first() <= run.last() + 1 => {
                    let last = run.last().max(range.last());
                    *run = LayerRange::inclusive(run.first(), last).unwrap_or(*run);
                }
                _ => runs.push(range),
            }
        }
        Self { runs }
    }
}

impl From<LayerSet> for Vec<LayerRange> {
    fn from(layers: LayerSet) -> Self {
        layers.runs
    }
}

impl FromIterator<LayerRange> for LayerSet {
    fn from_iter<T: IntoIterator<Item = LayerRange>>(ranges: T) -> Self {
        ranges.into_iter().collect::<Vec<_>>().into()
    }
}

/// `0-3`, or `0-3, 8-11`, or `none`.
impl fmt::Display for LayerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, run) in self.runs.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{run}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, last: u32) -> LayerRange {
        LayerRange::inclusive(first, last).unwrap()
    }

    fn set(ranges: &[(u32, u32)]) -> LayerSet {
        ranges.iter().map(|(first, last)| range(*first, *last)).collect()
    }

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(set(&[(4, 5), (0, 3)]).runs(), [range(0, 5)]);
        assert_eq!(set(&[(0, 7), (2, 3)]).runs(), [range(0, 7)]);
        assert_eq!(set(&[(8, 9), (0, 3)]).to_string(), "0-3, 8-9");
        assert_eq!(LayerSet::EMPTY.to_string(), "none");
    }

    #[test]
    fn differences_and_what_is_shared() {
        let (some, others) = (set(&[(0, 5), (8, 9)]), set(&[(4, 8)]));
        assert_eq!(some.without(&others), set(&[(0, 3), (9, 9)]));
        assert_eq!(some.within(&others), set(&[(4, 5), (8, 8)]));
        assert_eq!(some.with(range(6, 7)), set(&[(0, 9)]));
        assert!(some.covers(range(1, 5)) && !some.covers(range(5, 8)) && !some.contains(6));
    }

    #[test]
    fn what_a_peer_sends_is_put_in_order() {
        let layers = LayerSet::from(vec![range(4, 5), range(0, 4), range(9, 9)]);
        assert_eq!(layers.runs(), [range(0, 5), range(9, 9)]);
    }
}
