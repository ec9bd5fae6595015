//! What nearly all decoders share: their sizes, and the usual modules by their usual names.

use std::ops::RangeInclusive;

use super::rope::Asked;
use super::{Names, Source};
use crate::architecture::{
    Activation, Architecture, Attention, Embedding, Extra, FeedForward, Gated, GroupedQuery, Layer,
    Linear, Norm, Rope, Stored,
};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::{
    MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH,
};

/// Whether the embedding is the head.
pub(super) const TIE: &str = "tie_word_embeddings";

const EPS: RangeInclusive<f32> = f32::MIN_POSITIVE..=1.0;

/// Sizes of a decoder. Names are those of `config.json`.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    pub(super) hidden_size: u32,
    pub(super) intermediate_size: u32,
    pub(super) num_hidden_layers: u32,
    pub(super) num_attention_heads: u32,
    pub(super) num_key_value_heads: u32,
    pub(super) head_dim: u32,
    pub(super) rms_norm_eps: f32,
    pub(super) vocab_size: u32,
    pub(super) max_position_embeddings: u32,
    pub(super) tie_word_embeddings: bool,
    names: Names,
    norms_from_one: bool,
}

/// Which head a model has where a file says nothing of `tie_word_embeddings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Its own: so the authors have it, and mlx-lm too.
    Own,
    /// Its own if the files have one, as the authors have it, and otherwise the embedding, as mlx-lm
    /// has it: converters leave the key out of either.
    OwnIfThere,
    /// The embedding: so the authors have it.
    Embedding,
}

/// What holds where a file is silent; `None` has to be said.
#[derive(Debug)]
pub(super) struct Defaults {
    pub(super) head: Head,
    pub(super) heads: Option<u32>,
    /// As many as `heads` if neither is said.
    pub(super) kv_heads: Option<u32>,
    /// The hidden size divided among the heads if it is not said.
    pub(super) head_dim: Option<u32>,
    pub(super) eps: Option<f32>,
    pub(super) vocab: Option<u32>,
    /// 2048 if it is not said.
    pub(super) context: Option<u32>,
}

impl Defaults {
    /// Nothing.
    pub(super) const NONE: Self = Self {
        head: Head::Own,
        heads: None,
        kv_heads: None,
        head_dim: None,
        eps: None,
        vocab: None,
        context: None,
    };
}

impl Decoder {
    /// Reads the sizes.
    pub(super) fn read(source: &Source<'_>, defaults: &Defaults) -> Result<Self, ModelError> {
        let Source { config, has, names, tied } = source;
        let count =
            |key: &str, limit, default: Option<u32>| match config.optional_count(key, 1..=limit)? {
                Some(count) => Ok(count),
                None => default.ok_or_else(|| config.problem(key, "is missing")),
            };
        let hidden_size = config.count("hidden_size", 1..=MAX_WIDTH)?;
        let heads = count("num_attention_heads", MAX_HEADS, defaults.heads)?;
        let kv_heads =
            count("num_key_value_heads", MAX_HEADS, Some(defaults.kv_heads.unwrap_or(heads)))?;
        if !heads.is_multiple_of(kv_heads) {
            let problem = format!("is {kv_heads}, which does not divide {heads} attention heads");
            return Err(config.problem("num_key_value_heads", problem));
        }
        let head_dim = config.optional_count("head_dim", 1..=MAX_HEAD_DIM)?.or(defaults.head_dim);
        let head_dim = match head_dim {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let problem =
                    format!("is {hidden_size}, which {heads} attention heads do not divide");
                return Err(config.problem("hidden_size", problem));
            }
        };
        Ok(Self {
            hidden_size,
            intermediate_size: config.count("intermediate_size", 1..=MAX_WIDTH)?,
            num_hidden_layers: config.count("num_hidden_layers", 1..=MAX_LAYERS)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: match defaults.eps {
                None => config.number("rms_norm_eps", EPS)?,
                Some(eps) => config.optional_number("rms_norm_eps", EPS)?.unwrap_or(eps),
            },
            vocab_size: count("vocab_size", MAX_VOCAB, defaults.vocab)?,
            max_position_embeddings: count(
                "max_position_embeddings",
                MAX_CONTEXT,
                Some(defaults.context.unwrap_or(2048)),
            )?,
            tie_word_embeddings: match tied {
                Some(tied) => *tied,
                None => config.flag(
                    TIE,
                    match defaults.head {
                        Head::Own => false,
                        Head::OwnIfThere => !has(&format!("{}.weight", names.head)),
                        Head::Embedding => true,
                    },
                )?,
            },
            names: *names,
            norms_from_one: false,
        })
    }

    /// The same with other heads and key heads, all of another width: of some of the layers.
    pub(super) fn with_heads(&self, heads: u32, kv_heads: u32, head_dim: u32) -> Self {
        Self { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, ..self.clone() }
    }

    /// The same with every weight of a norm stored as its distance from one.
    pub(super) fn with_norms_from_one(mut self) -> Self {
        self.norms_from_one = true;
        self
    }

    /// The whole, of these layers.
    pub(super) fn model(
        &self,
        layer: impl FnMut(u32) -> Result<Layer, ModelError>,
    ) -> Result<Architecture, ModelError> {
        let head = self.linear(self.names.head, self.vocab_size, self.hidden_size, false);
        let embedding = format!("{}.embed_tokens", self.names.root);
        // Older files of many families keep these; they follow from the configuration.
        let mut extras: Vec<Extra> = ["inv_freq", "cos_cached", "sin_cached"]
            .map(|name| Extra::Suffix(format!(".rotary_emb.{name}")))
            .into();
        if self.tie_word_embeddings {
            extras
                .push(Extra::CopyOf { module: self.names.head.to_owned(), of: embedding.clone() });
        }
        Ok(Architecture {
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_context: self.max_position_embeddings,
            embedding: Embedding { module: embedding, scale: None },
            layers: (0..self.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
            norm: self.norm(&format!("{}.norm", self.names.root), self.hidden_size),
            head: (!self.tie_word_embeddings).then_some(head),
            logit_softcap: None,
            logit_divisor: None,
            inputs: None,
            extras,
            kv_bits: None,
        })
    }

    /// Layers that guess at tokens after the next one and stand behind the last layer.
    pub(super) fn guessing_layers(&self, config: &Section<'_>) -> Result<Vec<Extra>, ModelError> {
        let count = config.optional_count("num_nextn_predict_layers", 0..=MAX_LAYERS)?.unwrap_or(0);
        let layers = (0..count).map(|layer| self.path(self.num_hidden_layers + layer));
        Ok(layers.map(|path| Extra::Prefix(format!("{path}."))).collect())
    }

    /// A module that stands beside the layers.
    pub(super) fn beside_layers(&self, name: &str) -> String {
        format!("{}.{name}", self.names.root)
    }

    /// The module of a layer.
    pub(super) fn path(&self, layer: u32) -> String {
        format!("{}.layers.{layer}", self.names.root)
    }

    /// A layer with a norm before each of its two parts.
    pub(super) fn layer(
        &self,
        layer: u32,
        attention: GroupedQuery,
        feed_forward: FeedForward,
    ) -> Layer {
        self.layer_of(layer, Attention::Grouped(Box::new(attention)), feed_forward)
    }

    /// The same for any attention.
    pub(super) fn layer_of(
        &self,
        layer: u32,
        attention: Attention,
        feed_forward: FeedForward,
    ) -> Layer {
        let path = self.path(layer);
        let norm = |name: &str| self.norm(&format!("{path}.{name}"), self.hidden_size);
        Layer {
            before_attention: Some(norm("input_layernorm")),
            attention,
            after_attention: None,
            before_feed_forward: Some(norm("post_attention_layernorm")),
            feed_forward,
            after_feed_forward: None,
            input: None,
            residual: None,
            clips_sums: false,
            scale: None,
        }
    }

    /// A layer of Gemma: norms before and after each of its two parts, and a gate of GELU.
    pub(super) fn sandwich(&self, layer: u32, attention: GroupedQuery) -> Layer {
        let path = self.path(layer);
        let norm = |name: &str| self.norm(&format!("{path}.{name}"), self.hidden_size);
        let gated = self.gated_at(&format!("{path}.mlp"), self.intermediate_size);
        let gated = Gated { activation: Activation::GeluTanh, ..gated };
        Layer {
            before_attention: Some(norm("input_layernorm")),
            attention: Attention::Grouped(Box::new(attention)),
            after_attention: Some(norm("post_attention_layernorm")),
            before_feed_forward: Some(norm("pre_feedforward_layernorm")),
            feed_forward: FeedForward::Gated(Box::new(gated)),
            after_feed_forward: Some(norm("post_feedforward_layernorm")),
            input: None,
            residual: None,
            clips_sums: false,
            scale: None,
        }
    }

    /// Grouped-query attention over everything, without biases or norms of its own.
    pub(super) fn attention(&self, layer: u32, rope: &Rope) -> GroupedQuery {
        let path = format!("{}.self_attn", self.path(layer));
        let (queries, keys) = (self.query_width(), self.key_width());
        let linear = |name: &str, rows, columns| {
            self.linear(&format!("{path}.{name}"), rows, columns, false)
        };
        GroupedQuery {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            query: linear("q_proj", queries, self.hidden_size),
            key: linear("k_proj", keys, self.hidden_size),
            value: Some(linear("v_proj", keys, self.hidden_size)),
            kv_of: None,
            output: linear("o_proj", self.hidden_size, queries),
            gate: None,
            query_norm: None,
            key_norm: None,
            norms_turned: false,
            value_eps: None,
            rope: Some(rope.clone()),
            growth: None,
            scale: (self.head_dim as f32).sqrt().recip(),
            window: None,
            softcap: None,
            sinks: None,
        }
    }

    /// The norms on query and key heads.
    pub(super) fn head_norms(&self, layer: u32) -> [Option<Norm>; 2] {
        self.norms_in_attention(layer, [self.head_dim; 2])
    }

    /// The norms on all query heads together, and on all key heads.
    pub(super) fn joint_norms(&self, layer: u32) -> [Option<Norm>; 2] {
        self.norms_in_attention(layer, [self.query_width(), self.key_width()])
    }

    fn norms_in_attention(&self, layer: u32, [query, key]: [u32; 2]) -> [Option<Norm>; 2] {
        let path = format!("{}.self_attn", self.path(layer));
        let norm = |name: &str, width| Some(self.norm(&format!("{path}.{name}"), width));
        [norm("q_norm", query), norm("k_norm", key)]
    }

    /// The usual feed-forward part, without biases.
    pub(super) fn gated(&self, layer: u32) -> FeedForward {
        let path = format!("{}.mlp", self.path(layer));
        FeedForward::Gated(Box::new(self.gated_at(&path, self.intermediate_size)))
    }

    /// The same in any place and of any inner width.
    pub(super) fn gated_at(&self, path: &str, inner: u32) -> Gated {
        let linear = |name: &str, rows, columns| {
            self.linear(&format!("{path}.{name}"), rows, columns, false)
        };
        Gated {
            gate: linear("gate_proj", inner, self.hidden_size),
            up: linear("up_proj", inner, self.hidden_size),
            down: linear("down_proj", self.hidden_size, inner),
            activation: Activation::Silu,
        }
    }

    pub(super) fn linear(&self, module: &str, rows: u32, columns: u32, has_bias: bool) -> Linear {
        Linear { module: module.to_owned(), rows, columns, has_bias, stored: Stored::Own }
    }

    pub(super) fn norm(&self, module: &str, width: u32) -> Norm {
        Norm {
            module: module.to_owned(),
            width,
            eps: self.rms_norm_eps,
            from_one: self.norms_from_one,
        }
    }

    /// Width of all query heads together. Far below what 32 bits hold: see the limits.
    pub(super) const fn query_width(&self) -> u32 {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub(super) const fn key_width(&self) -> u32 {
        self.num_key_value_heads * self.head_dim
    }

    /// The rotary positions that the file describes, over whole heads.
    pub(super) fn rope(&self, config: &Section<'_>) -> Result<Rope, ModelError> {
        self.usual_rope().read(config)
    }

    /// What families know of them, if they know nothing else.
    fn usual_rope(&self) -> Asked {
        let usual = Asked::usual(self.head_dim, self.max_position_embeddings);
        Asked { of_pictures: self.names.is_inside, ..usual }
    }

    /// The same in a family of which mlx-lm takes another base for granted than the authors.
    pub(super) fn rope_of_said_base(&self, config: &Section<'_>) -> Result<Rope, ModelError> {
        Asked { theta: 1_000_000.0, theta_is_doubtful: true, ..self.usual_rope() }.read(config)
    }
}

impl GroupedQuery {
    /// The same with biases on what it takes in, and on what it gives out.
    pub(super) fn with_biases(mut self, inward: bool, outward: bool) -> Self {
        for linear in [&mut self.query, &mut self.key].into_iter().chain(&mut self.value) {
            linear.has_bias = inward;
        }
        self.output.has_bias = outward;
        self
    }

    /// The same with norms on query and key heads.
    pub(super) fn with_head_norms(mut self, [query, key]: [Option<Norm>; 2]) -> Self {
        (self.query_norm, self.key_norm) = (query, key);
        self
    }

    /// The same, seeing no further than `window` tokens.
    pub(super) const fn within(mut self, window: Option<u32>) -> Self {
        self.window = window;
        self
    }
}

impl FeedForward {
    /// The same with biases on its three matrices; a mixture of experts stays as it is.
    pub(super) fn with_biases(mut self, biased: bool) -> Self {
        if let Self::Gated(gated) = &mut self {
            for linear in [&mut gated.gate, &mut gated.up, &mut gated.down] {
                linear.has_bias = biased;
            }
        }
        self
    }
}

/// Files mean more by a family's name than is computed here: refuse them, rather than answer
/// nonsense.
pub(super) fn expect_activation(
    config: &Section<'_>,
    key: &str,
    allowed: &[&str],
) -> Result<(), ModelError> {
    if let Some(other) = config.text(key)?.filter(|name| !allowed.contains(name)) {
        let other: String = other.chars().take(40).collect();
        let expected = allowed.join("` or `");
        let problem = format!("`{other}` is not supported; expected `{expected}`");
        return Err(config.problem(key, problem));
    }
    Ok(())
}

/// The activation of most families, under either of its keys.
pub(super) fn expect_silu(config: &Section<'_>) -> Result<(), ModelError> {
    let either = ["hidden_act", "hidden_activation"];
    either.iter().try_for_each(|key| expect_activation(config, key, &["silu", "swish"]))
}
