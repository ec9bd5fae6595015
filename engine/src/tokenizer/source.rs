//! Which file of a folder the tokenizer is read from.

use std::path::{Path, PathBuf};

use super::MAX_TOKENIZER_BYTES;
use crate::model_dir::ModelError;
use crate::model_dir::json::read_bounded;

/// The formats, in the order in which they are looked for: what somebody converted on purpose counts before
/// what it was converted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Hugging Face's `tokenizers`, with everything that there is to know.
    Json,
    /// tiktoken's list of tokens and ranks, as Kimi's models are published.
    Tiktoken,
    /// sentencepiece's protobuf.
    SentencePiece,
}

/// The file that a folder's tokenizer is read from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(super) format: Format,
    file: PathBuf,
}

/// The largest published ones (Gemma's) have 5 MB. Every entry takes some twenty times as much memory as it has
/// bytes in such a file.
const MAX_VOCABULARY_BYTES: u64 = 16 << 20;

impl Format {
    const ALL: [Self; 3] = [Self::Json, Self::Tiktoken, Self::SentencePiece];

    /// The name of the file.
    pub(super) const fn file_name(self) -> &'static str {
        match self {
            Self::Json => "tokenizer.json",
            Self::Tiktoken => "tiktoken.model",
            Self::SentencePiece => "tokenizer.model",
        }
    }
}

impl Source {
    /// The file that counts; `None` in a folder without a tokenizer.
    pub(crate) fn of(folder: &Path) -> Option<Self> {
        let mut sources = Format::ALL
            .into_iter()
            .map(|format| Self { format, file: folder.join(format.file_name()) });
        sources.find(|source| source.file.exists())
    }

    /// The same, where there has to be one.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn expect(folder: &Path) -> Result<Self, ModelError> {
        Self::of(folder).ok_or_else(|| ModelError::MissingFile {
            file: folder.join(Format::Json.file_name()),
            wanted: "a model that is served has one (or a tiktoken.model or tokenizer.model)"
                .to_owned(),
        })
    }

    /// Whether the file says everything, so that nobody has to know the authors' code.
    pub(super) fn is_whole(&self) -> bool {
        self.format == Format::Json
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// What it holds.
    ///
    /// # Errors
    /// When it cannot be read, or is too long.
    pub(crate) fn read(&self) -> Result<Vec<u8>, ModelError> {
        let limit = match self.format {
            Format::Json => MAX_TOKENIZER_BYTES,
            Format::Tiktoken | Format::SentencePiece => MAX_VOCABULARY_BYTES,
        };
        read_bounded(&self.file, limit)
    }
}
