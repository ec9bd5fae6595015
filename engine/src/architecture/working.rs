//! How much memory a step works with.

use super::{Architecture, Attention, FeedForward};
use crate::geometry::WorkingSet;

/// Whether attention keeps the scores of all pairs of positions: MLX has a kernel that does not on
/// Metal, and on CPUs composes attention of operations that do. (Its CUDA kernels do not either; what
/// is kept free for them is then too much, not too little.)
const KEEPS_SCORES: bool = !cfg!(target_os = "macos");

/// What a worker process takes before it has loaded anything: as measured, with MLX on the CPU.
pub(crate) const PROCESS_BYTES: u64 = 32 << 20;

/// How much freed memory MLX may keep for its next arrays. Its own limit on CPUs; with more, steps
/// were no faster.
pub(crate) const MLX_CACHE_BYTES: u32 = 32 << 20;

/// How much freed memory the process may keep besides.
pub(crate) const HEAP_SLACK_BYTES: u64 = 32 << 20;

impl Architecture {
    /// What a step works with, of numbers of `width` bytes. MLX frees what no later operation needs,
    /// so the widest moment of the widest layer counts.
    pub(crate) fn working_set(&self, width: u64) -> WorkingSet {
        let mut inner = 0;
        let mut heads = 0;
        let mut projected = 0;
        for layer in &self.layers {
            inner = inner.max(match &layer.feed_forward {
                FeedForward::Gated(gated) => gated.up.rows,
                FeedForward::Experts(experts) => {
                    let shared = experts.shared.as_ref().map_or(0, |shared| shared.up.rows);
                    experts.chosen * experts.up.each.rows + shared
                }
            });
            let (own_heads, own_projected) = match &layer.attention {
                Attention::Grouped(grouped) => {
                    (grouped.heads, grouped.query.rows + 2 * grouped.key.rows)
                }
                Attention::Latent(latent) => {
                    let each = latent.plain_dim + latent.turned_dim + latent.rank;
                    (latent.heads, latent.heads * each + latent.compress.rows)
                }
            };
            heads = heads.max(own_heads);
            projected = projected.max(own_projected);
        }
        // Feed-forward: gate, its sigmoid, value and product beside the hidden state and its norm.
        // Attention: projections before and after they are turned.
        let feed_forward = 4 * u64::from(inner) + 3 * u64::from(self.hidden_size);
        let attention = 2 * u64::from(projected) + 3 * u64::from(self.hidden_size);
        WorkingSet {
            always: PROCESS_BYTES + MLX_CACHE_BYTES as u64 + HEAP_SLACK_BYTES,
            per_token: width * feed_forward.max(attention),
            // Scores, and their powers on the way.
            per_pair: if KEEPS_SCORES { u64::from(heads) * 8 } else { 0 },
            // Scores, log-probabilities, and a row for the sampler.
            per_sampled: u64::from(self.vocab_size) * 12,
        }
    }
}
