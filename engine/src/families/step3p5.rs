//! Step 3.5 Flash: layers of two kinds with query heads and positions of their own, a gate on what each head finds, and experts
//! that are judged by a sigmoid, beside one that every token passes. Gates of some layers are clamped.
//!
//! Lists by layer may go on for the layers that guess at tokens after the next one.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_activation, expect_silu};
use super::mixture::{TYPES, USUAL_NAMES, listed_kinds};
use super::of_layers::{OfLayers, PER_LAYER};
use super::rope::{Asked, EVERYWHERE, NEARBY, THETA};
use super::windows::Windows;
use crate::architecture::{
    Activation, Architecture, Experts, FeedForward, Gated, Rope, Routing, Stack,
};
use crate::model_dir::ModelError;
use crate::model_dir::json::{Section, brief};
use crate::model_dir::limits::{MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_WIDTH};

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    // The first is StepFun's name, the second that of transformers.
    let kv_heads = config.optional_count("num_attention_groups", 1..=MAX_HEADS)?;
    if config.value("num_key_value_heads").is_none() {
        config.doubt_silence("num_attention_groups");
    }
    let defaults = Defaults { kv_heads, eps: Some(1e-5), context: Some(262_144), ..Defaults::NONE };
    let decoder = Decoder::read(source, &defaults)?;
    let kv_heads = decoder.num_key_value_heads;
    config.agrees("num_attention_groups", kv_heads, "num_key_value_heads")?;
    expect_silu(config)?;
    expect_known(config)?;
    let layers = decoder.num_hidden_layers;
    let guessing = config.optional_count("num_nextn_predict_layers", 0..=MAX_LAYERS)?.unwrap_or(0);
    let lists = Lists { config, layers, all: layers + guessing };
    config.doubt_silence("layer_types");
    config.doubt_silence("sliding_window");
    let windows = Windows::read_with(guessing, config, layers, Some(512), |_| false)?;
    let nearby_heads = nearby_heads(config, &decoder, &windows)?;
    let positions = Positions::read(&lists, &windows)?;
    let sparse = lists.sparse()?;
    let mixture = Mixture::read(source, &decoder, &lists, &sparse)?;
    // MLX adds one to them when it converts a model; experts have other names then.
    let decoder = if mixture.is_original { decoder.with_norms_from_one() } else { decoder };
    // mlx-lm takes it for granted, StepFun's code does not.
    config.doubt_silence("use_head_wise_attn_gate");
    let is_gated = config.flag("use_head_wise_attn_gate", true)?;
    let scalar = config.optional_number("query_pre_attn_scalar", 1e-3..=1e9)?;
    let mut model = decoder.model(|layer| {
        let slides = windows.slides(layer);
        let heads = if slides { nearby_heads } else { decoder.num_attention_heads };
        let own = decoder.with_heads(heads, kv_heads, decoder.head_dim);
        let mut attention = own
            .attention(layer, &positions.of(&decoder, layer)?)
            .with_head_norms(own.head_norms(layer))
            .within(windows.of(layer));
        attention.scale = scalar.unwrap_or(decoder.head_dim as f32).sqrt().recip();
        let gate = format!("{}.self_attn.g_proj", decoder.path(layer));
        attention.gate = is_gated.then(|| decoder.linear(&gate, heads, decoder.hidden_size, false));
        let is_sparse = sparse.get(layer as usize).copied().unwrap_or_default();
        let feed_forward = if is_sparse {
            FeedForward::Experts(Box::new(mixture.experts(&decoder, layer)))
        } else {
            let path = format!("{}.mlp", decoder.path(layer));
            let dense = decoder.gated_at(&path, decoder.intermediate_size);
            let activation = clamped(&mixture.shared_limits, layer);
            FeedForward::Gated(Box::new(Gated { activation, ..dense }))
        };
        Ok(decoder.layer(layer, attention, feed_forward))
    })?;
    model.extras.extend(decoder.guessing_layers(config)?);
    Ok(model)
}

/// Refuses variants that StepFun's code knows and no published model is.
fn expect_known(config: &Section<'_>) -> Result<(), ModelError> {
    expect_activation(config, "moe_router_activation", &["sigmoid"])?;
    expect_activation(config, "att_impl_type", &["GQA"])?;
    for key in ["use_moe", "use_moe_router_bias", "norm_expert_weight", "zero_centered"] {
        if !config.flag(key, true)? {
            return Err(config.problem(key, "is false; expected true"));
        }
    }
    // `moe_layers_enum` has the last word.
    for key in ["moe_every_n_layer", "moe_layer_offset"] {
        config.value(key);
    }
    const TURNING: &str = "use_rope_layers";
    let turning = config.value(TURNING).and_then(|list| list.as_array());
    if turning.is_some_and(|list| list.iter().any(|turns| turns.as_bool() != Some(true))) {
        let problem = "names layers that do not know positions, which is not supported";
        return Err(config.problem(TURNING, problem));
    }
    Ok(())
}

/// Query heads of layers that see a window: beside those of the others, or layer by layer, as transformers 5 writes them.
fn nearby_heads(
    config: &Section<'_>,
    decoder: &Decoder,
    windows: &Windows,
) -> Result<u32, ModelError> {
    const OTHER: &str = "attention_other_setting";
    const HEADS: &str = "num_attention_heads";
    const NEARBY_HEADS: &str = "num_sliding_attention_heads";
    let usual = decoder.num_attention_heads;
    let said = config.optional_count(NEARBY_HEADS, 1..=MAX_HEADS)?;
    let heads = match config.section(OTHER)? {
        None => said.unwrap_or(usual),
        Some(other) => {
            expect_activation(&other, "attention_type", &[NEARBY])?;
            other.agrees(
                "num_attention_groups",
                decoder.num_key_value_heads,
                "num_attention_groups",
            )?;
            other.agrees("head_dim", decoder.head_dim, "head_dim")?;
            other.agrees("true_head_dim", decoder.head_dim, "head_dim")?;
            let heads = other.count(HEADS, 1..=MAX_HEADS)?;
            config.agrees(NEARBY_HEADS, heads, OTHER)?;
            heads
        }
    };
    let of_layers = OfLayers::read(config, decoder.num_hidden_layers)?;
    for layer in (0..decoder.num_hidden_layers).filter(|_| of_layers.is_there()) {
        let [own] = of_layers.counts(layer, [(HEADS, MAX_HEADS)])?;
        let expected = if windows.slides(layer) { heads } else { usual };
        if own.unwrap_or(usual) != expected {
            let problem = format!("says something else of layer {layer} than the keys beside it");
            return Err(config.problem(PER_LAYER, problem));
        }
    }
    if heads.is_multiple_of(decoder.num_key_value_heads) {
        return Ok(heads);
    }
    let problem = format!("is {heads}, which key heads do not divide");
    Err(config.problem(if said.is_some() { NEARBY_HEADS } else { OTHER }, problem))
}

/// Lists with an entry for each layer, and perhaps for layers that are left alone.
struct Lists<'a> {
    config: &'a Section<'a>,
    layers: u32,
    all: u32,
}

impl Lists<'_> {
    /// Cuts a list to the layers that count.
    fn cut<T>(&self, key: &str, mut list: Vec<T>) -> Result<Vec<T>, ModelError> {
        let (layers, all) = (self.layers as usize, self.all as usize);
        if list.len() != layers && list.len() != all {
            let problem = format!("has {} entries for {layers} layers", list.len());
            return Err(self.config.problem(key, problem));
        }
        list.truncate(layers);
        Ok(list)
    }

    /// Bounds of gates; `null` and 0 are none.
    fn limits(&self, key: &str) -> Result<Vec<Option<f32>>, ModelError> {
        let Some(value) = self.config.value(key) else {
            return Ok(vec![None; self.layers as usize]);
        };
        let problem = |value| {
            let problem = format!("holds {}; expected a list of bounds", brief(value));
            self.config.problem(key, problem)
        };
        let list = value.as_array().ok_or_else(|| problem(value))?;
        let bounds = list.iter().map(|bound| match bound.as_f64() {
            None if bound.is_null() => Ok(None),
            #[expect(clippy::cast_possible_truncation, reason = "f32 is all that the models use")]
            Some(number) if (0.0..=1e9).contains(&number) => {
                Ok(Some(number as f32).filter(|number| *number > 0.0))
            }
            _ => Err(problem(bound)),
        });
        self.cut(key, bounds.collect::<Result<_, _>>()?)
    }

    /// Which layers have experts: those that `moe_layers_enum` names, or `mlp_layer_types` as transformers 5 writes it.
    fn sparse(&self) -> Result<Vec<bool>, ModelError> {
        const NUMBERS: &str = "moe_layers_enum";
        let numbered = match self.config.value(NUMBERS) {
            None => None,
            Some(value) => Some(numbers(value).ok_or_else(|| {
                let problem = format!("is {}; expected numbers of layers", brief(value));
                self.config.problem(NUMBERS, problem)
            })?),
        };
        let numbered = numbered.map(|numbers| -> Vec<bool> {
            (0..self.layers).map(|layer| numbers.contains(&layer)).collect()
        });
        let Some(listed) = listed_kinds(self.config)? else {
            // Silence means other layers to mlx-lm than to transformers.
            self.config.doubt_silence(NUMBERS);
            return Ok(
                numbered.unwrap_or_else(|| (0..self.layers).map(|layer| layer >= 3).collect())
            );
        };
        let listed = self.cut(TYPES, listed)?;
        if numbered.is_some_and(|numbered| numbered != listed) {
            return Err(self
                .config
                .problem(TYPES, format!("says something else than `{NUMBERS}`")));
        }
        Ok(listed)
    }
}

/// Numbers in a list, or in a text with commas between them.
fn numbers(value: &serde_json::Value) -> Option<Vec<u32>> {
    let number = |value: &serde_json::Value| u32::try_from(value.as_u64()?).ok();
    match (value.as_array(), value.as_str()) {
        (Some(list), _) => list.iter().map(number).collect(),
        (_, Some(text)) => text
            .split(',')
            .filter(|word| !word.trim().is_empty())
            .map(|word| word.trim().parse().ok())
            .collect(),
        _ => None,
    }
}

/// Rotary positions, which differ from layer to layer.
struct Positions<'a> {
    config: &'a Section<'a>,
    /// The kind of each layer, where there is an object for each.
    kinds: Option<Vec<&'static str>>,
    /// Otherwise base, part of each head, and whether positions are stretched.
    of_layers: Vec<(f32, f32, bool)>,
    scaling: Option<Section<'a>>,
}

impl<'a> Positions<'a> {
    fn read(lists: &Lists<'a>, windows: &Windows) -> Result<Self, ModelError> {
        const THETAS: &str = "rope_theta";
        const PARTS: &str = "partial_rotary_factors";
        const STRETCHED: &str = "yarn_only_types";
        let config = lists.config;
        let layers = lists.layers as usize;
        let kind = |layer| if windows.slides(layer) { NEARBY } else { EVERYWHERE };
        let stretched = config.texts(STRETCHED)?;
        if config.value("rope_parameters").is_some() {
            if config.value(PARTS).is_some() {
                return Err(config.problem(PARTS, "stands beside `rope_parameters`"));
            }
            let kinds = Some((0..lists.layers).map(kind).collect());
            return Ok(Self { config, kinds, of_layers: Vec::new(), scaling: None });
        }
        let thetas = match config.value(THETAS) {
            Some(value) if value.is_array() => lists.cut(THETAS, config.numbers(THETAS, THETA)?)?,
            _ => vec![config.number(THETAS, THETA)?; layers],
        };
        let parts = match config.value(PARTS) {
            Some(_) => lists.cut(PARTS, config.numbers(PARTS, 1e-3..=1.0)?)?,
            None => vec![1.0; layers],
        };
        let scaling = config.section("rope_scaling")?;
        // mlx-lm stretches what the list names, or all without one; transformers those that see everything.
        if scaling.is_some() && stretched.is_none_or(|kinds| kinds != [EVERYWHERE]) {
            let problem =
                format!("is not a list of `{EVERYWHERE}` alone, but `rope_scaling` is there");
            return Err(config.problem(STRETCHED, problem));
        }
        let of_layers = thetas.into_iter().zip(parts).zip(0..);
        let of_layers =
            of_layers.map(|((theta, part), layer)| (theta, part, !windows.slides(layer))).collect();
        Ok(Self { config, kinds: None, of_layers, scaling })
    }

    fn of(&self, decoder: &Decoder, layer: u32) -> Result<Rope, ModelError> {
        let asked = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
        let asked = Asked { partial: true, theta_is_doubtful: true, ..asked };
        let index = layer as usize;
        if let Some(kinds) = &self.kinds {
            return Asked { layers: kinds.get(index).copied(), ..asked }.read(self.config);
        }
        let (theta, part, stretched) =
            self.of_layers.get(index).copied().unwrap_or((asked.theta, 1.0, false));
        asked.of(self.config, theta, part, self.scaling.as_ref().filter(|_| stretched))
    }
}

/// Sizes of the experts.
struct Mixture {
    count: u32,
    chosen: u32,
    inner: u32,
    shared: u32,
    scale: f32,
    routes_wide: bool,
    limits: Vec<Option<f32>>,
    shared_limits: Vec<Option<f32>>,
    /// Whether names are StepFun's.
    is_original: bool,
}

impl Mixture {
    fn read(
        source: &Source<'_>,
        decoder: &Decoder,
        lists: &Lists<'_>,
        sparse: &[bool],
    ) -> Result<Self, ModelError> {
        let config = lists.config;
        // The first names are StepFun's, the second those of transformers.
        let either = |keys: [&'static str; 2], limit| {
            let key = if config.value(keys[0]).is_some() { keys[0] } else { keys[1] };
            let count = config.count(key, 1..=limit)?;
            keys.iter().try_for_each(|other| config.agrees(other, count, key))?;
            Ok(count)
        };
        let count = either(["moe_num_experts", "n_routed_experts"], MAX_EXPERTS)?;
        let chosen = either(["moe_top_k", "num_experts_per_tok"], count)?;
        if chosen == 1 {
            return Err(config.problem("moe_top_k", "is 1, of which no model is known"));
        }
        const SCALE: &str = "moe_router_scaling_factor";
        config.doubt_silence(SCALE);
        let first = (0..).zip(sparse).find(|(_, sparse)| **sparse).map(|(layer, _)| layer);
        let Some(first) = first else {
            return Err(config.problem("moe_layers_enum", "names none of the layers"));
        };
        Ok(Self {
            count,
            chosen,
            inner: config.count("moe_intermediate_size", 1..=MAX_WIDTH)?,
            shared: config.count("share_expert_dim", 1..=MAX_WIDTH)?,
            scale: config.optional_number(SCALE, 1e-6..=1e6)?.unwrap_or(1.0),
            routes_wide: config.flag("need_fp32_gate", true)?,
            limits: lists.limits("swiglu_limits")?,
            shared_limits: lists.limits("swiglu_limits_shared")?,
            is_original: (source.has)(&format!("{}.moe.gate.weight", decoder.path(first))),
        })
    }

    /// The experts of a layer, and what every token passes.
    fn experts(&self, decoder: &Decoder, layer: u32) -> Experts {
        let path = decoder.path(layer);
        let (hidden, inner) = (decoder.hidden_size, self.inner);
        let [stacks, router, correction, shared] = if self.is_original {
            ["moe", "moe.gate", "moe.router_bias", "share_expert"]
        } else {
            ["mlp.switch_mlp", "mlp.gate.gate", "mlp.gate.router_bias", "mlp.share_expert"]
        }
        .map(|name| format!("{path}.{name}"));
        let [gate, up, down] = USUAL_NAMES.map(|name| {
            let name = format!("{stacks}.{name}");
            move |rows, columns| Stack {
                count: self.count,
                each: decoder.linear(&name, rows, columns, false),
            }
        });
        let shared = decoder.gated_at(&shared, self.shared);
        let activation = clamped(&self.shared_limits, layer);
        Experts {
            router: decoder.linear(&router, self.count, hidden, false),
            routes_wide: self.routes_wide,
            routing: Routing::Sigmoid {
                correction,
                groups: 1,
                chosen_groups: 1,
                normalized: true,
                scale: self.scale,
            },
            chosen: self.chosen,
            gate: gate(inner, hidden),
            up: up(inner, hidden),
            down: down(hidden, inner),
            activation: clamped(&self.limits, layer),
            shared: Some(Gated { activation, ..shared }),
        }
    }
}

fn clamped(limits: &[Option<f32>], layer: u32) -> Activation {
    match limits.get(layer as usize).copied().flatten() {
        None => Activation::Silu,
        Some(limit) => Activation::ClampedSilu { limit },
    }
}
