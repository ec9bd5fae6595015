//! How many layers each node of a set takes, when all layers cost the same.

use super::Search;
use super::balance::{Tried, balanced};

impl Search<'_> {
    /// The least `J` of a set of nodes whose ring costs `ring`, to a relative `precision`. `None` when the set cannot hold all layers, or is worse than
    /// `bound` for sure.
    pub(super) fn fill(&self, set: u128, ring: f64, bound: f64, precision: f64) -> Option<f64> {
        if !ring.is_finite() {
            return None;
        }
        let filled = |limit| self.filled(set, ring, limit);
        balanced(self.streams, bound, precision, filled).map(|(objective, ())| objective)
    }

    /// A layer each, then the fastest first; `None` when the layers do not all find a place.
    fn filled(&self, set: u128, ring: f64, limit: f64) -> Option<Tried<()>> {
        let mut left = self.layers.checked_sub(set.count_ones())?;
        let (mut latency, mut bottleneck) = (ring, 0.0_f64);
        for node in members(set).filter_map(|index| self.nodes.get(index)) {
            let under = (limit - node.stage_seconds) / node.share_seconds;
            // Rounded in favour of a stage that is exactly at the limit.
            let under = (under * (1.0 + 1e-12)).clamp(0.0, f64::from(node.max_layers));
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and the number of layers; whole layers are wanted"
            )]
            let more = (under as u32).checked_sub(1)?.min(left);
            left -= more;
            let seconds = f64::from(more + 1) * node.share_seconds;
            latency += seconds;
            bottleneck = bottleneck.max(seconds + node.stage_seconds);
        }
        (left == 0).then_some(Tried { latency, bottleneck, layout: () })
    }
}

/// The members of a set of nodes, ascending: the fastest first.
pub(super) fn members(mut set: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = set.trailing_zeros();
        (set != 0).then(|| {
            set &= set - 1;
            lowest as usize
        })
    })
}
