//! From where each layer goes on with a sequence that was interrupted. Pure.
//!
//! Every layer that still has KV of the sequence keeps it. One that lacks some has to compute those
//! positions again, and for that it needs hidden states of the layer before it: that layer computes the
//! same positions again, or a boundary log has what it handed over when it first did. So what is
//! computed again is what was lost, and no more, as far as the logs reach; where they do not, the
//! layers before are computed again too, down to layer 0, which needs nothing but the token log.

use planaria_config::LayerRange;
use planaria_engine::stage::Progress;
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
pub struct Part {
    /// The layers.
    pub layers: LayerRange,
    /// The first position that they compute.
    pub from: u32,
}

/// Where every layer of a model goes on with a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// All layers, in order; neighbours that go on from the same position are in the same part if they
    /// are in the same stage.
    pub parts: Vec<Part>,
    /// What is taken from boundary logs.
    pub from_logs: Vec<Kept>,
}

/// How far a stage is with a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recalled {
    /// The layers that the plan gives to it.
    pub layers: LayerRange,
    /// Of all layers that it holds; one of which nothing is said has nothing.
    pub progress: Vec<Progress>,
    /// What it has kept.
    pub kept: Vec<Kept>,
}

impl Course {
    /// For a sequence of `length` tokens, the last of which is to be computed by all layers, and the
    /// stages of its plan.
    #[must_use]
    pub fn plan(length: u32, stages: &[Recalled]) -> Self {
        let last = length.saturating_sub(1);
        let mut from_logs = Vec::new();
        // From the last layer to the first, with what the layer behind needs.
        let mut froms: Vec<Part> = Vec::new();
        let mut needed = last;
        for stage in stages.iter().rev() {
            for layer in stage.layers.range().rev() {
                let (positions, rewinds_to) = stage.progress_of(layer);
                let own = positions.min(last);
                let mut from = own;
                if own > needed {
                    let log = stage.kept.iter().find(|kept| {
                        kept.behind == layer && kept.start <= needed && kept.end > needed
                    });
                    from = log.map_or(needed, |log| log.end.min(own));
                    if from < own && from < rewinds_to {
                        from = 0;
                    }
                    if from > needed {
                        from_logs.push(Kept { behind: layer, start: needed, end: from });
                    }
                }
                needed = from;
                match froms.last_mut() {
                    Some(part)
                        if part.from == from && stage.layers.contains(part.layers.first()) =>
                    {
                        let joined = LayerRange::inclusive(layer, part.layers.last());
                        part.layers = joined.unwrap_or(part.layers);
                    }
                    _ => froms.extend(
                        LayerRange::half_open(layer, layer + 1).map(|layers| Part { layers, from }),
                    ),
                }
            }
        }
        froms.reverse();
        from_logs.reverse();
        Self { parts: froms, from_logs }
    }

    /// The first position that a layer computes; `None` if there is no such layer.
    #[must_use]
    pub fn from(&self, layer: u32) -> Option<u32> {
        self.parts.iter().find(|part| part.layers.contains(layer)).map(|part| part.from)
    }

    /// Positions that are computed again, counted once for each layer; the last one, which would be
    /// computed anyway, is none of them.
    #[must_use]
    pub fn rebuilt(&self, length: u32) -> u64 {
        let last = length.saturating_sub(1);
        let again =
            |part: &Part| u64::from(last - part.from.min(last)) * u64::from(part.layers.count());
        self.parts.iter().map(again).sum()
    }

    /// Positions of which anything is computed again.
    #[must_use]
    pub fn replayed(&self, length: u32) -> u32 {
        let last = length.saturating_sub(1);
        let first = self.parts.iter().map(|part| part.from).min().unwrap_or(last);
        last.saturating_sub(first)
    }

    /// The layers that `position` passes from `first` on, within `stage`, and whether the layer behind
    /// the stage computes it as well. `None` if `first` does not.
    #[must_use]
    pub fn way(&self, first: u32, stage: LayerRange, position: u32) -> Option<(LayerRange, bool)> {
        let computes = |layer: u32| self.from(layer).is_some_and(|from| from <= position);
        let passed = (first..=stage.last()).take_while(|layer| computes(*layer)).last()?;
        let goes_on = passed == stage.last() && computes(passed + 1);
        Some((LayerRange::inclusive(first, passed).ok()?, goes_on))
    }

    /// Cuts positions where some layer from `first` on, within `stage` or right behind it, begins to
    /// compute: each piece takes one way.
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

impl Recalled {
    fn progress_of(&self, layer: u32) -> (u32, u32) {
        let found = self.progress.iter().find(|progress| progress.layers.contains(layer));
        found.map_or((0, 0), |progress| (progress.positions, progress.rewinds_to))
    }
}

#[cfg(test)]
mod tests;
