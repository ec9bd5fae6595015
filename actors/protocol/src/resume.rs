//! How a sequence that was interrupted goes on: where each layer does, and from which hidden states.

use planaria_config::LayerRange;
use serde::{Deserialize, Serialize};

/// Hidden states that a stage has kept: what a layer gave for these positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The layer.
    pub behind: u32,
    /// The first position.
    pub start: u32,
    /// The position after the last.
    pub end: u32,
}

/// Where some layers go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpan {
    /// The layers.
    pub layers: LayerRange,
    /// The first position that they compute.
    pub from: u32,
}

/// Where every layer of a model goes on with a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumePlan {
    /// All layers, in order; neighbours that go on from the same position are in the same span if they
    /// are in the same stage.
    #[serde(rename = "parts")]
    pub spans: Vec<LayerSpan>,
    /// What is taken from boundary logs.
    pub from_logs: Vec<Kept>,
}

impl ResumePlan {
    /// The first position that a layer computes; `None` if there is no such layer.
    #[must_use]
    pub fn from(&self, layer: u32) -> Option<u32> {
        self.spans.iter().find(|span| span.layers.contains(layer)).map(|span| span.from)
    }

    /// Positions that are computed again, counted once for each layer; the last one, which would be
    /// computed anyway, is none of them.
    #[must_use]
    pub fn rebuilt(&self, length: u32) -> u64 {
        let last = length.saturating_sub(1);
        let again = |span: &LayerSpan| {
            u64::from(last - span.from.min(last)) * u64::from(span.layers.count())
        };
        self.spans.iter().map(again).sum()
    }

    /// Positions of which anything is computed again.
    #[must_use]
    pub fn replayed(&self, length: u32) -> u32 {
        let last = length.saturating_sub(1);
        let first = self.spans.iter().map(|span| span.from).min().unwrap_or(last);
        last.saturating_sub(first)
    }

    /// The layers that `position` passes from `first` on, within `stage`, and whether the layer behind
    /// the stage computes it as well. `None` if `first` does not.
    #[must_use]
    pub fn route(
        &self,
        first: u32,
        stage: LayerRange,
        position: u32,
    ) -> Option<(LayerRange, bool)> {
        let computes = |layer: u32| self.from(layer).is_some_and(|from| from <= position);
        let passed = (first..=stage.last()).take_while(|layer| computes(*layer)).last()?;
        let goes_on = passed == stage.last() && computes(passed + 1);
        Some((LayerRange::inclusive(first, passed).ok()?, goes_on))
    }

    /// Cuts positions where some layer from `first` on, within `stage` or right behind it, begins to
    /// compute: each piece takes one route.
    #[must_use]
    pub fn pieces(
        &self,
        first: u32,
        stage: LayerRange,
        positions: std::ops::Range<u32>,
    ) -> Vec<std::ops::Range<u32>> {
        let mut cuts: Vec<u32> = (first..=stage.last() + 1)
            .filter_map(|layer| self.from(layer))
            .filter(|from| positions.start < *from && *from < positions.end)
            .chain([positions.start, positions.end])
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        cuts.windows(2).filter_map(|ends| Some(*ends.first()?..*ends.last()?)).collect()
    }
}
