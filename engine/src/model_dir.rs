//! A model's folder in Hugging Face / MLX layout: opened, checked and described without reading
//! its weights.
//!
//! [`ModelDir::open`] reads `config.json`, `generation_config.json` and the headers of the
//! safetensors files, and checks that every tensor of the model's [`Architecture`] is there, whole
//! and of the right shape. What is wrong is said here, naming the file and the key or tensor;
//! whoever loads a shard afterwards can rely on it.

mod config;
mod content;
mod digest;
mod error;
mod generation;
mod headers;
pub(crate) mod json;
pub(crate) mod limits;
mod made;
mod models_folder;
mod quantization;
mod repack;
mod shelves;
mod stamp;
mod tensors;
mod unclaimed;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use planaria_config::{KvBits, LayerSet};
pub use safetensors::Dtype;

pub use self::config::{FakeConfig, ModelConfig};
pub use self::content::{Content, InvalidPartDigest, Part, PartDigest, TensorSum};
pub use self::digest::{InvalidModelDigest, ModelDigest};
pub use self::error::ModelError;
use self::generation::Generation;
pub use self::generation::GenerationDefaults;
use self::headers::Stored;
pub use self::headers::TensorInfo;
use self::json::{Section, parse_object, read_bounded};
pub use self::limits::MAX_LAYERS;
pub use self::made::Made;
pub use self::models_folder::ModelsFolder;
use self::quantization::Listed;
pub use self::quantization::{QuantMode, QuantParams};
use self::repack::Repacked;
pub use self::shelves::{PassedOver, Shelves, look_for_models, model_names};
pub use self::stamp::{Stamp, Stamps};
use self::tensors::Shelf;
pub use self::tensors::{Columns, Pick, Piece, Tensor};
use self::unclaimed::Claims;
use crate::architecture::{Architecture, Attention, Part as Module, Share, Uncuttable};
use crate::families;
use crate::geometry::{Cut, Geometry, UnitSizes};

/// Real files have a few KiB; some carry a list per layer.
pub(crate) const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A model's folder, found sound.
#[derive(Debug, Clone)]
pub struct ModelDir {
    path: PathBuf,
    config: ModelConfig,
    eos_token_ids: Vec<u32>,
    tensors: BTreeMap<String, TensorInfo>,
    repacked: Option<Repacked>,
    listed: Listed,
    activation: Dtype,
    geometry: Geometry,
    digest: ModelDigest,
    warnings: Vec<String>,
    generation_defaults: GenerationDefaults,
    stamps: Stamps,
}

impl ModelDir {
    /// Opens and checks a folder.
    ///
    /// # Errors
    /// Naming the file, and the key or tensor in it, that keeps the model from being used.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let config_file = path.join("config.json");
        if !config_file.exists() {
            let wanted = "every model has one".to_owned();
            return Err(ModelError::MissingFile { file: config_file, wanted });
        }
        // Before anything is read, so that what changes meanwhile is noticed.
        let before = stamp::of_folder(path)?;
        let config_bytes = read_bounded(&config_file, MAX_CONFIG_BYTES)?;
        let json = parse_object(&config_file, &config_bytes)?;
        let root = Section::root(&config_file, &json);
        let mut warnings = Vec::new();
        let Stored { tensors, incomplete } = if ModelConfig::has_weights(&root) {
            headers::read_tensors(path, &mut warnings)?
        } else {
            Stored::default()
        };
        let repacked = Repacked::of(&root, &tensors)?;
        let known = repacked.as_ref().map_or(&tensors, Repacked::tensors);
        let has = |name: &str| known.contains_key(name);
        let config = ModelConfig::parse(&root, &has)?;
        let listed = Listed::read(&root)?;
        let repacked_here = repacked.as_ref();
        let shelf =
            Shelf { folder: path, stored: &tensors, repacked: repacked_here, listed: &listed };
        let (geometry, activation) = match &config {
            ModelConfig::Transformer(model) => {
                let model_type = root.text("model_type")?.unwrap_or_default();
                let geometry = match (transformer_geometry(shelf, model, model_type), incomplete) {
                    // A download that is not done, and not a model of another kind.
                    (Err(ModelError::MissingTensor { .. }), Some(incomplete)) => {
                        return Err(incomplete);
                    }
                    (Ok(geometry), Some(unneeded)) => {
                        warnings.push(format!("{unneeded}; the model does without"));
                        geometry
                    }
                    (geometry, _) => geometry?,
                };
                warnings.extend(unknown_keys(&root)?);
                geometry
            }
            ModelConfig::Fake(config) => (config.geometry(), Dtype::F32),
        };
        let mut eos_token_ids = end_tokens(&root)?;
        let generation = Generation::open(path, &mut warnings)?;
        if !generation.eos_token_ids.is_empty() {
            eos_token_ids = generation.eos_token_ids;
        }
        let digest = ModelDigest::of(&config_bytes, &tensors)?;
        let files = tensors.values().map(|tensor| &*tensor.file).chain([config_file.as_path()]);
        let files: BTreeSet<&Path> = files.collect();
        let stamps = stamp::unchanged(&before, files)?;
        let path = path.to_owned();
        Ok(Self {
            path,
            config,
            eos_token_ids,
            tensors,
            repacked,
            listed,
            activation,
            geometry,
            digest,
            warnings,
            generation_defaults: generation.defaults,
            stamps,
        })
    }

    /// The same model, with the numbers of its KV caches packed as a setting says. Planned layers (`fake`) have none.
    ///
    /// # Errors
    /// When it has rows of numbers that cannot be packed.
    pub fn with_kv_bits(mut self, bits: Option<KvBits>) -> Result<Self, ModelError> {
        let ModelConfig::Transformer(model) = &mut self.config else { return Ok(self) };
        model.kv_bits = bits;
        if let Some(problem) = bits.and_then(|_| model.unpackable_kv()) {
            return Err(ModelError::KvBits { folder: self.path, problem });
        }
        let width = number_bytes(self.activation);
        self.geometry.set_kv(model.kv(width));
        self.geometry.working = model.working_set(width);
        Ok(self)
    }

    /// What the numbers of its KV caches are packed into; `None`: as they are.
    #[must_use]
    pub fn kv_bits(&self) -> Option<KvBits> {
        match &self.config {
            ModelConfig::Transformer(model) => model.kv_bits,
            ModelConfig::Fake(_) => None,
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `config.json` says.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokens that end an answer: those of `generation_config.json`, else of `config.json`, as
    /// mlx-lm has it. May be empty; the tokenizer may know one then.
    #[must_use]
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// How it wants to be sampled where a request is silent.
    #[must_use]
    pub const fn generation_defaults(&self) -> &GenerationDefaults {
        &self.generation_defaults
    }

    /// Every tensor in the folder, needed or not, by the name that the files give it.
    #[must_use]
    pub const fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The type of hidden states: the one that all floating-point tensors of the model promote to
    /// (`F32` if any is, or if both 16-bit types are there).
    #[must_use]
    pub const fn activation(&self) -> Dtype {
        self.activation
    }

    /// The sizes of its parts.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What tells this model from others. Nodes compare it before they share a pipeline.
    #[must_use]
    pub const fn digest(&self) -> ModelDigest {
        self.digest
    }

    /// What is odd about the folder and was passed over, each naming the file and what in it. A model
    /// with such oddities is used; somebody should look at them.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The stamps of the files that layers are loaded from, and of `config.json`, as they were when the
    /// folder was opened. What is loaded later is loaded from the same files, or not at all.
    #[must_use]
    pub const fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// The tensors that a stage with `layers` needs: those of the layers, of the embedding if it
    /// has the first (or the last of a tied model), of the last norm and the head if it has the
    /// last.
    ///
    /// # Errors
    /// When the model has no such layers, or a tensor is missing or of the wrong shape.
    pub fn tensors_for(&self, layers: &LayerSet) -> Result<Vec<Tensor>, ModelError> {
        self.tensors_beyond(&LayerSet::EMPTY, layers)
    }

    /// Those of them that a stage with the layers `held` does without.
    ///
    /// # Errors
    /// As [`ModelDir::tensors_for`].
    pub fn tensors_beyond(
        &self,
        held: &LayerSet,
        layers: &LayerSet,
    ) -> Result<Vec<Tensor>, ModelError> {
        let count = self.config.layers();
        if let Some(range) = layers.runs().iter().find(|run| run.last() >= count) {
            return Err(ModelError::NoSuchLayers { range: *range, layers: count });
        }
        let ModelConfig::Transformer(model) = &self.config else {
            return Ok(Vec::new());
        };
        self.parts_beyond(model, held, layers)
    }

    /// Into how many units each layer is cut for a group of ranks; see [`crate::architecture::Share`].
    ///
    /// # Errors
    /// When there is a part that cannot be cut.
    pub fn units(&self) -> Result<u16, Uncuttable> {
        match &self.config {
            ModelConfig::Transformer(model) => self.shelf().units(model),
            ModelConfig::Fake(config) => Ok(config.units),
        }
    }

    /// What a rank with the units `own` of [`Self::units`] holds, which also holds the keys and values of the units `kept`.
    ///
    /// # Errors
    /// When there is a part that cannot be cut.
    pub fn share(&self, own: Range<u16>, kept: Range<u16>) -> Result<Share, Uncuttable> {
        match &self.config {
            ModelConfig::Transformer(model) => {
                let shelf = self.shelf();
                model.share(self.units()?, own, kept, |linear| shelf.column_group(linear))
            }
            ModelConfig::Fake(_) => {
                Err(Uncuttable { module: "layers".to_owned(), why: "have no weights".to_owned() })
            }
        }
    }

    /// The tensors that a rank with this share of the model needs for `layers` beyond those that it needs for `held`, as
    /// [`ModelDir::tensors_beyond`].
    ///
    /// # Errors
    /// As there.
    pub fn tensors_of_share(
        &self,
        share: &Share,
        held: &LayerSet,
        layers: &LayerSet,
    ) -> Result<Vec<Tensor>, ModelError> {
        self.parts_beyond(&share.architecture, held, layers)
    }

    fn shelf(&self) -> Shelf<'_> {
        Shelf {
            folder: &self.path,
            stored: &self.tensors,
            repacked: self.repacked.as_ref(),
            listed: &self.listed,
        }
    }

    fn parts_beyond(
        &self,
        model: &Architecture,
        held: &LayerSet,
        layers: &LayerSet,
    ) -> Result<Vec<Tensor>, ModelError> {
        let count = self.config.layers();
        let has_head = |layers: &LayerSet| layers.contains(count - 1);
        let has_embedding =
            |layers: &LayerSet| layers.contains(0) || (has_head(layers) && model.head.is_none());
        let mut parts = Vec::new();
        if has_embedding(layers) && !has_embedding(held) {
            parts.push(Module::Embedding);
        }
        parts.extend(layers.without(held).layers().map(Module::Layer));
        if has_head(layers) && !has_head(held) {
            parts.push(Module::Head);
        }
        let shelf = self.shelf();
        let mut tensors = Vec::new();
        for part in parts {
            tensors.extend(shelf.part(model, part)?.into_iter().map(|found| found.tensor));
        }
        Ok(tensors)
    }
}

/// The tokens that end an answer, by a configuration, or by that of the language model in it.
fn end_tokens(root: &Section<'_>) -> Result<Vec<u32>, ModelError> {
    let own = root.token_ids("eos_token_id")?;
    match root.section("text_config")? {
        Some(inner) if own.is_empty() => inner.token_ids("eos_token_id"),
        _ => Ok(own),
    }
}

/// What nobody knows of a configuration, for people to look at.
fn unknown_keys(root: &Section<'_>) -> Result<Vec<String>, ModelError> {
    let mut unknown = families::unknown_keys(root)?;
    // Of a larger model, of which the language model is a part.
    const INNER: &str = "text_config";
    if root.never_asked().iter().all(|(key, _)| *key != INNER)
        && let Some(inner) = root.section(INNER)?
    {
        unknown.extend(families::unknown_keys(&inner)?);
    }
    let say = |key| format!("config.json: `{key}` is not known here and was passed over");
    Ok(unknown.into_iter().map(say).collect())
}

fn transformer_geometry(
    shelf: Shelf<'_>,
    model: &Architecture,
    model_type: &str,
) -> Result<(Geometry, Dtype), ModelError> {
    let mut claims = Claims::new(shelf);
    let mut activation = None;
    let mut size_of = |part| {
        let mut bytes = 0;
        for found in shelf.part(model, part)? {
            if found.decides_type {
                activation = promote(activation, found.tensor.dtype);
            }
            bytes += found.tensor.byte_count();
            claims.add(&found.tensor.pieces);
        }
        Ok::<u64, ModelError>(bytes)
    };
    let embed_bytes = size_of(Module::Embedding)?;
    let head_bytes = size_of(Module::Head)?;
    let bytes_per_layer = (0..model.layer_count())
        .map(|layer| size_of(Module::Layer(layer)))
        .collect::<Result<Vec<u64>, ModelError>>()?;
    claims.expect_all(model, model_type)?;
    let cut = cut(shelf, model, bytes_per_layer.iter().sum())?;
    let activation = activation.unwrap_or(Dtype::F32);
    let width = number_bytes(activation);
    let mut geometry = Geometry {
        bytes_per_layer,
        embed_bytes,
        head_bytes,
        tied: model.head.is_none(),
        kv_bytes_per_token_per_layer: 0,
        kv_layers: Vec::new(),
        hidden_bytes: model.hidden_size * u32::try_from(width).unwrap_or(u32::MAX),
        max_context: model.max_context,
        vocab: model.vocab_size,
        working: model.working_set(width),
        cut: Some(cut),
        whole: model.whole().is_some(),
    };
    geometry.set_kv(model.kv(width));
    Ok((geometry, activation))
}

/// Bytes of a number of hidden states, and of KV that is not packed.
const fn number_bytes(activation: Dtype) -> u64 {
    if matches!(activation, Dtype::F32) { 4 } else { 2 }
}

/// How the layers of a model, which have so many bytes, can be shared by ranks.
fn cut(shelf: Shelf<'_>, model: &Architecture, layer_bytes: u64) -> Result<Cut, ModelError> {
    let count = match shelf.units(model) {
        Ok(count) => count,
        Err(uncuttable) => return Ok(Cut::Whole(uncuttable.to_string())),
    };
    // What two ranks have between them beyond one model they both have.
    let mut all = 0;
    for own in [0..count / 2, count / 2..count] {
        let share = match model.share(count, own.clone(), own, |linear| shelf.column_group(linear))
        {
            Ok(share) => share.architecture,
            Err(uncuttable) => return Ok(Cut::Whole(uncuttable.to_string())),
        };
        for layer in 0..share.layer_count() {
            let found = shelf.part(&share, Module::Layer(layer))?;
            all += found.iter().map(|found| found.tensor.byte_count()).sum::<u64>();
        }
    }
    let shared_bytes = all.saturating_sub(layer_bytes);
    let key_heads = model.layers.iter().map(|layer| match &layer.attention {
        Attention::Grouped(grouped) => grouped.kv_heads,
        Attention::Latent(_) => 0,
    });
    // Where layers differ, those with the fewest say what a rank holds at most.
    Ok(Cut::Units(UnitSizes { count, shared_bytes, key_heads: key_heads.min().unwrap_or(0) }))
}

/// The type of a sum of two numbers, as MLX has it; types that are no float change nothing.
const fn promote(so_far: Option<Dtype>, next: Dtype) -> Option<Dtype> {
    match (so_far, next) {
        (None, Dtype::F32 | Dtype::F16 | Dtype::BF16) => Some(next),
        (Some(Dtype::F16), Dtype::F16) => Some(Dtype::F16),
        (Some(Dtype::BF16), Dtype::BF16) => Some(Dtype::BF16),
        (Some(_), Dtype::F32 | Dtype::F16 | Dtype::BF16) => Some(Dtype::F32),
        (so_far, _) => so_far,
    }
}
