//! What a model's files hold, part by part: all that an answer depends on.
//!
//! [`ModelDigest`](super::ModelDigest) samples the weights, so that it is known at once. What is here
//! covers every byte that is loaded, and what turns words into tokens. Configuration, tokenizer, template
//! and generation settings are read in some milliseconds; weights as fast as the disk goes, so they are
//! known later, file by file ([`ModelDir::sum_of`]), and kept by whoever keeps [`Stamp`]s.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::str::FromStr;

use planaria_config::{KvBits, parse_hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::json::read_bounded;
use super::{MAX_CONFIG_BYTES, ModelDir, ModelError, Stamp, TensorInfo};
use crate::chat_template::find_source;
use crate::tokenizer::{Source, TokenizerSettings};

/// Bytes that are read at a time: enough for a disk, and no memory to speak of.
const CHUNK: usize = 1 << 20;

/// A part of a model's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `config.json`.
    Config,
    /// Every tensor.
    Weights,
    /// The file that the tokenizer is read from (`tokenizer.json`, else `tiktoken.model`, else `tokenizer.model`), and
    /// `tokenizer_config.json` but for the template.
    Tokenizer,
    /// The chat template, in whichever file it is.
    Template,
    /// `generation_config.json`.
    Generation,
    /// No file: the setting `kv-bits` of the node.
    KvBits,
}

impl Part {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config.json",
            Self::Weights => "weights",
            Self::Tokenizer => "tokenizer",
            Self::Template => "chat template",
            Self::Generation => "generation settings",
            Self::KvBits => "setting kv-bits",
        }
    }

    /// Whether layers of models that differ in it compute other numbers.
    #[must_use]
    pub const fn is_computed_with(self) -> bool {
        matches!(self, Self::Config | Self::Weights | Self::KvBits)
    }
}

/// The first half of a SHA-256: it tells files apart that somebody mixed up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PartDigest([u8; 16]);

/// Not a digest of a part.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the digest of a part has 32 hex digits")]
pub struct InvalidPartDigest;

/// The digests of a model's parts. One that is absent is not known (yet), or there is nothing to know: a
/// node may hold layers and no tokenizer. So two are compared only in what both say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Content {
    /// Of [`Part::Config`].
    pub config: Option<PartDigest>,
    /// Of [`Part::Weights`].
    pub weights: Option<PartDigest>,
    /// Of [`Part::Tokenizer`].
    pub tokenizer: Option<PartDigest>,
    /// Of [`Part::Template`].
    pub template: Option<PartDigest>,
    /// Of [`Part::Generation`].
    pub generation: Option<PartDigest>,
    /// [`Part::KvBits`] itself: 8, 4, or 0 for numbers as they are. Members of older builds say nothing.
    pub kv_bits: Option<u8>,
}

/// What the tensors of a file, or of several, sum up to. The sum is the same in whatever order they come
/// and however they are spread over files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSum([u64; 4]);

impl Content {
    /// The parts in which both say something, and not the same.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Part> {
        let pairs = self.parts().into_iter().zip(other.parts());
        let differ =
            pairs.filter_map(|((part, mine), (_, theirs))| (mine? != theirs?).then_some(part));
        differ.collect()
    }

    /// Whether there are none.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.differences(other).is_empty()
    }

    /// The same, and what the other knows besides.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            config: self.config.or(other.config),
            weights: self.weights.or(other.weights),
            tokenizer: self.tokenizer.or(other.tokenizer),
            template: self.template.or(other.template),
            generation: self.generation.or(other.generation),
            kv_bits: self.kv_bits.or(other.kv_bits),
        }
    }

    /// What both say alike.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let both = |mine: Option<PartDigest>, theirs| mine.filter(|mine| Some(*mine) == theirs);
        let kv_bits = self.kv_bits.filter(|mine| Some(*mine) == other.kv_bits);
        Self {
            config: both(self.config, other.config),
            weights: both(self.weights, other.weights),
            tokenizer: both(self.tokenizer, other.tokenizer),
            template: both(self.template, other.template),
            generation: both(self.generation, other.generation),
            kv_bits,
        }
    }

    fn parts(&self) -> [(Part, Option<PartDigest>); 6] {
        [
            (Part::Config, self.config),
            (Part::Weights, self.weights),
            (Part::Tokenizer, self.tokenizer),
            (Part::Template, self.template),
            (Part::Generation, self.generation),
            (Part::KvBits, self.kv_bits.map(|bits| PartDigest::of([[bits].as_slice()]))),
        ]
    }
}

impl ModelDir {
    /// The digests of all parts but the weights, as the files are now, and the setting. A part that cannot be read has
    /// none: whoever needs it says why.
    #[must_use]
    pub fn content(&self) -> Content {
        let folder = self.path();
        let config = part(&folder.join("config.json"), MAX_CONFIG_BYTES);
        let weights = self.tensors().is_empty().then(|| TensorSum::default().digest());
        let kv_bits = Some(self.kv_bits().map_or(0, KvBits::count));
        let alone = Content { config, weights, kv_bits, ..Content::default() };
        let tokenizer = Source::of(folder).and_then(|source| source.read().ok());
        let Some(tokenizer) = tokenizer.map(|bytes| PartDigest::of([bytes.as_slice()])) else {
            // Nobody can ask this node, so what else there is of words does not matter.
            return alone;
        };
        let settings = TokenizerSettings::open(folder).ok();
        let template = settings.as_ref().and_then(|settings| find_source(folder, settings).ok());
        let generation = folder.join("generation_config.json");
        Content {
            tokenizer: settings
                .map(|settings| PartDigest::of([tokenizer.0.as_slice(), &settings.but_template()])),
            template: template.map(|source| {
                let has_one = [u8::from(source.is_some())];
                PartDigest::of([has_one.as_slice(), source.unwrap_or_default().as_bytes()])
            }),
            generation: match generation.exists() {
                true => part(&generation, MAX_CONFIG_BYTES),
                false => Some(PartDigest::of([])),
            },
            ..alone
        }
    }

    /// What the tensors of one of this folder's files sum up to; reads them all.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what it was when the folder was opened.
    pub fn sum_of(&self, file: &Path) -> Result<TensorSum, ModelError> {
        let io = |source| ModelError::io(file, source);
        let mut open = File::open(file).map_err(io)?;
        let is_same = |open: &File| {
            let stamp = Stamp::of(&open.metadata().map_err(io)?);
            let known = self.stamps().get(file) == Some(&stamp);
            known.then_some(()).ok_or_else(|| ModelError::Changed { file: file.to_owned() })
        };
        is_same(&open)?;
        let mut sum = TensorSum::default();
        let mut buffer = vec![0; CHUNK];
        for tensor in self.tensors().values().filter(|tensor| *tensor.file == *file) {
            sum.add(&hash(&mut open, tensor, &mut buffer).map_err(io)?);
        }
        is_same(&open)?;
        Ok(sum)
    }
}

/// The digest of a file; none if it cannot be read.
fn part(file: &Path, limit: u64) -> Option<PartDigest> {
    read_bounded(file, limit).ok().map(|bytes| PartDigest::of([bytes.as_slice()]))
}

fn hash(file: &mut File, tensor: &TensorInfo, buffer: &mut [u8]) -> std::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    for field in [tensor.name.clone(), format!("{} {:?}", tensor.dtype, tensor.shape)] {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    file.seek(SeekFrom::Start(tensor.bytes.start))?;
    let mut left = tensor.byte_count();
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let chunk = buffer.get_mut(..most).unwrap_or_default();
        file.read_exact(chunk)?;
        hash.update(&*chunk);
        left -= chunk.len() as u64;
    }
    Ok(hash.finalize().into())
}

impl TensorSum {
    fn add(&mut self, hash: &[u8; 32]) {
        let (words, _) = hash.as_chunks();
        for (sum, word) in self.0.iter_mut().zip(words) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }

    /// The digest of all that was summed up.
    #[must_use]
    pub fn digest(&self) -> PartDigest {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        PartDigest::of([bytes.as_slice()])
    }
}

impl std::iter::Sum for TensorSum {
    fn sum<I: Iterator<Item = Self>>(sums: I) -> Self {
        sums.fold(Self::default(), |all, one| {
            let mut added = all;
            for (sum, word) in added.0.iter_mut().zip(one.0) {
                *sum = sum.wrapping_add(word);
            }
            added
        })
    }
}

impl PartDigest {
    /// The digest of these fields, one after the other.
    #[must_use]
    pub fn of<'a>(fields: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for field in fields {
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
        }
        let all: [u8; 32] = hash.finalize().into();
        let mut first = [0; 16];
        first.iter_mut().zip(all).for_each(|(half, byte)| *half = byte);
        Self(first)
    }
}

impl fmt::Display for PartDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PartDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PartDigest {
    type Err = InvalidPartDigest;

    fn from_str(text: &str) -> Result<Self, InvalidPartDigest> {
        parse_hex(text).map(Self).ok_or(InvalidPartDigest)
    }
}

impl TryFrom<String> for PartDigest {
    type Error = InvalidPartDigest;

    fn try_from(text: String) -> Result<Self, InvalidPartDigest> {
        text.parse()
    }
}

impl From<PartDigest> for String {
    fn from(digest: PartDigest) -> Self {
        digest.to_string()
    }
}
