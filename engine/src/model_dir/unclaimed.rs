//! Tensors that no part of a model claims.
//!
//! Files that hold more than the configuration has a use for are those of another model, however
//! well the rest fits: a Qwen 2 by the name of `llama` lacks nothing but has biases that nobody adds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::digest::sample_of;
use super::error::shown;
use super::repack::Repacked;
use super::tensors::Shelf;
use super::{ModelError, Piece, TensorInfo};
use crate::architecture::{Architecture, Extra};

/// More would not help a reader.
const MOST_NAMED: usize = 5;

/// Where tensors begin, by file.
type Places<'a> = BTreeMap<(&'a Path, u64), &'a TensorInfo>;

/// Tensors of a folder as its parts claim them.
pub(super) struct Claims<'a> {
    shelf: Shelf<'a>,
    places: Places<'a>,
    claimed: BTreeSet<&'a str>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(shelf: Shelf<'a>) -> Self {
        // What has no bytes holds nothing, and may begin where another tensor does.
        let tensors = shelf.stored.values().filter(|tensor| tensor.byte_count() > 0);
        let places = tensors.map(|tensor| ((&*tensor.file, tensor.bytes.start), tensor)).collect();
        Self { shelf, places, claimed: BTreeSet::new() }
    }

    /// Marks the tensors of which these are pieces.
    pub(super) fn add(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            if let Some(made) = &piece.made {
                let places =
                    made.sources().iter().map(|source| (&*source.file, source.bytes.start));
                let sources = places.filter_map(|(file, start)| self.places.get(&(file, start)));
                self.claimed.extend(sources.map(|tensor| tensor.name.as_str()));
                continue;
            }
            let up_to = (&*piece.file, u64::MIN)..=(&*piece.file, piece.bytes.start);
            // Tensors do not overlap, so the last that begins no later holds the piece.
            self.claimed.extend(self.places.range(up_to).next_back().map(|(_, t)| t.name.as_str()));
        }
    }

    /// Refuses what is left over and is none of the model's extras.
    pub(super) fn expect_all(
        &self,
        model: &Architecture,
        model_type: &str,
    ) -> Result<(), ModelError> {
        let mut left = Vec::new();
        let is_repacked = self.shelf.repacked.is_some();
        for tensor in self.places.values().filter(|t| !self.claimed.contains(t.name.as_str())) {
            if is_repacked && Repacked::does_without(&tensor.name) {
                continue;
            }
            let fits = |extra: &&Extra| extra.is_about(&tensor.name);
            match model.extras.iter().find(fits) {
                None => left.push(tensor.name.as_str()),
                Some(Extra::Prefix(_) | Extra::Suffix(_)) => {}
                Some(Extra::CopyOf { module, of }) => self.expect_copy(tensor, module, of)?,
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        left.sort_unstable();
        let named: Vec<String> =
            left.iter().take(MOST_NAMED).map(|name| shown((*name).to_owned())).collect();
        Err(ModelError::UnclaimedTensors {
            folder: self.shelf.folder.to_owned(),
            count: left.len(),
            names: named.join("`, `"),
            model_type: model_type.to_owned(),
        })
    }

    /// A head beside an embedding that is to be the head: harmless if it is the same one.
    fn expect_copy(&self, tensor: &TensorInfo, module: &str, of: &str) -> Result<(), ModelError> {
        let kind = tensor.name.strip_prefix(module).unwrap_or_default();
        let is_copy = match self.shelf.stored.get(&format!("{of}{kind}")) {
            None => false,
            Some(original) => {
                (original.dtype, &original.shape) == (tensor.dtype, &tensor.shape)
                    && sample_of(original)? == sample_of(tensor)?
            }
        };
        if is_copy {
            return Ok(());
        }
        Err(ModelError::Config {
            file: self.shelf.folder.join("config.json"),
            key: "tie_word_embeddings".to_owned(),
            problem: format!(
                "is true, or silent and the family's default is true, so `{of}` is the head; but \
                 the files hold another one, `{}`: say false to use it, or remove it",
                shown(tensor.name.clone())
            ),
        })
    }
}

impl Extra {
    fn is_about(&self, name: &str) -> bool {
        match self {
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => name.ends_with(suffix.as_str()),
            Self::CopyOf { module, .. } => {
                name.strip_prefix(module.as_str()).is_some_and(|rest| rest.starts_with('.'))
            }
        }
    }
}
