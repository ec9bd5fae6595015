//! `config.json` as types whose values a model can really have.

use serde_json::Value;

use super::ModelError;
use super::json::Section;
use super::limits::{MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use crate::architecture::Architecture;
use crate::families::{self, Source};
use crate::geometry::{Cut, Geometry, UnitSizes, WorkingSet};

/// What `config.json` describes.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// A model of one of the families that MLX computes here.
    Transformer(Box<Architecture>),
    /// `"model_type": "planaria_fake"`: computes nothing, for tests.
    Fake(FakeConfig),
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
    /// Units into which its layers can be cut for a group of ranks; 8 where the file is silent.
    pub units: u16,
}

/// The `model_type` of [`FakeConfig`].
const FAKE: &str = "planaria_fake";

impl ModelConfig {
    /// Layers.
    #[must_use]
    pub fn layers(&self) -> u32 {
        match self {
            Self::Transformer(model) => model.layer_count(),
            Self::Fake(config) => config.num_hidden_layers,
        }
    }

    /// Width of a hidden state.
    #[must_use]
    pub const fn hidden_size(&self) -> u32 {
        match self {
            Self::Transformer(model) => model.hidden_size,
            Self::Fake(config) => config.hidden_size,
        }
    }

    /// Tokens that the model knows.
    #[must_use]
    pub const fn vocab(&self) -> u32 {
        match self {
            Self::Transformer(model) => model.vocab_size,
            Self::Fake(config) => config.vocab_size,
        }
    }

    /// Longest context in tokens.
    #[must_use]
    pub const fn max_context(&self) -> u32 {
        match self {
            Self::Transformer(model) => model.max_context,
            Self::Fake(config) => config.max_position_embeddings,
        }
    }

    /// Whether the model has files of weights.
    pub(crate) fn has_weights(root: &Section<'_>) -> bool {
        root.value("model_type").and_then(Value::as_str) != Some(FAKE)
    }

    /// `has` tells whether the files hold a tensor of that name.
    pub(crate) fn parse(
        root: &Section<'_>,
        has: &dyn Fn(&str) -> bool,
    ) -> Result<Self, ModelError> {
        let Some(model_type) = root.text("model_type")? else {
            return Err(root.problem("model_type", "is missing"));
        };
        if model_type == FAKE {
            return FakeConfig::parse(root).map(Self::Fake);
        }
        let Some(family) = families::of(model_type) else {
            let other: String = model_type.chars().take(40).collect();
            let known: Vec<&str> = families::names().chain([FAKE]).collect();
            let problem =
                format!("`{other}` is not supported; supported are `{}`", known.join("`, `"));
            return Err(root.problem("model_type", problem));
        };
        family(&Source::new(root.clone(), has)).map(|model| Self::Transformer(Box::new(model)))
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
            units: root
                .optional_count("units", 2..=64)?
                .unwrap_or(8)
                .try_into()
                .unwrap_or(u16::MAX),
        })
    }

    /// The sizes of its parts.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry {
            bytes_per_layer: vec![self.bytes_per_layer; self.num_hidden_layers as usize],
            embed_bytes: 0,
            head_bytes: 0,
            tied: false,
            kv_bytes_per_token_per_layer: crate::fake::KV_BYTES_PER_TOKEN,
            kv_layers: Vec::new(),
            hidden_bytes: self.hidden_size * 4,
            max_context: self.max_position_embeddings,
            vocab: self.vocab_size,
            working: WorkingSet::default(),
            cut: Some(Cut::Units(UnitSizes {
                count: self.units,
                shared_bytes: 0,
                key_heads: self.units.into(),
            })),
            whole: false,
        }
    }
}
