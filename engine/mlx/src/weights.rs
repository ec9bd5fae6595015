//! Reading a shard's tensors, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use mlx_rs::Array;
use mlx_rs::ops::indexing::{IntoStrideBy, TryIndexOp};
use planaria_engine::model_dir::{
    Columns, Made, ModelDir, ModelError, Pick, Piece, QuantParams, Stamps, Tensor,
};
use planaria_engine::stage::LoadProgress;

use super::bytes::array_from_bytes;
use super::error::LoadError;
use super::heap::PAGE_BYTES;
use super::weight_file::{WeightFile, WeightFiles};
use super::{Mlx, cpu};

/// A shard's tensors, on their way into the modules that take them.
pub(super) struct Weights<'a> {
    folder: &'a Path,
    files: Vec<Arc<WeightFile>>,
    tensors: BTreeMap<String, Array>,
    /// Those of them that stay in a file, at any byte.
    mapped: BTreeSet<String>,
    packed: BTreeMap<String, QuantParams>,
}

impl<'a> Weights<'a> {
    /// Maps or reads these tensors of a model, in the order of the files, and calls `progress` after every one. What is
    /// mapped keeps its file in `files`. Files that are not what they were when the model was opened are refused; whether
    /// they stay so is for [`Self::check`] to say, when all is taken.
    ///
    /// MLX could read the files itself, lazily, but it does not notice when that fails: from a file
    /// that was cut short after its header was read, 0.32.2 gives wrong numbers and no error.
    pub(super) fn read(
        model: &'a ModelDir,
        mut wanted: Vec<Tensor>,
        files: &mut WeightFiles,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ModelError> {
        wanted.sort_by(|a, b| place(a).cmp(&place(b)));
        let bytes_total = wanted.iter().map(Tensor::byte_count).sum();
        let mut bytes_loaded = 0;
        let mut reader = Reader {
            stamps: model.stamps(),
            files,
            open: Vec::new(),
            buffer: Vec::new(),
            made: None,
        };
        let mut tensors = BTreeMap::new();
        let mut mapped = BTreeSet::new();
        let mut packed = BTreeMap::new();
        for tensor in wanted {
            let array = match reader.map(&tensor)? {
                Some(array) => {
                    mapped.insert(tensor.name.clone());
                    array
                }
                None => reader.read(&tensor)?,
            };
            bytes_loaded += tensor.byte_count();
            packed.extend(tensor.packed.map(|params| (tensor.name.clone(), params)));
            tensors.insert(tensor.name, array);
            progress(LoadProgress { bytes_loaded, bytes_total });
        }
        Ok(Self { folder: model.path(), files: reader.open, tensors, mapped, packed })
    }

    /// Makes sure that nobody has written to the files since they were opened.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        self.files.iter().try_for_each(|file| file.check())
    }

    /// Whether there is a tensor of this name that nobody has taken yet.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How the numbers of a tensor are packed, if they are.
    pub(super) fn packing_of(&self, name: &str) -> Option<QuantParams> {
        self.packed.get(name).copied()
    }

    /// Hands over a tensor for any operation.
    pub(super) fn take(&mut self, name: &str) -> Result<Array, LoadError> {
        let array = self.take_anywhere(name)?;
        if !self.mapped.remove(name) {
            return Ok(array);
        }
        let copy = cpu::copied(&array)?;
        copy.eval()?;
        Ok(copy)
    }

    /// Hands over a tensor that may lie at any byte of a file: MLX's own operations must not read it.
    ///
    /// That it is there, and of the type and shape that the configuration
    /// calls for, was checked by [`ModelDir::tensors_for`].
    pub(super) fn take_anywhere(&mut self, name: &str) -> Result<Array, ModelError> {
        self.tensors.remove(name).ok_or_else(|| ModelError::MissingTensor {
            folder: self.folder.to_owned(),
            name: name.to_owned(),
            expected: "it for these layers".to_owned(),
        })
    }
}

/// How much of a matrix is read at once where only some columns are wanted.
const ROWS_BYTES: u64 = 4 << 20;

/// Where the first of a tensor's numbers are. What is made of the same ones follows each other.
fn place(tensor: &Tensor) -> Option<(&Path, u64, u64)> {
    let piece = tensor.pieces.first()?;
    let source = piece.made.as_ref().and_then(|made| made.sources().first());
    let start = source.map_or(piece.bytes.start, |source| source.bytes.start);
    Some((&piece.file, start, piece.bytes.start))
}

/// Reads tensors of the files that it has opened so far.
struct Reader<'a> {
    stamps: &'a Stamps,
    files: &'a mut WeightFiles,
    open: Vec<Arc<WeightFile>>,
    buffer: Vec<u8>,
    /// What was made last: others may want a piece of it too.
    made: Option<(Arc<Made>, Vec<u8>)>,
}

impl Reader<'_> {
    /// An array of a tensor that stays in its file; `None` if it has to be read.
    fn map(&mut self, tensor: &Tensor) -> Result<Option<Array>, ModelError> {
        let ([piece], None, None) = (&*tensor.pieces, &tensor.pick, &tensor.columns) else {
            return Ok(None);
        };
        // It would take a page of its own.
        if tensor.byte_count() < PAGE_BYTES || piece.made.is_some() {
            return Ok(None);
        }
        self.file(&piece.file)?.map(piece, &shape(tensor)?, tensor.dtype)
    }

    /// An array of a copy of a tensor.
    fn read(&mut self, tensor: &Tensor) -> Result<Array, ModelError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        for piece in &tensor.pieces {
            let Some(columns) = &tensor.columns else {
                self.append(piece, &mut buffer)?;
                continue;
            };
            self.append_columns(piece, columns, &mut buffer)?;
        }
        let array = array_from_bytes(&buffer, &shape(tensor)?, tensor.dtype);
        self.buffer = buffer;
        let picked = array.and_then(|array| match &tensor.pick {
            None => Ok(array),
            Some(pick) => picked(&array, pick),
        });
        picked.map_err(|e| backend(tensor, e.what()))
    }

    /// Copies those bytes of each row of a piece that count. Rows are short, so many are read at once.
    fn append_columns(
        &mut self,
        piece: &Piece,
        columns: &Columns,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let row_bytes = columns.row_bytes.max(1);
        let at_once = (ROWS_BYTES / row_bytes).max(1) * row_bytes;
        let small = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let own = small(columns.own.start)..small(columns.own.end);
        let mut rows = Vec::new();
        for start in piece.bytes.clone().step_by(small(at_once)) {
            let bytes = start..piece.bytes.end.min(start + at_once);
            rows.clear();
            self.append(&Piece { bytes, ..piece.clone() }, &mut rows)?;
            for row in rows.chunks_exact(small(row_bytes)) {
                buffer.extend_from_slice(row.get(own.clone()).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Copies a piece to the end of `buffer`.
    fn append(&mut self, piece: &Piece, buffer: &mut Vec<u8>) -> Result<(), ModelError> {
        let Some(made) = &piece.made else {
            return self.file(&piece.file)?.append(piece, buffer);
        };
        if self.made.as_ref().is_none_or(|(known, _)| !Arc::ptr_eq(known, made)) {
            self.made = None;
            let numbers = self.make(made)?;
            self.made = Some((Arc::clone(made), numbers));
        }
        let numbers = self.made.as_ref().map_or(&[][..], |(_, numbers)| numbers);
        let small = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let own = numbers.get(small(piece.bytes.start)..small(piece.bytes.end));
        let lacking = || ModelError::Backend("a tensor has less numbers than its shape".to_owned());
        buffer.extend_from_slice(own.ok_or_else(lacking)?);
        Ok(())
    }

    /// The numbers of a tensor that no file holds as it is wanted.
    fn make(&mut self, made: &Made) -> Result<Vec<u8>, ModelError> {
        let mut sources = Vec::new();
        for source in made.sources() {
            let piece =
                Piece { file: Arc::clone(&source.file), bytes: source.bytes.clone(), made: None };
            let mut bytes = Vec::new();
            self.file(&source.file)?.append(&piece, &mut bytes)?;
            sources.push(bytes);
        }
        made.numbers(&sources).map_err(|problem| {
            let main = made.sources().first();
            let name = main.map(|source| source.name.as_str()).unwrap_or_default();
            let file = main.map(|source| source.file.to_path_buf()).unwrap_or_default();
            ModelError::Malformed { file, problem: format!("`{name}` {problem}") }
        })
    }

    /// A file, opened unless it is open.
    fn file(&mut self, path: &Arc<Path>) -> Result<Arc<WeightFile>, ModelError> {
        if let Some(file) = self.open.iter().find(|file| file.path() == path) {
            return Ok(Arc::clone(file));
        }
        let file = self.files.open(path, self.stamps)?;
        self.open.push(Arc::clone(&file));
        Ok(file)
    }
}

/// The shape of a tensor as it is stored; a single number is a list of one.
fn shape(tensor: &Tensor) -> Result<Vec<i32>, ModelError> {
    let stored = tensor.pick.as_ref().map_or(&tensor.shape, |pick| &pick.stored);
    if stored.is_empty() {
        return Ok(vec![1]);
    }
    let small: Result<_, _> = stored.iter().map(|dim| i32::try_from(*dim)).collect();
    small.map_err(|_| backend(tensor, &format!("the shape {stored:?} is too large for MLX")))
}

fn backend(tensor: &Tensor, problem: &str) -> ModelError {
    ModelError::Backend(format!("`{}`: {problem}", tensor.name))
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
