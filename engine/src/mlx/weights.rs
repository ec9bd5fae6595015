//! Reading a shard's tensors, and no others.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use mlx_rs::Array;
use planaria_config::LayerRange;

use super::bytes::array_from_bytes;
use crate::model_dir::{ModelDir, ModelError, TensorInfo};

/// How far the loading of a shard has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of tensors that are in memory.
    pub bytes_loaded: u64,
    /// Bytes of tensors that the shard has.
    pub bytes_total: u64,
}

/// A shard's tensors, on their way into the modules that take them.
pub(super) struct Weights<'a> {
    folder: &'a Path,
    tensors: BTreeMap<&'a str, Array>,
    bytes: u64,
}

impl<'a> Weights<'a> {
    /// Reads what a stage with `layers` needs, in the order of the files, and calls `progress`
    /// after every tensor.
    ///
    /// MLX could read the files itself, lazily, but it does not notice when that fails: from a file
    /// that was cut short after its header was read, 0.32.2 gives wrong numbers and no error.
    pub(super) fn read(
        dir: &'a ModelDir,
        layers: LayerRange,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ModelError> {
        let mut wanted = dir.tensors_for(layers)?;
        wanted.sort_by(|a, b| (&a.file, a.bytes.start).cmp(&(&b.file, b.bytes.start)));
        let bytes_total = wanted.iter().map(|tensor| tensor.byte_count()).sum();
        let mut bytes_loaded = 0;
        let mut reader = Reader::default();
        let mut tensors = BTreeMap::new();
        for info in wanted {
            tensors.insert(info.name.as_str(), reader.read(info)?);
            bytes_loaded += info.byte_count();
            progress(LoadProgress { bytes_loaded, bytes_total });
        }
        Ok(Self { folder: dir.path(), tensors, bytes: bytes_total })
    }

    /// Bytes of all that was read.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there is a tensor of this name that nobody has taken yet.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Hands over a tensor. That it is there, and of the type and shape that the configuration
    /// calls for, was checked by [`ModelDir::tensors_for`].
    pub(super) fn take(&mut self, name: &str) -> Result<Array, ModelError> {
        self.tensors.remove(name).ok_or_else(|| ModelError::MissingTensor {
            folder: self.folder.to_owned(),
            name: name.to_owned(),
            expected: "it for these layers".to_owned(),
        })
    }
}

/// Keeps the file that was read last open, and its buffer for the next tensor.
#[derive(Default)]
struct Reader {
    open: Option<(Arc<Path>, File)>,
    buffer: Vec<u8>,
}

impl Reader {
    fn read(&mut self, info: &TensorInfo) -> Result<Array, ModelError> {
        self.fill(info).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => ModelError::Truncated {
                file: info.file.to_path_buf(),
                expected: info.bytes.end,
                found: std::fs::metadata(&info.file).map_or(0, |metadata| metadata.len()),
            },
            _ => ModelError::io(&info.file, source),
        })?;
        let backend = |problem: String| ModelError::Backend(format!("`{}`: {problem}", info.name));
        let shape: Vec<i32> = info
            .shape
            .iter()
            .map(|dim| i32::try_from(*dim))
            .collect::<Result<_, _>>()
            .map_err(|_| backend(format!("the shape {:?} is too large for MLX", info.shape)))?;
        let array = array_from_bytes(&self.buffer, &shape, info.dtype);
        array.map_err(|e| backend(e.what().to_owned()))
    }

    fn fill(&mut self, info: &TensorInfo) -> std::io::Result<()> {
        let file = match self.open.take().filter(|(path, _)| *path == info.file) {
            Some((_, file)) => file,
            None => File::open(&info.file)?,
        };
        let (_, file) = self.open.insert((Arc::clone(&info.file), file));
        file.seek(SeekFrom::Start(info.bytes.start))?;
        self.buffer.clear();
        file.take(info.byte_count()).read_to_end(&mut self.buffer)?;
        if self.buffer.len() as u64 == info.byte_count() {
            Ok(())
        } else {
            Err(ErrorKind::UnexpectedEof.into())
        }
    }
}
