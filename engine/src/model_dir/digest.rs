//! What tells one model from another.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::str::FromStr;

use planaria_config::parse_hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{ModelError, TensorInfo};

/// How many bytes of each tensor are read. Two models that were trained further from the same one
/// have equal headers and often equal configurations; 128 numbers of each tensor tell them apart,
/// and cost less than a tenth of a second for the deepest models.
const SAMPLE_BYTES: u64 = 256;

/// SHA-256 over `config.json`, the name, type and shape of every tensor, and a few bytes from the
/// middle of each. It does not depend on how the tensors are spread over files.
///
/// It finds out different models and incomplete copies, not deliberate forgery of weights.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelDigest([u8; 32]);

/// Not a digest of a model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a model digest has 64 hex digits")]
pub struct InvalidModelDigest;

impl ModelDigest {
    /// The digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn of(
        config: &[u8],
        tensors: &BTreeMap<String, TensorInfo>,
    ) -> Result<Self, ModelError> {
        let mut files: BTreeMap<&Path, File> = BTreeMap::new();
        let mut hash = Sha256::new();
        hash.update(b"planaria model 1");
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(config);
        for tensor in tensors.values() {
            let io = |source| ModelError::io(&tensor.file, source);
            field(tensor.name.as_bytes());
            field(format!("{} {:?}", tensor.dtype, tensor.shape).as_bytes());
            if !files.contains_key(&*tensor.file) {
                files.insert(&tensor.file, File::open(&tensor.file).map_err(io)?);
            }
            if let Some(file) = files.get_mut(&*tensor.file) {
                field(&sample(file, tensor).map_err(io)?);
            }
        }
        Ok(Self(hash.finalize().into()))
    }
}

/// The bytes of a tensor that stand for all of them.
pub(super) fn sample_of(tensor: &TensorInfo) -> Result<Vec<u8>, ModelError> {
    let io = |source| ModelError::io(&tensor.file, source);
    let mut file = File::open(&tensor.file).map_err(io)?;
    sample(&mut file, tensor).map_err(io)
}

fn sample(file: &mut File, tensor: &TensorInfo) -> std::io::Result<Vec<u8>> {
    let length = tensor.byte_count().min(SAMPLE_BYTES);
    let start = tensor.bytes.start + (tensor.byte_count() - length) / 2;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl fmt::Display for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ModelDigest {
    type Err = InvalidModelDigest;

    fn from_str(text: &str) -> Result<Self, InvalidModelDigest> {
        parse_hex(text).map(Self).ok_or(InvalidModelDigest)
    }
}

impl TryFrom<String> for ModelDigest {
    type Error = InvalidModelDigest;

    fn try_from(text: String) -> Result<Self, InvalidModelDigest> {
        text.parse()
    }
}

impl From<ModelDigest> for String {
    fn from(digest: ModelDigest) -> Self {
        digest.to_string()
    }
}
