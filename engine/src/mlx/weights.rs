//! Reading a shard's tensors, and no others.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use mlx_rs::Array;
use mlx_rs::ops::indexing::{IntoStrideBy, TryIndexOp};

use super::Mlx;
use super::bytes::array_from_bytes;
use crate::model_dir::{ModelDir, ModelError, Pick, Piece, QuantParams, Stamp, Stamps, Tensor};

/// How far the loading of layers has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of tensors that are in memory.
    pub bytes_loaded: u64,
    /// Bytes of tensors that are to be loaded.
    pub bytes_total: u64,
}

/// A shard's tensors, on their way into the modules that take them.
pub(super) struct Weights<'a> {
    folder: &'a Path,
    tensors: BTreeMap<String, Array>,
    packed: BTreeMap<String, QuantParams>,
}

impl<'a> Weights<'a> {
    /// Reads these tensors of a model, in the order of the files, and calls `progress` after every one.
    /// Files that are not what they were when the model was opened are refused.
    ///
    /// MLX could read the files itself, lazily, but it does not notice when that fails: from a file
    /// that was cut short after its header was read, 0.32.2 gives wrong numbers and no error.
    pub(super) fn read(
        model: &'a ModelDir,
        mut wanted: Vec<Tensor>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ModelError> {
        wanted.sort_by(|a, b| place(a).cmp(&place(b)));
        let bytes_total = wanted.iter().map(Tensor::byte_count).sum();
        let mut bytes_loaded = 0;
        let mut reader = Reader::of(model.stamps());
        let mut tensors = BTreeMap::new();
        let mut packed = BTreeMap::new();
        for tensor in wanted {
            let array = reader.read(&tensor)?;
            bytes_loaded += tensor.byte_count();
            packed.extend(tensor.packed.map(|params| (tensor.name.clone(), params)));
            tensors.insert(tensor.name, array);
            progress(LoadProgress { bytes_loaded, bytes_total });
        }
        reader.close()?;
        Ok(Self { folder: model.path(), tensors, packed })
    }

    /// Whether there is a tensor of this name that nobody has taken yet.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How the numbers of a tensor are packed, if they are.
    pub(super) fn packing_of(&self, name: &str) -> Option<QuantParams> {
        self.packed.get(name).copied()
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

/// Where the first of a tensor's numbers are.
fn place(tensor: &Tensor) -> Option<(&Path, u64)> {
    tensor.pieces.first().map(|piece| (&*piece.file, piece.bytes.start))
}

/// Keeps the file that was read last open, and its buffer for the next tensor.
struct Reader<'a> {
    stamps: &'a Stamps,
    open: Option<(Arc<Path>, File)>,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    const fn of(stamps: &'a Stamps) -> Self {
        Self { stamps, open: None, buffer: Vec::new() }
    }

    fn read(&mut self, tensor: &Tensor) -> Result<Array, ModelError> {
        self.buffer.clear();
        for piece in &tensor.pieces {
            self.turn_to(&piece.file)?;
            self.append(piece).map_err(|source| match source.kind() {
                ErrorKind::UnexpectedEof => ModelError::Truncated {
                    file: piece.file.to_path_buf(),
                    expected: piece.bytes.end,
                    found: std::fs::metadata(&piece.file).map_or(0, |metadata| metadata.len()),
                },
                _ => ModelError::io(&piece.file, source),
            })?;
        }
        let backend =
            |problem: String| ModelError::Backend(format!("`{}`: {problem}", tensor.name));
        let stored = tensor.pick.as_ref().map_or(&tensor.shape, |pick| &pick.stored);
        let shape: Vec<i32> = stored
            .iter()
            .map(|dim| i32::try_from(*dim))
            .collect::<Result<_, _>>()
            .map_err(|_| backend(format!("the shape {stored:?} is too large for MLX")))?;
        let array = array_from_bytes(&self.buffer, &shape, tensor.dtype);
        let picked = array.and_then(|array| match &tensor.pick {
            None => Ok(array),
            Some(pick) => picked(&array, pick),
        });
        picked.map_err(|e| backend(e.what().to_owned()))
    }

    /// Opens another file, unless it is open.
    fn turn_to(&mut self, path: &Arc<Path>) -> Result<(), ModelError> {
        if self.open.as_ref().is_some_and(|(open, _)| open == path) {
            return Ok(());
        }
        self.close()?;
        let file = File::open(path).map_err(|source| ModelError::io(path, source))?;
        self.check(path, &file)?;
        self.open = Some((Arc::clone(path), file));
        Ok(())
    }

    /// Makes sure that what was read of the open file was not written to meanwhile.
    fn close(&mut self) -> Result<(), ModelError> {
        self.open.take().map_or(Ok(()), |(path, file)| self.check(&path, &file))
    }

    fn check(&self, path: &Path, file: &File) -> Result<(), ModelError> {
        let about = file.metadata().map_err(|source| ModelError::io(path, source))?;
        if self.stamps.get(path) == Some(&Stamp::of(&about)) {
            return Ok(());
        }
        // Shorter than its header says is the more telling word.
        match self.stamps.get(path) {
            Some(known) if about.len() < known.bytes() => Err(ModelError::Truncated {
                file: path.to_owned(),
                expected: known.bytes(),
                found: about.len(),
            }),
            _ => Err(ModelError::Changed { file: path.to_owned() }),
        }
    }

    fn append(&mut self, piece: &Piece) -> std::io::Result<()> {
        let Some((_, file)) = &mut self.open else {
            return Err(ErrorKind::NotFound.into());
        };
        file.seek(SeekFrom::Start(piece.bytes.start))?;
        let length = piece.bytes.end - piece.bytes.start;
        let read = file.take(length).read_to_end(&mut self.buffer)?;
        if read as u64 == length { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }
}

/// Some rows of every matrix of `stack [matrices, rows, ..]`, in memory of their own.
fn picked(stack: &Array, pick: &Pick) -> Mlx<Array> {
    let small = |size: usize| i32::try_from(size).unwrap_or(i32::MAX);
    let (first, step) = (small(pick.first), small(pick.step));
    let end = first + small(pick.count) * step;
    let mut rows = stack.try_index((.., (first..end).stride_by(step)))?;
    if pick.transposed {
        rows = rows.swap_axes(-1, -2)?;
    }
    let rows = rows.contiguous()?;
    // Otherwise the whole stack would stay in memory until the rows are needed.
    rows.eval()?;
    Ok(rows)
}
