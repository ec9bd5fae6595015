//! The folder that models are in, and what settings say of them.

use std::path::{Path, PathBuf};

use planaria_config::{KvBits, ModelName, PerModel, Settings};

use super::{ModelDir, ModelError};

/// A node's models folder, and how its settings have models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelsFolder {
    path: PathBuf,
    kv_bits: PerModel<Option<KvBits>>,
}

impl ModelsFolder {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the folder of a model is, if it is there.
    #[must_use]
    pub fn of(&self, model: &ModelName) -> PathBuf {
        self.path.join(model.as_str())
    }

    /// What the numbers of a model's KV caches are packed into.
    #[must_use]
    pub fn kv_bits(&self, model: &ModelName) -> Option<KvBits> {
        self.kv_bits.of(model).copied().flatten()
    }

    /// A model of it.
    ///
    /// # Errors
    /// As [`ModelDir::open`], and when a setting does not suit the model.
    pub fn open(&self, model: &ModelName) -> Result<ModelDir, ModelError> {
        ModelDir::open(&self.of(model))?.with_kv_bits(self.kv_bits(model))
    }
}

impl From<&Settings> for ModelsFolder {
    fn from(settings: &Settings) -> Self {
        Self { path: settings.models_dir.clone(), kv_bits: settings.kv_bits.clone() }
    }
}

impl From<&Path> for ModelsFolder {
    fn from(path: &Path) -> Self {
        Self { path: path.to_owned(), kv_bits: PerModel::new() }
    }
}
