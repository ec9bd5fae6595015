//! `config.json` and `generation_config.json` as types whose values a model can really have.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::ModelError;
use super::json::Section;

/// The most layers that any model is taken to have; the deepest published has 126.
pub const MAX_LAYERS: u32 = 1024;

/// Far above every published width, vocabulary and context, and small enough that no product of
/// two or three of them leaves 64 bits.
const MAX_WIDTH: u32 = 1 << 20;
const MAX_HEADS: u32 = 1 << 12;
const MAX_VOCAB: u32 = 1 << 24;
const MAX_CONTEXT: u32 = 1 << 26;

/// What `config.json` says, by model family.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// `"model_type": "llama"`.
    Llama(LlamaConfig),
    /// `"model_type": "planaria_fake"`: computes nothing, for tests.
    Fake(FakeConfig),
}

/// A model of the Llama family. Names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Width of a hidden state.
    pub hidden_size: u32,
    /// Width inside the MLP.
    pub intermediate_size: u32,
    /// Layers.
    pub num_hidden_layers: u32,
    /// Query heads.
    pub num_attention_heads: u32,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: u32,
    /// Width of a head, even; `hidden_size / num_attention_heads` where the file is silent.
    pub head_dim: u32,
    /// Added to the mean square in every norm; above 0.
    pub rms_norm_eps: f32,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Longest context; 2048 where the file is silent.
    pub max_position_embeddings: u32,
    /// Whether the embedding is also the head. **True where the file is silent**, as in mlx-lm's
    /// llama (Hugging Face's own default is false, but files usually say it).
    pub tie_word_embeddings: bool,
    /// Whether the four attention projections have biases.
    pub attention_bias: bool,
    /// Whether the three MLP projections have biases.
    pub mlp_bias: bool,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Whether consecutive numbers are rotated, instead of the two halves.
    pub rope_traditional: bool,
    /// How positions are stretched.
    pub rope_scaling: RopeScaling,
    /// How weights are quantized; `None` when none is.
    pub quantization: Option<Quantization>,
}

/// Stretching of rotary positions (`rope_scaling`, or `rope_parameters` in newer files).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Positions are divided by `factor`.
    Linear {
        /// Above 0.
        factor: f32,
    },
    /// Llama 3: low frequencies are divided, high ones kept, those between blended.
    Llama3 {
        /// Above 0.
        factor: f32,
        /// Wavelengths over `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths under `original_max_position_embeddings / high_freq_factor` are kept. Larger
        /// than `low_freq_factor`.
        high_freq_factor: f32,
        /// Context that the model was first trained for.
        original_max_position_embeddings: u32,
    },
}

/// Affine quantization, for the whole model and by module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantization {
    /// For every module that has scales and is not listed.
    pub default: QuantParams,
    /// By module path: `None` is not quantized.
    pub overrides: BTreeMap<String, Option<QuantParams>>,
}

/// How one matrix is quantized (affine: `w = scale * q + bias`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantParams {
    /// Weights that share a scale: 32, 64 or 128.
    pub group_size: u32,
    /// Bits of a weight: 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
}

/// A model that computes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeConfig {
    /// Layers.
    pub num_hidden_layers: u32,
    /// Width of a hidden state.
    pub hidden_size: u32,
    /// Tokens that it knows.
    pub vocab_size: u32,
    /// Longest context.
    pub max_position_embeddings: u32,
    /// How long each layer sleeps in each step, in microseconds; 0 where the file is silent.
    pub step_micros: u32,
    /// What a layer is said to weigh; 1 MiB where the file is silent.
    pub bytes_per_layer: u64,
}

impl ModelConfig {
    /// Layers.
    #[must_use]
    pub const fn layers(&self) -> u32 {
        match self {
            Self::Llama(config) => config.num_hidden_layers,
            Self::Fake(config) => config.num_hidden_layers,
        }
    }

    /// Width of a hidden state.
    #[must_use]
    pub const fn hidden_size(&self) -> u32 {
        match self {
            Self::Llama(config) => config.hidden_size,
            Self::Fake(config) => config.hidden_size,
        }
    }

    /// Tokens that the model knows.
    #[must_use]
    pub const fn vocab(&self) -> u32 {
        match self {
            Self::Llama(config) => config.vocab_size,
            Self::Fake(config) => config.vocab_size,
        }
    }

    /// Longest context in tokens.
    #[must_use]
    pub const fn max_context(&self) -> u32 {
        match self {
            Self::Llama(config) => config.max_position_embeddings,
            Self::Fake(config) => config.max_position_embeddings,
        }
    }

    pub(crate) fn parse(file: &Path, json: &Map<String, Value>) -> Result<Self, ModelError> {
        let root = Section::root(file, json);
        match root.text("model_type")? {
            Some("llama") => LlamaConfig::parse(&root).map(Self::Llama),
            Some("planaria_fake") => FakeConfig::parse(&root).map(Self::Fake),
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                let problem = format!(
                    "`{other}` is not supported; supported are `llama` and `planaria_fake`"
                );
                Err(root.problem("model_type", problem))
            }
            None => Err(root.problem("model_type", "is missing")),
        }
    }
}

impl LlamaConfig {
    /// How `module` (such as `model.layers.0.mlp.up_proj`) is quantized. A module that is not
    /// listed in the file is quantized if it has scales, which the caller knows.
    #[must_use]
    pub fn quantization_of(&self, module: &str, has_scales: bool) -> Option<QuantParams> {
        let quantization = self.quantization.as_ref()?;
        match quantization.overrides.get(module) {
            Some(listed) => *listed,
            None => has_scales.then_some(quantization.default),
        }
    }

    fn parse(root: &Section<'_>) -> Result<Self, ModelError> {
        let hidden_size = root.count("hidden_size", 1..=MAX_WIDTH)?;
        let heads = root.count("num_attention_heads", 1..=MAX_HEADS)?;
        let kv_heads = root.optional_count("num_key_value_heads", 1..=MAX_HEADS)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let problem = format!("is {kv_heads}, which does not divide {heads} attention heads");
            return Err(root.problem("num_key_value_heads", problem));
        }
        let head_dim = match root.optional_count("head_dim", 1..=MAX_WIDTH)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let problem =
                    format!("is {hidden_size}, which {heads} attention heads do not divide");
                return Err(root.problem("hidden_size", problem));
            }
        };
        if !head_dim.is_multiple_of(2) {
            let problem = format!("is {head_dim}; rotary embeddings need an even number");
            return Err(root.problem("head_dim", problem));
        }
        refuse_variants(root)?;
        let (rope_theta, rope_scaling) = rope(root)?;
        Ok(Self {
            hidden_size,
            intermediate_size: root.count("intermediate_size", 1..=MAX_WIDTH)?,
            num_hidden_layers: root.count("num_hidden_layers", 1..=MAX_LAYERS)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: root.number("rms_norm_eps", f32::MIN_POSITIVE..=1.0)?,
            vocab_size: root.count("vocab_size", 1..=MAX_VOCAB)?,
            max_position_embeddings: root
                .optional_count("max_position_embeddings", 1..=MAX_CONTEXT)?
                .unwrap_or(2048),
            tie_word_embeddings: root.flag("tie_word_embeddings", true)?,
            attention_bias: root.flag("attention_bias", false)?,
            mlp_bias: root.flag("mlp_bias", false)?,
            rope_theta,
            rope_traditional: root.flag("rope_traditional", false)?,
            rope_scaling,
            quantization: quantization(root)?,
        })
    }
}

impl FakeConfig {
    fn parse(root: &Section<'_>) -> Result<Self, ModelError> {
        let bytes_per_layer = match root.value("bytes_per_layer") {
            None => 1 << 20,
            Some(value) => value
                .as_u64()
                .filter(|bytes| *bytes <= 1 << 48)
                .ok_or_else(|| root.problem("bytes_per_layer", "is not a number up to 2^48"))?,
        };
        Ok(Self {
            num_hidden_layers: root.count("num_hidden_layers", 1..=MAX_LAYERS)?,
            hidden_size: root.count("hidden_size", 1..=MAX_WIDTH)?,
            vocab_size: root.count("vocab_size", 1..=MAX_VOCAB)?,
            max_position_embeddings: root.count("max_position_embeddings", 1..=MAX_CONTEXT)?,
            step_micros: root.optional_count("step_micros", 0..=10_000_000)?.unwrap_or(0),
            bytes_per_layer,
        })
    }
}

/// Files call themselves llama and mean more than what is computed here: refuse, rather than
/// answer nonsense.
fn refuse_variants(root: &Section<'_>) -> Result<(), ModelError> {
    for key in ["hidden_act", "hidden_activation"] {
        if let Some(other) = root.text(key)?.filter(|name| !["silu", "swish"].contains(name)) {
            let other: String = other.chars().take(40).collect();
            return Err(root.problem(key, format!("`{other}` is not supported; expected `silu`")));
        }
    }
    if let Some(Value::Array(types)) = root.value("layer_types")
        && types.iter().any(|kind| kind.as_str() != Some("full_attention"))
    {
        return Err(root.problem("layer_types", "only `full_attention` is supported"));
    }
    Ok(())
}

fn rope(root: &Section<'_>) -> Result<(f32, RopeScaling), ModelError> {
    const THETA: std::ops::RangeInclusive<f32> = 1.0..=1e12;
    let newer = root.section("rope_parameters")?;
    let theta = match root.optional_number("rope_theta", THETA)? {
        Some(theta) => Some(theta),
        None => {
            newer.as_ref().map(|s| s.optional_number("rope_theta", THETA)).transpose()?.flatten()
        }
    };
    let scaling = match root.section("rope_scaling")?.or(newer) {
        Some(section) => rope_scaling(&section)?,
        None => RopeScaling::Default,
    };
    // Without a word in the file both mlx-lm and Hugging Face use 10000.
    Ok((theta.unwrap_or(10_000.0), scaling))
}

fn rope_scaling(section: &Section<'_>) -> Result<RopeScaling, ModelError> {
    const FACTOR: std::ops::RangeInclusive<f32> = 1e-3..=1e6;
    let key = if section.value("rope_type").is_some() { "rope_type" } else { "type" };
    match section.text(key)? {
        None | Some("default") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear { factor: section.number("factor", FACTOR)? }),
        Some("llama3") => {
            let low = section.optional_number("low_freq_factor", FACTOR)?.unwrap_or(1.0);
            let high = section.optional_number("high_freq_factor", FACTOR)?.unwrap_or(4.0);
            if high <= low {
                let problem = format!("is {high}; must be larger than low_freq_factor, {low}");
                return Err(section.problem("high_freq_factor", problem));
            }
            Ok(RopeScaling::Llama3 {
                factor: section.number("factor", FACTOR)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: section
                    .optional_count("original_max_position_embeddings", 1..=MAX_CONTEXT)?
                    .unwrap_or(8192),
            })
        }
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            let problem = format!(
                "`{other}` is not supported; supported are `default`, `linear` and `llama3`"
            );
            Err(section.problem(key, problem))
        }
    }
}

fn quantization(root: &Section<'_>) -> Result<Option<Quantization>, ModelError> {
    let Some(section) = root.section("quantization")? else {
        return match root.section("quantization_config")? {
            None => Ok(None),
            Some(_) => Err(root.problem(
                "quantization_config",
                "is not MLX's format (which has a `quantization` entry): convert the model with \
                 mlx_lm.convert",
            )),
        };
    };
    let default = quant_params(&section)?;
    let mut overrides = BTreeMap::new();
    for (key, value) in section.entries() {
        let listed = match value {
            Value::Bool(false) => None,
            Value::Bool(true) => Some(default),
            Value::Object(_) => match section.section(key)? {
                Some(section) => Some(quant_params(&section)?),
                None => None,
            },
            _ => continue,
        };
        overrides.insert(key.clone(), listed);
    }
    Ok(Some(Quantization { default, overrides }))
}

fn quant_params(section: &Section<'_>) -> Result<QuantParams, ModelError> {
    if let Some(mode) = section.text("mode")?.filter(|mode| *mode != "affine") {
        let mode: String = mode.chars().take(40).collect();
        return Err(
            section.problem("mode", format!("`{mode}` is not supported; expected `affine`"))
        );
    }
    let one_of = |key: &str, allowed: &[u32]| {
        let found = section.count(key, 1..=128)?;
        if allowed.contains(&found) {
            Ok(found)
        } else {
            Err(section.problem(key, format!("is {found}; expected one of {allowed:?}")))
        }
    };
    Ok(QuantParams {
        group_size: one_of("group_size", &[32, 64, 128])?,
        bits: one_of("bits", &[2, 3, 4, 5, 6, 8])?,
    })
}
