//! How much memory a step works with.

use super::{Architecture, Attention, FeedForward, Layer};
use crate::geometry::WorkingSet;

/// Whether scores of all pairs of positions are kept where attention bends or joins them: on GPUs it is composed of
/// MLX's operations then. Everything else has a kernel that goes through the pairs piece by piece. (CUDA, where this
/// has not been tried yet, is not counted.)
const COMPOSES_SCORES: bool = cfg!(target_os = "macos");

/// Whether keys and values that are packed are unpacked to be seen: where MLX's kernels see them.
const UNPACKS_KV: bool = cfg!(target_os = "macos");

/// Layers whose results are in memory at once: MLX gives an operation its memory when it is queued, and queues about so far
/// ahead of what is computed. As measured on CPUs, with the models of `tests/bench/README.md`.
const LAYERS_AHEAD: u64 = 2;

/// What a worker process takes before it has loaded anything: as measured, with MLX on the CPU.
const PROCESS_BYTES: u64 = LIBRARY_BYTES + OWN_BYTES;

/// Of that, what lies in files.
const LIBRARY_BYTES: u64 = 20 << 20;

/// The rest; most of it is what products keep for the next one.
pub const OWN_BYTES: u64 = 12 << 20;

/// How much freed memory MLX may keep for its next arrays. Its own limit on CPUs; with more, steps
/// were no faster.
pub const MLX_CACHE_BYTES: u32 = 32 << 20;

/// How much freed memory the process may keep besides.
pub const HEAP_SLACK_BYTES: u64 = 32 << 20;

/// What each token of a vocabulary takes where answers are held to forms: as measured with 128,000 and with 200,000 tokens.
pub const FORM_TOKEN_BYTES: u64 = 350;

/// The same while the vocabulary is read, with the tokenizer.
const FORM_TOKEN_PEAK_BYTES: u64 = 670;

impl Architecture {
    /// What a step works with, of numbers of `width` bytes. The widest layer counts.
    pub(crate) fn working_set(&self, width: u64) -> WorkingSet {
        let results = self.layers.iter().map(|layer| self.results(layer)).max();
        let widest = self.layers.iter().map(|layer| expanded(&layer.feed_forward)).max();
        let composed = self.layers.iter().map(|layer| composed_heads(&layer.attention)).max();
        let composed = composed.filter(|_| COMPOSES_SCORES).unwrap_or(0);
        let vocabulary = u64::from(self.vocab_size) * FORM_TOKEN_PEAK_BYTES;
        WorkingSet {
            always: PROCESS_BYTES + MLX_CACHE_BYTES as u64 + HEAP_SLACK_BYTES + vocabulary,
            // Kernels have the rows of a product once more as `f32`.
            per_token: LAYERS_AHEAD * width * results.unwrap_or(0)
                + 4 * widest.unwrap_or(0)
                + width * self.inputs_of_a_token(),
            // Scores, and their powers on the way.
            per_pair: u64::from(composed) * 8,
            // Scores, log-probabilities, and a row for the sampler.
            per_sampled: u64::from(self.vocab_size) * 12,
            per_position: if UNPACKS_KV && self.kv_bits.is_some() {
                self.widest_kv(width)
            } else {
                0
            },
        }
    }

    /// Numbers of the inputs of all layers, which are there until the last: rows of the table, what is projected, its norm and
    /// the sum.
    fn inputs_of_a_token(&self) -> u64 {
        self.inputs.as_ref().map_or(0, |inputs| 4 * u64::from(inputs.projection.rows))
    }

    /// Bytes of the keys and values of a position, unpacked, in the layer that has most, and the one computed before it.
    fn widest_kv(&self, width: u64) -> u64 {
        let numbers = self.layers.iter().map(|layer| layer.attention.kv_numbers()).max();
        2 * width * u64::from(numbers.unwrap_or(0))
    }

    /// How many numbers the operations of a layer give for each token.
    fn results(&self, layer: &Layer) -> u64 {
        let hidden = u64::from(self.hidden_size);
        let attention = match &layer.attention {
            // Queries, keys and values, before and after they are turned, and what was found.
            Attention::Grouped(grouped) => {
                3 * u64::from(grouped.query.rows) + 4 * u64::from(grouped.key.rows)
            }
            Attention::Latent(latent) => {
                let each = 2 * (latent.plain_dim + latent.turned_dim) + 2 * latent.rank;
                let indexer = latent.indexer.as_ref().map_or(0, |indexer| {
                    // Queries and keys before and after they are turned; weights and chosen positions, of 32 bits each.
                    2 * u64::from(indexer.query.rows + indexer.head_dim)
                        + 2 * u64::from(indexer.heads + indexer.chosen.min(self.max_context))
                });
                u64::from(latent.heads) * u64::from(each)
                    + 2 * u64::from(latent.compress.rows)
                    + indexer
            }
        };
        let feed_forward = match &layer.feed_forward {
            FeedForward::Gated(_) => 0,
            // What each expert gives, before they are added up.
            FeedForward::Experts(experts) => hidden * (u64::from(experts.chosen) + 1),
            // And the norms of both parts.
            FeedForward::Beside(both) => hidden * (u64::from(both.experts.chosen) + 7),
        };
        // Gate, product, projection, its norm and the sum.
        let input =
            layer.input.as_ref().map_or(0, |input| 2 * u64::from(input.gate.rows) + 3 * hidden);
        // Two norms, two results and two sums; gate, value and their product.
        input + 6 * hidden + attention + 3 * expanded(&layer.feed_forward) + feed_forward
    }
}

/// Numbers between the projections up and down, for each token.
fn expanded(feed_forward: &FeedForward) -> u64 {
    match feed_forward {
        FeedForward::Gated(gated) => gated.up.rows.into(),
        FeedForward::Experts(experts) => {
            let shared = experts.shared.as_ref().map_or(0, |shared| shared.up.rows);
            u64::from(experts.chosen) * u64::from(experts.up.each.rows) + u64::from(shared)
        }
        FeedForward::Beside(both) => {
            let experts = u64::from(both.experts.chosen) * u64::from(both.experts.up.each.rows);
            u64::from(both.dense.up.rows) + experts
        }
    }
}

/// Heads whose scores are bent, or joined of two parts.
fn composed_heads(attention: &Attention) -> u32 {
    match attention {
        Attention::Grouped(grouped) => grouped.softcap.map_or(0, |_| grouped.heads),
        Attention::Latent(latent) => latent.heads,
    }
}
