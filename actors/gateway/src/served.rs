//! What a node needs to know of a model to turn words into tokens and back: tokenizer, chat
//! template, and what its files say about answers. Weights are the workers' business.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use planaria_config::{ModelName, Parsers};
use planaria_engine::chat_template::ChatTemplate;
use planaria_engine::grammar::{Constraint, GrammarError, Grammars};
use planaria_engine::model_dir::{Content, ModelDir, ModelError};
use planaria_engine::reply::Dialect;
use planaria_engine::tokenizer::Tokenizer;
use planaria_protocol::desired::map::MOST_WANTED;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

pub use planaria_engine::model_dir::GenerationDefaults;

/// The models of this machine, each read when it is first asked for, or ahead of that if it is to be served.
#[derive(Debug)]
pub struct ServedModels {
    folder: PathBuf,
    /// Settings `tool-parser` and `reasoning-parser`.
    tool_parsers: Parsers,
    reasoning_parsers: Parsers,
    slots: Mutex<Slots>,
}

/// A model whose words this node knows.
#[derive(Debug)]
pub struct ServedModel {
    /// Its name.
    pub name: ModelName,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text.
    pub template: ChatTemplate,
    /// How it thinks and calls tools.
    pub dialect: Dialect,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// Longest sequence that it was made for, in tokens.
    pub max_context: u32,
    /// Tokens that it knows: ids are smaller.
    pub vocab: u32,
    /// How it wants to be sampled where a request is silent.
    pub defaults: GenerationDefaults,
    /// What it is.
    pub kind: Kind,
    /// The digests of the files that all this was read from.
    pub content: Content,
    /// Its tokens as a grammar sees them, made when the first answer is constrained.
    grammars: OnceLock<Result<Grammars, GrammarError>>,
}

/// What a model is, as its `config.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kind {
    /// Its `model_type`.
    pub family: String,
    /// Bits of its weights, if they are packed.
    pub bits: Option<u64>,
}

/// Why this node does not know a model's words. It may be asked again at any time: a folder that
/// was mended is read anew.
#[derive(Debug, Clone, Error)]
pub enum ServedModelError {
    /// Other nodes may have it.
    #[error(
        "the model `{0}` is not in this node's models folder: copy it there, or ask another node"
    )]
    NotHere(ModelName),
    /// Its folder is there and cannot be used.
    #[error("the model `{name}` cannot be used on this node: {problem}")]
    Broken {
        /// The model.
        name: ModelName,
        /// What is wrong, naming the file.
        problem: Arc<ModelError>,
    },
    /// The reader panicked, or the runtime is shutting down.
    #[error("the model `{0}` could not be read")]
    Interrupted(ModelName),
}

/// As many as a cluster can be to serve at a time: fewer would have `/ready`, which asks about all of them,
/// read each anew. Tokenizers take some ten megabytes each; the bound keeps a node whose models change
/// often from remembering all that it ever had.
const MOST_MODELS: usize = MOST_WANTED;

#[derive(Debug, Default)]
struct Slots {
    by_name: HashMap<ModelName, Slot>,
    /// Grows with every use, so the least recently used slot has the smallest.
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    model: Arc<OnceCell<Arc<ServedModel>>>,
    used: u64,
}

impl ServedModels {
    /// Models in folders below `models_dir`. Nothing is read yet.
    #[must_use]
    pub fn new(models_dir: impl Into<PathBuf>) -> Self {
        Self {
            folder: models_dir.into(),
            tool_parsers: Parsers::new(),
            reasoning_parsers: Parsers::new(),
            slots: Mutex::default(),
        }
    }

    /// The same with answers read as these settings say, where they do.
    #[must_use]
    pub fn reading(self, tool_parsers: Parsers, reasoning_parsers: Parsers) -> Self {
        Self { tool_parsers, reasoning_parsers, ..self }
    }

    /// The model, read from disk by whoever asks first while the others wait.
    ///
    /// # Errors
    /// When it is not on this node's disk or cannot be used.
    pub async fn get(&self, name: &ModelName) -> Result<Arc<ServedModel>, ServedModelError> {
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).take_up(name);
        let model = slot.get_or_try_init(|| self.read(name)).await?;
        Ok(Arc::clone(model))
    }

    /// Reads these models, one after the other, unless they are known. What cannot be read is told to whoever
    /// asks for it.
    pub async fn read_ahead(&self, names: Vec<ModelName>) {
        for name in names {
            if let Err(error) = self.get(&name).await {
                tracing::debug!(model = %name, %error, "its words were not read ahead");
            }
        }
    }

    /// Reads a model anew when it is asked for next: its files have changed.
    pub fn forget(&self, name: &ModelName) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).by_name.remove(name);
    }

    async fn read(&self, name: &ModelName) -> Result<Arc<ServedModel>, ServedModelError> {
        let folder = self.folder.join(name.as_str());
        let owned = name.clone();
        let tools = self.tool_parsers.of(name).copied();
        let reasoning = self.reasoning_parsers.of(name).copied();
        spawn_blocking(move || {
            let mut model = ServedModel::open(&folder, owned)?;
            // `none` is no format.
            if let Some(format) = tools {
                model.dialect.tools = format.parse().ok();
            }
            if let Some(format) = reasoning {
                model.dialect.reasoning = format.parse().ok();
            }
            Ok(Arc::new(model))
        })
        .await
        .unwrap_or_else(|_| Err(ServedModelError::Interrupted(name.clone())))
    }
}

impl Slots {
    fn take_up(&mut self, name: &ModelName) -> Arc<OnceCell<Arc<ServedModel>>> {
        self.clock += 1;
        let used = self.clock;
        let slot = self
            .by_name
            .entry(name.clone())
            .or_insert_with(|| Slot { model: Arc::default(), used });
        slot.used = used;
        let model = Arc::clone(&slot.model);
        if self.by_name.len() > MOST_MODELS {
            let oldest = self.by_name.iter().min_by_key(|(_, slot)| slot.used);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.by_name.remove(&oldest);
            }
        }
        model
    }
}

impl Kind {
    /// The file was read before, and is what it should be.
    fn open(folder: &Path) -> Self {
        let config = std::fs::read(folder.join("config.json")).unwrap_or_default();
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        let family = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let bits = config.pointer("/quantization/bits").and_then(Value::as_u64);
        Self { family: family.to_owned(), bits }
    }
}

impl ServedModel {
    /// Whether answers can be held to a constraint. Takes a moment.
    ///
    /// # Errors
    /// When they cannot, and why.
    pub fn check(&self, constraint: &Constraint) -> Result<(), GrammarError> {
        let grammars = self.grammars.get_or_init(|| Grammars::new(&self.tokenizer, self.vocab));
        let grammars = grammars.as_ref().map_err(GrammarError::clone)?;
        grammars.compile(constraint).map(drop)
    }

    fn open(folder: &Path, name: ModelName) -> Result<Self, ServedModelError> {
        if !folder.is_dir() {
            return Err(ServedModelError::NotHere(name));
        }
        let model = ModelDir::open(folder).and_then(|dir| {
            let content = dir.content();
            let tokenizer = Tokenizer::open(&dir)?;
            let template = ChatTemplate::open(&dir)?;
            let kind = Kind::open(folder);
            // Of files that are being replaced some may be old and others new.
            if dir.content() != content {
                return Err(ModelError::Changed { file: folder.to_owned() });
            }
            Ok((template, tokenizer, kind, content, dir))
        });
        match model {
            Ok((template, tokenizer, kind, content, dir)) => {
                warn_of(&name, &tokenizer, dir.config().vocab());
                let dialect = Dialect::detect(template.source(), |t| tokenizer.id_of(t).is_some());
                Ok(Self {
                    dialect,
                    template,
                    eos: tokenizer.eos_token_ids().iter().copied().collect(),
                    tokenizer: Arc::new(tokenizer),
                    max_context: dir.config().max_context(),
                    vocab: dir.config().vocab(),
                    defaults: *dir.generation_defaults(),
                    kind,
                    content,
                    name,
                    grammars: OnceLock::new(),
                })
            }
            Err(problem) => Err(ServedModelError::Broken { name, problem: Arc::new(problem) }),
        }
    }
}

/// Says what is odd about a model's tokenizer; of its other files the inventory says it.
fn warn_of(model: &ModelName, tokenizer: &Tokenizer, vocab: u32) {
    for warning in tokenizer.warnings() {
        tracing::warn!(%model, "{warning}");
    }
    let beyond = tokenizer.count_beyond(vocab);
    if beyond > 0 {
        tracing::warn!(
            %model,
            "the tokenizer knows {beyond} tokens beyond the model's {vocab}; a request whose prompt \
             holds one is refused"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_read_ahead_is_known_while_its_files_are_away() {
        let models = tempfile::tempdir().unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../engine/models/demo");
        std::os::unix::fs::symlink(demo, models.path().join("demo")).unwrap();
        let served = ServedModels::new(models.path());
        let [here, gone] = ["demo", "gone"].map(|name| name.parse::<ModelName>().unwrap());
        served.read_ahead(vec![gone.clone(), here.clone()]).await;
        std::fs::remove_file(models.path().join("demo")).unwrap();
        assert!(served.get(&here).await.is_ok());
        assert!(matches!(served.get(&gone).await, Err(ServedModelError::NotHere(_))));
    }

    #[test]
    fn only_models_of_late_are_kept() {
        let mut slots = Slots::default();
        let name = |n: usize| format!("m{n}").parse::<ModelName>().unwrap();
        let first = slots.take_up(&name(0));
        for n in 1..2 * MOST_MODELS {
            slots.take_up(&name(n));
            assert!(Arc::ptr_eq(&first, &slots.take_up(&name(0))));
        }
        assert_eq!(slots.by_name.len(), MOST_MODELS);
        assert!(slots.by_name.contains_key(&name(2 * MOST_MODELS - 1)));
        assert!(!slots.by_name.contains_key(&name(1)));
    }
}
