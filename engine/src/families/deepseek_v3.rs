//! DeepSeek-V3 and R1 (arXiv:2412.19437): latent attention, and from some layer on experts that are
//! chosen group by group, beside one that every token passes.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::mixture::{SigmoidMixture, SparseLayers};
use super::rope::{self, Asked};
use crate::architecture::{
    Architecture, Attention, Latent, LatentQuery, Norm, Rope, Stack, Stored,
};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::{MAX_HEAD_DIM, MAX_WIDTH};

use super::deepseek_v32::{IndexerSizes, OfIndexer};

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    build(source, &Decoder::read(source, &DEFAULTS)?, &OF_DEEPSEEK)
}

/// No head is as wide as the hidden size divided by their number, which need not come out even.
pub(super) const DEFAULTS: Defaults = Defaults { head_dim: Some(64), ..Defaults::NONE };

/// In what families of this kind differ.
pub(super) struct Variant {
    /// What is added to the mean square in the norms within attention; the same as everywhere else where it is none.
    pub(super) inner_norm_eps: Option<f32>,
    pub(super) sparse: SparseLayers,
    /// Whether mlx-lm and transformers take another base of rotary positions for granted.
    pub(super) theta_is_doubtful: bool,
    /// What chooses positions, in families that have it.
    pub(super) indexer: Option<OfIndexer>,
}

/// DeepSeek's own code does not take the epsilon from the configuration.
pub(super) const OF_DEEPSEEK: Variant = Variant {
    inner_norm_eps: Some(1e-6),
    sparse: SparseLayers { first: 0, in_steps: true, always: false },
    theta_is_doubtful: false,
    indexer: None,
};

/// A model of these sizes.
pub(super) fn build(
    source: &Source<'_>,
    decoder: &Decoder,
    variant: &Variant,
) -> Result<Architecture, ModelError> {
    let config = &source.config;
    expect_silu(config)?;
    let attention = LatentSizes::read(config, decoder, variant)?;
    let experts = SigmoidMixture::read(config, decoder, variant.sparse)?;
    let mut model = decoder.model(|layer| {
        let feed_forward = SigmoidMixture::or_dense(experts.as_ref(), source, decoder, layer);
        let attention = attention.of(source, decoder, layer);
        Ok(decoder.layer_of(layer, Attention::Latent(Box::new(attention)), feed_forward))
    })?;
    model.extras.extend(decoder.guessing_layers(config)?);
    Ok(model)
}

struct LatentSizes {
    plain_dim: u32,
    turned_dim: u32,
    value_dim: u32,
    rank: u32,
    query_rank: Option<u32>,
    biased: bool,
    rope: Rope,
    scale: f32,
    inner_norm_eps: f32,
    indexer: Option<IndexerSizes>,
}

impl LatentSizes {
    fn read(
        config: &Section<'_>,
        decoder: &Decoder,
        variant: &Variant,
    ) -> Result<Self, ModelError> {
        let width = |key: &str| config.count(key, 1..=MAX_HEAD_DIM);
        let (plain_dim, turned_dim) = (width("qk_nope_head_dim")?, width("qk_rope_head_dim")?);
        let context = decoder.max_position_embeddings;
        let theta_is_doubtful = variant.theta_is_doubtful;
        let asked = Asked { theta_is_doubtful, ..Asked::usual(turned_dim, context) };
        let mut rope = asked.read(config)?;
        rope.traditional = config.flag("rope_interleave", true)?;
        config.agrees(
            "qk_head_dim",
            plain_dim + turned_dim,
            "qk_nope_head_dim` + `qk_rope_head_dim",
        )?;
        let indexer = variant.indexer.map(|of| IndexerSizes::read(config, decoder, of, &rope));
        Ok(Self {
            indexer: indexer.transpose()?,
            plain_dim,
            turned_dim,
            value_dim: width("v_head_dim")?,
            rank: width("kv_lora_rank")?,
            query_rank: config.optional_count("q_lora_rank", 1..=MAX_WIDTH)?,
            biased: config.flag("attention_bias", false)?,
            rope,
            scale: ((plain_dim + turned_dim) as f32).sqrt().recip() * rope::score_factor(config)?,
            inner_norm_eps: variant.inner_norm_eps.unwrap_or(decoder.rms_norm_eps),
        })
    }

    fn of(&self, source: &Source<'_>, decoder: &Decoder, layer: u32) -> Latent {
        let path = format!("{}.self_attn", decoder.path(layer));
        let (heads, hidden) = (decoder.num_attention_heads, decoder.hidden_size);
        let linear = |name: &str, rows, columns, has_bias| {
            decoder.linear(&format!("{path}.{name}"), rows, columns, has_bias)
        };
        let norm = |name: &str, width| Norm {
            eps: self.inner_norm_eps,
            ..decoder.norm(&format!("{path}.{name}"), width)
        };
        let queries = heads * (self.plain_dim + self.turned_dim);
        let query = match self.query_rank {
            None => LatentQuery::Direct(linear("q_proj", queries, hidden, false)),
            Some(rank) => LatentQuery::Compressed {
                down: linear("q_a_proj", rank, hidden, self.biased),
                norm: norm("q_a_layernorm", rank),
                up: linear("q_b_proj", queries, rank, false),
            },
        };
        // MLX has the two apart; DeepSeek has them in one matrix, head by head.
        let joint = format!("{path}.kv_b_proj");
        let is_joint = (source.has)(&format!("{joint}.weight"));
        let stack = |name: &str, rows, columns, first, transposed| {
            let mut each = linear(name, rows, columns, false);
            if is_joint {
                let (module, of) = (joint.clone(), self.plain_dim + self.value_dim);
                each.stored = Stored::PerHead { module, first, of, transposed };
            }
            Stack { count: heads, each }
        };
        Latent {
            heads,
            plain_dim: self.plain_dim,
            turned_dim: self.turned_dim,
            value_dim: self.value_dim,
            rank: self.rank,
            query,
            compress: linear(
                "kv_a_proj_with_mqa",
                self.rank + self.turned_dim,
                hidden,
                self.biased,
            ),
            compress_norm: norm("kv_a_layernorm", self.rank),
            key: stack("embed_q", self.rank, self.plain_dim, 0, true),
            value: stack("unembed_out", self.value_dim, self.rank, self.plain_dim, false),
            output: linear("o_proj", hidden, heads * self.value_dim, self.biased),
            rope: self.rope.clone(),
            scale: self.scale,
            indexer: self.indexer.as_ref().map(|indexer| indexer.of(decoder, &path)),
        }
    }
}
