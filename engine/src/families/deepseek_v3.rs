//! DeepSeek-V3 and R1 (arXiv:2412.19437): latent attention, and from some layer on experts that are
//! chosen group by group, beside one that every token passes.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::mixture::{Mixture, USUAL_NAMES, expert_counts};
use super::rope::{self, Asked};
use crate::architecture::{
    Architecture, Attention, Extra, FeedForward, Latent, LatentQuery, Norm, Rope, Routing, Stack,
    Stored,
};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::{MAX_EXPERTS, MAX_HEAD_DIM, MAX_LAYERS, MAX_WIDTH};

/// DeepSeek's own code does not take this from the configuration.
const INNER_NORM_EPS: f32 = 1e-6;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    let attention = LatentSizes::read(config, &decoder)?;
    let first_sparse = config.optional_count("first_k_dense_replace", 0..=MAX_LAYERS)?.unwrap_or(0);
    let step = config.optional_count("moe_layer_freq", 1..=MAX_LAYERS)?.unwrap_or(1);
    let experts = match config.value("n_routed_experts") {
        None => None,
        Some(_) => Some(ExpertSizes::read(config)?),
    };
    let predicting =
        config.optional_count("num_nextn_predict_layers", 0..=MAX_LAYERS)?.unwrap_or(0);
    let mut model = decoder.model(|layer| {
        let is_sparse = layer >= first_sparse && layer.is_multiple_of(step);
        let feed_forward = match experts.as_ref().filter(|_| is_sparse) {
            Some(experts) => experts.of(source, &decoder, layer),
            None => decoder.gated(layer),
        };
        let attention = attention.of(source, &decoder, layer);
        Ok(decoder.layer_of(layer, Attention::Latent(Box::new(attention)), feed_forward))
    })?;
    // They guess at tokens after the next one and stand behind the last layer.
    let guesses = (0..predicting).map(|layer| decoder.num_hidden_layers + layer);
    model.extras.extend(guesses.map(|layer| Extra::Prefix(format!("{}.", decoder.path(layer)))));
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
}

impl LatentSizes {
    fn read(config: &Section<'_>, decoder: &Decoder) -> Result<Self, ModelError> {
        let width = |key: &str| config.count(key, 1..=MAX_HEAD_DIM);
        let (plain_dim, turned_dim) = (width("qk_nope_head_dim")?, width("qk_rope_head_dim")?);
        let context = decoder.max_position_embeddings;
        let mut rope = Asked::usual(turned_dim, context).read(config)?;
        rope.traditional = config.flag("rope_interleave", true)?;
        config.agrees(
            "qk_head_dim",
            plain_dim + turned_dim,
            "qk_nope_head_dim` + `qk_rope_head_dim",
        )?;
        Ok(Self {
            plain_dim,
            turned_dim,
            value_dim: width("v_head_dim")?,
            rank: width("kv_lora_rank")?,
            query_rank: config.optional_count("q_lora_rank", 1..=MAX_WIDTH)?,
            biased: config.flag("attention_bias", false)?,
            rope,
            scale: ((plain_dim + turned_dim) as f32).sqrt().recip() * rope::score_factor(config)?,
        })
    }

    fn of(&self, source: &Source<'_>, decoder: &Decoder, layer: u32) -> Latent {
        let path = format!("{}.self_attn", decoder.path(layer));
        let (heads, hidden) = (decoder.num_attention_heads, decoder.hidden_size);
        let linear = |name: &str, rows, columns, has_bias| {
            decoder.linear(&format!("{path}.{name}"), rows, columns, has_bias)
        };
        let norm = |name: &str, width| Norm {
            eps: INNER_NORM_EPS,
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
        }
    }
}

struct ExpertSizes {
    mixture: Mixture,
    shared: Option<u32>,
    groups: u32,
    chosen_groups: u32,
    normalized: bool,
    scale: f32,
}

impl ExpertSizes {
    fn read(config: &Section<'_>) -> Result<Self, ModelError> {
        for (key, expected) in [("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")] {
            if config.text(key)?.is_some_and(|name| name != expected) {
                return Err(config.problem(key, format!("is not supported; expected `{expected}`")));
            }
        }
        let (count, chosen) = expert_counts(config, "n_routed_experts", "num_experts_per_tok")?;
        for key in ["n_group", "topk_group", "routed_scaling_factor"] {
            config.doubt_silence(key);
        }
        let groups = config.optional_count("n_group", 1..=count)?.unwrap_or(1);
        // A group is judged by its two best.
        if !count.is_multiple_of(groups) || (groups > 1 && count / groups < 2) {
            let problem = format!("is {groups}, which does not divide {count} experts into groups");
            return Err(config.problem("n_group", problem));
        }
        let chosen_groups = config.optional_count("topk_group", 1..=groups)?.unwrap_or(1);
        if chosen > chosen_groups * (count / groups) {
            let problem = format!("is {chosen_groups}, too few groups for {chosen} experts");
            return Err(config.problem("topk_group", problem));
        }
        let inner = config.count("moe_intermediate_size", 1..=MAX_WIDTH)?;
        Ok(Self {
            mixture: Mixture { count, chosen, inner, names: USUAL_NAMES },
            shared: config.optional_count("n_shared_experts", 1..=MAX_EXPERTS)?,
            groups,
            chosen_groups,
            normalized: config.flag("norm_topk_prob", true)?,
            scale: config.optional_number("routed_scaling_factor", 1e-6..=1e6)?.unwrap_or(1.0),
        })
    }

    fn of(&self, source: &Source<'_>, decoder: &Decoder, layer: u32) -> FeedForward {
        let path = format!("{}.mlp", decoder.path(layer));
        let routing = Routing::Sigmoid {
            correction: format!("{path}.gate.e_score_correction_bias"),
            groups: self.groups,
            chosen_groups: self.chosen_groups,
            normalized: self.normalized,
            scale: self.scale,
        };
        let mut experts = self.mixture.experts(source, decoder, &path, routing);
        experts.shared = self.shared.map(|experts| {
            decoder.gated_at(&format!("{path}.shared_experts"), experts * self.mixture.inner)
        });
        FeedForward::Experts(Box::new(experts))
    }
}
