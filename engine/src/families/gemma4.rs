//! Gemma 4, the text part: two kinds of layers with heads and positions of their own. Those that see everything may take
//! values from keys, and experts may stand beside the dense part.
//!
//! The small models (E2B, E4B) hand more to a layer than one row for each token: an embedding of its own, and to the last layers
//! keys and values of layers before them. So they are not cut into stages.

use super::Source;
use super::decoder::{Decoder, Defaults, Head, expect_activation};
use super::gemma2::{gemma_activation, softcap};
use super::inside;
use super::mixture::expert_counts;
use super::of_layers::{OfLayers, PER_LAYER};
use super::rope::{Asked, EVERYWHERE, NEARBY};
use super::windows::Windows;
use crate::architecture::{
    Activation, Architecture, Beside, Embedding, Experts, Extra, FeedForward, LayerInput,
    LayerInputs, RouterNorm, Routing, Stack, Stored,
};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::{MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};

/// What Google's models have where a file is silent.
const DEFAULTS: Defaults = Defaults {
    head: Head::Embedding,
    head_dim: Some(256),
    context: Some(131_072),
    ..Defaults::NONE
};

/// The same of heads that see everything.
const WIDE_HEAD_DIM: u32 = 512;

/// Numbers of the inputs of all layers together, for each token: far more than any model has.
const MAX_INPUTS: u32 = 1 << 20;

/// The language model inside a multimodal one.
pub(super) fn inside_multimodal(source: &Source<'_>) -> Result<Architecture, ModelError> {
    // mlx-lm takes the vocabulary from outside, Hugging Face from inside.
    let vocab = source.config.optional_count("vocab_size", 1..=MAX_VOCAB)?;
    inside::text_model(source, &["gemma4_text"], |source| {
        build(source, &Defaults { vocab, ..DEFAULTS })
    })
}

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    build(source, &DEFAULTS)
}

fn build(source: &Source<'_>, defaults: &Defaults) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, defaults)?;
    config.doubt_silence("num_key_value_heads");
    gemma_activation(config)?;
    let inputs = inputs(config, &decoder)?;
    // Of text, every token sees only those before it.
    expect_activation(config, "use_bidirectional_attention", &["vision"])?;
    let windows = windows(config, decoder.num_hidden_layers)?;
    let shared = SharedKv::read(config, decoder.num_hidden_layers, &windows)?;
    let biased = config.flag("attention_bias", false)?;
    let values_are_keys = config.flag("attention_k_eq_v", false)?;
    let heads = heads(config, &decoder, &windows, values_are_keys)?;
    let mixture = Mixture::read(config)?;
    let mut model = decoder.model(|layer| {
        let (kv_heads, head_dim) = heads(layer)?;
        let own = decoder.with_heads(decoder.num_attention_heads, kv_heads, head_dim);
        let slides = windows.slides(layer);
        let asked = Asked::usual(head_dim, decoder.max_position_embeddings);
        let layers = Some(if slides { NEARBY } else { EVERYWHERE });
        let rope = Asked { theta_is_doubtful: true, layers, ..asked }.read(config)?;
        let mut attention = own
            .attention(layer, &rope)
            .with_biases(biased, biased)
            .with_head_norms(own.head_norms(layer))
            .within(windows.of(layer));
        attention.scale = 1.0;
        attention.value_eps = Some(decoder.rms_norm_eps);
        attention.value.take_if(|_| values_are_keys && !slides);
        attention.kv_of = shared.of(layer);
        let decoder = if attention.kv_of.is_some() { &shared.widened(&decoder) } else { &decoder };
        let mut whole = decoder.sandwich(layer, attention);
        let path = decoder.path(layer);
        whole.input = inputs.as_ref().map(|inputs| input(decoder, &path, inputs.width));
        whole.scale = Some(format!("{path}.layer_scalar"));
        if let Some(mixture) = &mixture {
            whole.feed_forward = mixture.beside(source, decoder, &path, whole.feed_forward);
        }
        Ok(whole)
    })?;
    const CAP: &str = "final_logit_softcapping";
    if config.is_silent(CAP) {
        config.doubt_silence(CAP);
    }
    model.logit_softcap = softcap(config, CAP, None)?;
    model.embedding.scale = Some((decoder.hidden_size as f32).sqrt());
    model.inputs = inputs.map(Box::new);
    // Files hold modules all the same where layers look at keys and values of others.
    for layer in (0..decoder.num_hidden_layers).filter(|layer| shared.of(*layer).is_some()) {
        let path = decoder.path(layer);
        let unused = ["k_proj", "v_proj", "k_norm"];
        let unused = unused.map(|name| Extra::Prefix(format!("{path}.self_attn.{name}.")));
        model.extras.extend(unused);
    }
    Ok(model)
}

/// The embedding of its own that every layer takes of each token, if it takes any.
fn inputs(config: &Section<'_>, decoder: &Decoder) -> Result<Option<LayerInputs>, ModelError> {
    const WIDTH: &str = "hidden_size_per_layer_input";
    const VOCAB: &str = "vocab_size_per_layer_input";
    config.doubt_silence(WIDTH);
    let width = config.optional_count(WIDTH, 0..=MAX_WIDTH)?.unwrap_or(0);
    let vocab = config.optional_count(VOCAB, 1..=MAX_VOCAB)?.unwrap_or(decoder.vocab_size);
    if width == 0 {
        return Ok(None);
    }
    if vocab < decoder.vocab_size {
        let problem = format!("is {vocab}, fewer than the {} of `vocab_size`", decoder.vocab_size);
        return Err(config.problem(VOCAB, problem));
    }
    let all = width.checked_mul(decoder.num_hidden_layers).filter(|all| *all <= MAX_INPUTS);
    let all = all
        .ok_or_else(|| config.problem(WIDTH, format!("is {width}: too wide for so many layers")))?;
    let module = |name: &str| decoder.beside_layers(name);
    Ok(Some(LayerInputs {
        table: Embedding {
            module: module("embed_tokens_per_layer"),
            scale: Some((width as f32).sqrt()),
        },
        vocab,
        width,
        projection: decoder.linear(
            &module("per_layer_model_projection"),
            all,
            decoder.hidden_size,
            false,
        ),
        scale: (decoder.hidden_size as f32).sqrt().recip(),
        norm: decoder.norm(&module("per_layer_projection_norm"), width),
    }))
}

/// What a layer does with its own embedding.
fn input(decoder: &Decoder, path: &str, width: u32) -> LayerInput {
    let module = |name: &str| format!("{path}.{name}");
    let hidden = decoder.hidden_size;
    LayerInput {
        gate: decoder.linear(&module("per_layer_input_gate"), width, hidden, false),
        projection: decoder.linear(&module("per_layer_projection"), hidden, width, false),
        norm: decoder.norm(&module("post_per_layer_input_norm"), hidden),
    }
}

/// The last layers look at keys and values of the last layer before them that sees as far.
struct SharedKv {
    /// By layer.
    of: Vec<Option<u32>>,
    /// Their feed-forward parts are twice as wide.
    is_wide: bool,
}

impl SharedKv {
    fn read(config: &Section<'_>, layers: u32, windows: &Windows) -> Result<Self, ModelError> {
        const SHARED: &str = "num_kv_shared_layers";
        config.doubt_silence(SHARED);
        let shared = config.optional_count(SHARED, 0..=MAX_LAYERS)?.unwrap_or(0);
        let is_wide = config.flag("use_double_wide_mlp", false)?;
        let first = layers.checked_sub(shared).filter(|first| *first > 0);
        let first = first.ok_or_else(|| {
            config.problem(SHARED, format!("is {shared}, which leaves none of {layers} layers"))
        })?;
        let of = (0..layers).map(|layer| {
            let alike = |other: &u32| windows.slides(*other) == windows.slides(layer);
            match (0..first).rev().find(alike) {
                _ if layer < first => Ok(None),
                Some(lender) => Ok(Some(lender)),
                None => {
                    let problem = format!(
                        "is {shared}: no layer before layer {layer} sees as far as it does"
                    );
                    Err(config.problem(SHARED, problem))
                }
            }
        });
        Ok(Self { of: of.collect::<Result<_, _>>()?, is_wide })
    }

    fn of(&self, layer: u32) -> Option<u32> {
        self.of.get(layer as usize).copied().flatten()
    }

    /// The sizes of a layer that looks at those of another.
    fn widened(&self, decoder: &Decoder) -> Decoder {
        let times = if self.is_wide { 2 } else { 1 };
        let mut wide = decoder.clone();
        wide.intermediate_size *= times;
        wide
    }
}

/// The last layer sees everything: Google's code makes it do so whatever the file says, mlx-lm does not.
fn windows(config: &Section<'_>, layers: u32) -> Result<Windows, ModelError> {
    const TYPES: &str = "layer_types";
    config.doubt_silence(TYPES);
    let windows = Windows::read(config, layers, Some(512), |_| false)?;
    if windows.slides(layers - 1) {
        let problem = format!("ends with `{NEARBY}`; expected `{EVERYWHERE}`");
        return Err(config.problem(TYPES, problem));
    }
    Ok(windows)
}

/// Key heads of a layer, and the width of its heads: as transformers 5 writes them, layer by layer, or those of all layers that
/// see everything under keys of their own.
fn heads<'a>(
    config: &Section<'a>,
    decoder: &'a Decoder,
    windows: &'a Windows,
    values_are_keys: bool,
) -> Result<impl Fn(u32) -> Result<(u32, u32), ModelError> + use<'a>, ModelError> {
    let kv_heads = config.optional_count("num_global_key_value_heads", 1..=MAX_HEADS)?;
    let kv_heads = kv_heads.filter(|_| values_are_keys);
    let head_dim = config.optional_count("global_head_dim", 1..=MAX_HEAD_DIM)?;
    let of_layers = OfLayers::read(config, decoder.num_hidden_layers)?;
    let config = config.clone();
    Ok(move |layer: u32| {
        let (usual_kv, usual_dim) = (decoder.num_key_value_heads, decoder.head_dim);
        let is_wide = !windows.slides(layer);
        let (kv_heads, head_dim) = (kv_heads.filter(|_| is_wide), head_dim.filter(|_| is_wide));
        let (kv, dim) = if of_layers.is_there() {
            let keys = [("num_key_value_heads", MAX_HEADS), ("head_dim", MAX_HEAD_DIM)];
            let [kv, dim] = of_layers.counts(layer, keys)?;
            (kv.unwrap_or(usual_kv), dim.unwrap_or(usual_dim))
        } else {
            let silent = if is_wide { WIDE_HEAD_DIM } else { usual_dim };
            (kv_heads.unwrap_or(usual_kv), head_dim.unwrap_or(silent))
        };
        if kv_heads.is_some_and(|said| said != kv) || head_dim.is_some_and(|said| said != dim) {
            let problem = format!("says something else of layer {layer} than the keys beside it");
            return Err(config.problem(PER_LAYER, problem));
        }
        let heads = decoder.num_attention_heads;
        if !heads.is_multiple_of(kv) {
            let problem = format!("is {kv}, which does not divide {heads} attention heads");
            return Err(config.problem("num_global_key_value_heads", problem));
        }
        Ok((kv, dim))
    })
}

/// Sizes of the experts beside the dense part.
struct Mixture {
    count: u32,
    chosen: u32,
    inner: u32,
}

impl Mixture {
    /// `None` of a model without experts.
    fn read(config: &Section<'_>) -> Result<Option<Self>, ModelError> {
        if !config.flag("enable_moe_block", false)? {
            return Ok(None);
        }
        let (count, chosen) = expert_counts(config, "num_experts", "top_k_experts")?;
        let inner = config.count("moe_intermediate_size", 1..=MAX_WIDTH)?;
        Ok(Some(Self { count, chosen, inner }))
    }

    /// The mixture in a layer, beside its dense part.
    fn beside(
        &self,
        source: &Source<'_>,
        decoder: &Decoder,
        path: &str,
        dense: FeedForward,
    ) -> FeedForward {
        let FeedForward::Gated(dense) = dense else { return dense };
        let hidden = decoder.hidden_size;
        // MLX has a tensor for each, transformers those of gate and up in one.
        let stack = |name: &str, rows, columns, joined: &str, first, of| {
            let name = format!("{path}.experts.switch_glu.{name}");
            let mut each = decoder.linear(&name, rows, columns, false);
            let tensor = format!("{path}.experts.{joined}");
            if (source.has)(&tensor) {
                each.stored = Stored::Joined { tensor, first, of };
            }
            Stack { count: self.count, each }
        };
        let inner = self.inner;
        let norm = |name: &str| decoder.norm(&format!("{path}.{name}"), hidden);
        FeedForward::Beside(Box::new(Beside {
            dense: *dense,
            after_dense: norm("post_feedforward_layernorm_1"),
            before_router: RouterNorm {
                name: format!("{path}.router.scale"),
                width: hidden,
                eps: decoder.rms_norm_eps,
                factor: (hidden as f32).sqrt().recip(),
            },
            before_experts: norm("pre_feedforward_layernorm_2"),
            experts: Experts {
                router: decoder.linear(&format!("{path}.router.proj"), self.count, hidden, false),
                routes_wide: false,
                routing: Routing::ChooseThenSoftmax {
                    scales: Some(format!("{path}.router.per_expert_scale")),
                },
                chosen: self.chosen,
                gate: stack("gate_proj", inner, hidden, "gate_up_proj", 0, 2 * inner),
                up: stack("up_proj", inner, hidden, "gate_up_proj", inner, 2 * inner),
                down: stack("down_proj", hidden, inner, "down_proj", 0, hidden),
                activation: Activation::GeluTanh,
                shared: None,
            },
            after_experts: norm("post_feedforward_layernorm_2"),
        }))
    }
}
