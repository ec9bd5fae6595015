//! DeepSeek-V3.2 (arXiv:2512.02556): DeepSeek-V3 with an indexer in every layer, which chooses the positions that a query looks
//! at.
//!
//! DeepSeek's own code turns queries and keys of the indexer by a Hadamard matrix and rounds them to eight bits; the former
//! changes no product, and inputs are not rounded here, as in transformers and mlx-lm. As in DeepSeek's code and transformers,
//! and unlike in mlx-lm, the epsilon of the key's norm is 1e-6 (mlx-lm: 1e-5), and weights and scores are computed in 32 bits
//! (mlx-lm: in the model's type).

use super::Source;
use super::decoder::Decoder;
use super::deepseek_v3::{self, DEFAULTS, Variant};
use crate::architecture::{Architecture, Indexer, LayerNorm, Rope};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::{MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_WIDTH};

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    deepseek_v3::build(source, &Decoder::read(source, &DEFAULTS)?, &OF_DEEPSEEK)
}

/// In what it differs from the families of its kind.
pub(super) const OF_DEEPSEEK: Variant =
    Variant { indexer: Some(OfIndexer { turns_neighbours: false }), ..deepseek_v3::OF_DEEPSEEK };

/// In what indexers of families differ.
#[derive(Debug, Clone, Copy)]
pub(super) struct OfIndexer {
    /// Whether the numbers that it turns together are neighbours, where the file does not say it (`indexer_rope_interleave`).
    pub(super) turns_neighbours: bool,
}

/// Added to the variance in the norm of the indexer's key.
const KEY_NORM_EPS: f32 = 1e-6;

/// Sizes of the indexers of a model.
pub(super) struct IndexerSizes {
    heads: u32,
    head_dim: u32,
    chosen: u32,
    query_rank: u32,
    rope: Rope,
}

impl IndexerSizes {
    /// `rope` is that of attention.
    pub(super) fn read(
        config: &Section<'_>,
        decoder: &Decoder,
        of: OfIndexer,
        rope: &Rope,
    ) -> Result<Self, ModelError> {
        const WIDTH: &str = "index_head_dim";
        expect_all_whole(config, decoder.num_hidden_layers)?;
        let head_dim = config.count(WIDTH, 1..=MAX_HEAD_DIM)?;
        if head_dim < rope.dims {
            let problem = format!("is {head_dim}, less than the {} that are turned", rope.dims);
            return Err(config.problem(WIDTH, problem));
        }
        Ok(Self {
            heads: config.count("index_n_heads", 1..=MAX_HEADS)?,
            head_dim,
            chosen: config.count("index_topk", 1..=MAX_CONTEXT)?,
            query_rank: config.count("q_lora_rank", 1..=MAX_WIDTH)?,
            rope: Rope {
                traditional: config.flag("indexer_rope_interleave", of.turns_neighbours)?,
                ..rope.clone()
            },
        })
    }

    /// The indexer of the attention at `path`.
    pub(super) fn of(&self, decoder: &Decoder, path: &str) -> Indexer {
        let Self { heads, head_dim, chosen, query_rank, .. } = *self;
        let hidden = decoder.hidden_size;
        let path = format!("{path}.indexer");
        let linear = |name: &str, rows, columns| {
            decoder.linear(&format!("{path}.{name}"), rows, columns, false)
        };
        Indexer {
            heads,
            head_dim,
            chosen,
            query: linear("wq_b", heads * head_dim, query_rank),
            key: linear("wk", head_dim, hidden),
            key_norm: LayerNorm {
                module: format!("{path}.k_norm"),
                width: head_dim,
                eps: KEY_NORM_EPS,
            },
            weights: linear("weights_proj", heads, hidden),
            rope: self.rope.clone(),
        }
    }
}

/// Refuses layers that look where the one before them does, which a stage need not have.
fn expect_all_whole(config: &Section<'_>, layers: u32) -> Result<(), ModelError> {
    const TYPES: &str = "indexer_types";
    const KINDS: &str = "layer_types";
    const PATTERN: &str = "index_topk_pattern";
    const EVERY: &str = "index_topk_freq";
    let refused = |key: &str, what: &str| {
        let problem = format!("names `{what}`; an indexer of its own in every layer is supported");
        Err(config.problem(key, problem))
    };
    for (key, expected) in [(TYPES, "full"), (KINDS, "indexed_attention")] {
        let Some(kinds) = config.texts(key)? else { continue };
        if kinds.len() != layers as usize {
            let problem = format!("has {} entries for {layers} layers", kinds.len());
            return Err(config.problem(key, problem));
        }
        if let Some(other) = kinds.into_iter().find(|kind| *kind != expected) {
            return refused(key, &other.chars().take(40).collect::<String>());
        }
    }
    if let Some(pattern) = config.text(PATTERN)?
        && let Some(other) = pattern.chars().find(|kind| *kind != 'F')
    {
        return refused(PATTERN, &other.to_string());
    }
    // It says where others begin, if there are any.
    config.value("index_skip_topk_offset");
    match config.optional_count(EVERY, 0..=MAX_HEADS)? {
        None | Some(0 | 1) => Ok(()),
        Some(every) => refused(EVERY, &every.to_string()),
    }
}
