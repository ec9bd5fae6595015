//! What can be wrong with a model folder.

use std::path::{Path, PathBuf};

use planaria_config::LayerRange;
use thiserror::Error;

/// Why a model cannot be used from a folder. Nothing was loaded; the folder has to be mended (or
/// downloaded again) first.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file could not be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that has to be there is not.
    #[error("{}: there is no such file, but {wanted}", file.display())]
    MissingFile {
        /// The file.
        file: PathBuf,
        /// Who says that it has to be there.
        wanted: String,
    },
    /// A file is not what its name says.
    #[error("{}: {problem}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file is shorter than its own header says: an incomplete download.
    #[error("{}: is cut short: expected {expected} bytes, found {found}", file.display())]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Bytes that its header announces.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// A file is not what it was when it was looked at: somebody replaces it, or writes into it.
    #[error("{}: has changed since it was read first", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// A value that no model can have, or that is not supported.
    #[error("{}: `{key}` {problem}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The key in it, with those of the objects around it.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// No file holds a tensor that the configuration calls for.
    #[error("{}: tensor `{name}` is missing, expected {expected}", folder.display())]
    MissingTensor {
        /// The model's folder.
        folder: PathBuf,
        /// The tensor.
        name: String,
        /// Its type and shape.
        expected: String,
    },
    /// A tensor is not as the configuration says.
    #[error("{}: tensor `{name}`: expected {expected}, found {found}", file.display())]
    WrongTensor {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Its type and shape by the configuration.
        expected: String,
        /// Its type and shape in the file.
        found: String,
    },
    /// The files hold tensors that no part of the model has a use for: they are those of another
    /// model than the configuration says.
    #[error(
        "{}: no part of a model of the type `{model_type}` has a use for {count} of the tensors: \
         `{names}`{}: `model_type` or the sizes in config.json are those of another model",
        folder.display(),
        if *count > names.split("`, `").count() { " and others" } else { "" }
    )]
    UnclaimedTensors {
        /// The model's folder.
        folder: PathBuf,
        /// How many there are.
        count: usize,
        /// The first few of them.
        names: String,
        /// What the configuration calls the model.
        model_type: String,
    },
    /// Its keys and values cannot be packed as the setting says.
    #[error(
        "{}: the setting `kv-bits` cannot be used with this model, which {problem}: set `kv-bits=MODEL=none` for it",
        folder.display()
    )]
    KvBits {
        /// The model's folder.
        folder: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A stage was asked for layers that the model does not have.
    #[error("layers {range} of a model with {layers} layers")]
    NoSuchLayers {
        /// What was asked for.
        range: LayerRange,
        /// Layers that there are.
        layers: u32,
    },
    /// The folder is sound, but the backend could not load it.
    #[error("the stage could not be loaded: {0}")]
    Backend(String),
}

impl ModelError {
    /// A file that cannot be read.
    #[must_use]
    pub fn io(file: &Path, source: std::io::Error) -> Self {
        Self::Io { file: file.to_owned(), source }
    }

    pub(crate) fn malformed(file: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed { file: file.to_owned(), problem: shown(problem.into()) }
    }
}

/// Far more than any sentence of ours needs.
const MOST_SHOWN: usize = 600;

/// A text for a message, cut where it is too long. Names, keys and shapes come from files, and a
/// message goes into logs and to every node of the cluster.
pub(super) fn shown(text: String) -> String {
    match text.char_indices().nth(MOST_SHOWN) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}
