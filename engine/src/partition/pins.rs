//! Layers that somebody has chosen for some nodes.

use std::num::NonZeroU32;

use planaria_config::{LayerRange, NodeId};
use thiserror::Error;

/// Why pins cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Conflict {
    /// The model has no such layers.
    #[error("a node is pinned to layers {layers}, and the model has {of}")]
    Beyond {
        /// The layers.
        layers: LayerRange,
        /// How many there are.
        of: u32,
    },
    /// Two nodes are pinned to the same layers.
    #[error("nodes are pinned to layers {0} and {1}, which overlap")]
    Overlap(LayerRange, LayerRange),
    /// The node lacks the memory.
    #[error("the node that is pinned to layers {0} has no memory for them")]
    TooLarge(LayerRange),
    /// Its layers cannot be cut from each other.
    #[error("a node is pinned to some of the layers, which cannot be cut from each other")]
    Whole,
    /// The nodes that are not pinned lack it, or are too few, or not connected.
    #[error("the layers that no node is pinned to do not fit into the others")]
    Rest,
}

/// Ranges that exclude each other, of different nodes, in their order.
#[derive(Debug, Clone)]
pub struct Pins(Vec<(NodeId, LayerRange)>);

impl Pins {
    /// Puts pins of a model with so many layers in order.
    ///
    /// # Errors
    /// When no division can follow all of them.
    pub fn new(
        pins: impl IntoIterator<Item = (NodeId, LayerRange)>,
        layers: NonZeroU32,
    ) -> Result<Self, Conflict> {
        let mut pins: Vec<_> = pins.into_iter().collect();
        pins.sort_by_key(|(node, layers)| (layers.first(), layers.last(), *node));
        let mut former: Option<LayerRange> = None;
        for (_, range) in &pins {
            if range.last() >= layers.get() {
                return Err(Conflict::Beyond { layers: *range, of: layers.get() });
            }
            if let Some(former) = former.filter(|former| former.last() >= range.first()) {
                return Err(Conflict::Overlap(former, *range));
            }
            former = Some(*range);
        }
        Ok(Self(pins))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, LayerRange)> {
        self.0.iter().copied()
    }

    /// Whether nobody is pinned.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The layers between the pinned ranges, of a model with so many.
    pub(super) fn gaps(&self, layers: u32) -> Vec<LayerRange> {
        let mut start = 0;
        let firsts = self.iter().map(|(_, range)| (range.first(), range.last() + 1));
        let gaps = firsts.chain(std::iter::once((layers, layers))).filter_map(|(first, end)| {
            let gap = LayerRange::half_open(start, first);
            start = end;
            gap
        });
        gaps.collect()
    }
}
