//! From where each layer goes on with a sequence that was interrupted. Pure.
//!
//! Every layer that still has KV of the sequence keeps it. One that lacks some has to compute those
//! positions again, and for that it needs hidden states of the layer before it: that layer computes the
//! same positions again, or a boundary log has what it handed over when it first did. So what is
//! computed again is what was lost, and no more, as far as the logs reach; where they do not, the
//! layers before are computed again too, down to layer 0, which needs nothing but the token log.

use planaria_config::LayerRange;
use planaria_engine::stage::Progress;

pub use planaria_protocol::resume::{Kept, LayerSpan, ResumePlan};

/// How far a stage is with a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageProgress {
    /// The layers that the plan gives to it.
    pub layers: LayerRange,
    /// Of all layers that it holds; one of which nothing is said has nothing.
    pub progress: Vec<Progress>,
    /// What it has kept.
    pub kept: Vec<Kept>,
}

/// The resume plan for a sequence of `length` tokens, the last of which is to be computed by all layers, and the
/// stages of its plan.
#[must_use]
pub fn work_out(length: u32, stages: &[StageProgress]) -> ResumePlan {
    let last = length.saturating_sub(1);
    let mut from_logs = Vec::new();
    // From the last layer to the first, with what the layer behind needs.
    let mut froms: Vec<LayerSpan> = Vec::new();
    let mut needed = last;
    for stage in stages.iter().rev() {
        for layer in stage.layers.range().rev() {
            let (positions, rewinds_to) = stage.progress_of(layer);
            let own = positions.min(last);
            let mut from = own;
            if own > needed {
                let log = stage
                    .kept
                    .iter()
                    .find(|kept| kept.behind == layer && kept.start <= needed && kept.end > needed);
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
                Some(part) if part.from == from && stage.layers.contains(part.layers.first()) => {
                    let joined = LayerRange::inclusive(layer, part.layers.last());
                    part.layers = joined.unwrap_or(part.layers);
                }
                _ => froms.extend(
                    LayerRange::half_open(layer, layer + 1)
                        .map(|layers| LayerSpan { layers, from }),
                ),
            }
        }
    }
    froms.reverse();
    from_logs.reverse();
    ResumePlan { spans: froms, from_logs }
}

impl StageProgress {
    fn progress_of(&self, layer: u32) -> (u32, u32) {
        let found = self.progress.iter().find(|progress| progress.layers.contains(layer));
        found.map_or((0, 0), |progress| (progress.positions, progress.rewinds_to))
    }
}

#[cfg(test)]
mod tests;
