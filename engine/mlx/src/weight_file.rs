//! Files of weights while they are in use.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use mlx_rs::Array;
use planaria_engine::model_dir::{Dtype, ModelError, Piece, Stamp, Stamps};

use super::error::LoadError;
use super::mapped::Mapping;

/// A file that weights are read from. It stays open for as long as any of them are mapped.
#[derive(Debug)]
pub(super) struct WeightFile {
    path: Arc<Path>,
    file: File,
    stamp: Stamp,
    /// Bytes of arrays that lie in it.
    mapped_bytes: AtomicU64,
}

/// The files of which something is mapped.
#[derive(Debug, Default)]
pub(super) struct WeightFiles(Vec<Weak<WeightFile>>);

impl WeightFiles {
    /// A file that is what it was when the model was opened.
    pub(super) fn open(
        &mut self,
        path: &Arc<Path>,
        stamps: &Stamps,
    ) -> Result<Arc<WeightFile>, ModelError> {
        self.0.retain(|file| file.strong_count() > 0);
        let open = self.0.iter().filter_map(Weak::upgrade).find(|file| file.path == *path);
        let file = match open {
            Some(file) => file,
            None => {
                let file = Arc::new(WeightFile::open(path, stamps)?);
                self.0.push(Arc::downgrade(&file));
                file
            }
        };
        file.check()?;
        Ok(file)
    }

    /// Makes sure that no weights have changed with their files.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        self.0.iter().filter_map(Weak::upgrade).try_for_each(|file| file.check())
    }

    /// Bytes of weights that lie in files.
    pub(super) fn mapped_bytes(&self) -> u64 {
        let files = self.0.iter().filter_map(Weak::upgrade);
        files.map(|file| file.mapped_bytes.load(Ordering::Relaxed)).sum()
    }
}

impl WeightFile {
    /// Opens a file, which has to have the stamp that is known of it; that is for [`Self::check`] to say.
    fn open(path: &Arc<Path>, stamps: &Stamps) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(|source| ModelError::io(path, source))?;
        let unknown = || ModelError::Changed { file: path.to_path_buf() };
        let stamp = *stamps.get(&**path).ok_or_else(unknown)?;
        Ok(Self { path: Arc::clone(path), file, stamp, mapped_bytes: AtomicU64::new(0) })
    }

    /// Makes sure that nobody has written to it. While some of it is mapped its name may lead elsewhere by now: what is open
    /// stays.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        let about = self.file.metadata().map_err(|source| ModelError::io(&self.path, source))?;
        let now = Stamp::of(&about);
        let is_mapped = self.mapped_bytes.load(Ordering::Relaxed) > 0;
        let is_same = now == self.stamp || (is_mapped && now.holds_the_same_as(&self.stamp));
        if is_same { Ok(()) } else { Err(self.changed(&now)) }
    }

    pub(super) fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// Copies a piece to the end of `buffer`.
    pub(super) fn append(&self, piece: &Piece, buffer: &mut Vec<u8>) -> Result<(), ModelError> {
        let start = buffer.len();
        let length = usize::try_from(piece.bytes.end - piece.bytes.start).unwrap_or(usize::MAX);
        buffer.resize(start.saturating_add(length), 0);
        let place = buffer.get_mut(start..).unwrap_or_default();
        self.file.read_exact_at(place, piece.bytes.start).map_err(|error| self.broken(piece, error))
    }

    /// An array of a piece that stays in the file; `None` where the piece has to be read. Once there is one, its pages are
    /// in memory.
    pub(super) fn map(
        self: &Arc<Self>,
        piece: &Piece,
        shape: &[i32],
        dtype: Dtype,
    ) -> Result<Option<Array>, ModelError> {
        let mapping = Mapping::of(&self.file, &piece.bytes).map_err(|e| self.broken(piece, e))?;
        let Some(mapping) = mapping else { return Ok(None) };
        let bytes = piece.bytes.end - piece.bytes.start;
        self.mapped_bytes.fetch_add(bytes, Ordering::Relaxed);
        let lent = Lent { file: Arc::clone(self), bytes };
        Ok(Some(mapping.into_array(shape, dtype, lent).map_err(LoadError::from)?))
    }

    fn broken(&self, piece: &Piece, error: std::io::Error) -> ModelError {
        let found = self.file.metadata().map_or(0, |about| about.len());
        if found < piece.bytes.end {
            return self.truncated(piece.bytes.end, found);
        }
        ModelError::io(&self.path, error)
    }

    fn changed(&self, now: &Stamp) -> ModelError {
        // Shorter than its header says is the more telling word.
        if now.bytes() < self.stamp.bytes() {
            return self.truncated(self.stamp.bytes(), now.bytes());
        }
        ModelError::Changed { file: self.path.to_path_buf() }
    }

    fn truncated(&self, expected: u64, found: u64) -> ModelError {
        ModelError::Truncated { file: self.path.to_path_buf(), expected, found }
    }
}

/// Keeps a file open for as long as an array lies in it.
struct Lent {
    file: Arc<WeightFile>,
    bytes: u64,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.file.mapped_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
