//! Finds the tensors of a model's parts in its files, whatever layout they have there, and checks
//! their types and shapes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;

use super::error::shown;
use super::quantization::{Listed, QuantMode, QuantParams};
use super::repack::{ModuleProblem, Repacked, UNPACKED};
use super::{Made, ModelError, TensorInfo};
use crate::architecture::{Architecture, Linear, Need, Part, Stored, Uncuttable};

/// A tensor as the model wants it, and where its numbers are.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name, as MLX calls it.
    pub name: String,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Its numbers, one piece after the other.
    pub pieces: Vec<Piece>,
    /// If the pieces hold more than the tensor: what to take of them.
    pub pick: Option<Pick>,
    /// If the pieces hold longer rows than the tensor, those bytes of each row that are its own.
    pub columns: Option<Columns>,
    /// On the `weight` of a packed matrix: how it is packed.
    pub packed: Option<QuantParams>,
}

/// Some bytes of a file, or of numbers that are made of what files hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The file.
    pub file: Arc<Path>,
    /// Counted from its beginning, or from that of what is made.
    pub bytes: Range<u64>,
    /// How the numbers are made.
    pub made: Option<Arc<Made>>,
}

/// Some rows of every matrix of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// The shape of the stack in the files: matrices, rows, and whatever a row consists of.
    pub stored: Vec<usize>,
    /// The first row of each.
    pub first: usize,
    /// Every so many rows.
    pub step: usize,
    /// How many rows.
    pub count: usize,
    /// Whether rows and columns change places afterwards.
    pub transposed: bool,
}

/// Some bytes of every row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// Bytes of a row in the files.
    pub row_bytes: u64,
    /// Those that count.
    pub own: Range<u64>,
}

impl Tensor {
    /// Bytes of its numbers in memory.
    #[must_use]
    pub fn byte_count(&self) -> u64 {
        // Shapes were compared with what the files hold, so no product is larger than a file.
        self.shape.iter().product::<usize>() as u64 * (self.dtype.bitsize() / 8) as u64
    }
}

/// A model's folder as far as its tensors are concerned.
#[derive(Clone, Copy)]
pub(crate) struct Shelf<'a> {
    pub(crate) folder: &'a Path,
    /// What files hold.
    pub(crate) stored: &'a BTreeMap<String, TensorInfo>,
    /// The same as MLX packs it, if it is in another format.
    pub(crate) repacked: Option<&'a Repacked>,
    pub(crate) listed: &'a Listed,
}

/// A tensor found for a part.
pub(crate) struct Found {
    pub(crate) tensor: Tensor,
    /// Whether hidden states take its type, if it is a type of floats.
    pub(crate) decides_type: bool,
}

const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];

/// The kind of tensor that all numbers of an nvfp4 matrix are multiplied by, beside their scales.
const WHOLE: &str = "global_scale";

impl<'a> Shelf<'a> {
    /// A tensor by the name that MLX has for it.
    fn get(&self, name: &str) -> Option<&'a TensorInfo> {
        self.repacked.map_or(self.stored, Repacked::tensors).get(name)
    }

    /// Into how many units each layer of `model` is cut.
    pub(crate) fn units(&self, model: &Architecture) -> Result<u16, Uncuttable> {
        model.units(|linear| self.column_group(linear))
    }

    /// How many columns of a matrix share a scale; 1 if it is not packed.
    pub(crate) fn column_group(&self, linear: &Linear) -> u32 {
        let scales = self.get(&format!("{}.scales", linear.module));
        let groups = scales.and_then(|scales| u32::try_from(*scales.shape.last()?).ok());
        linear.columns / groups.unwrap_or(linear.columns).max(1)
    }

    /// The tensors of `part`, all of them there and of the right type and shape.
    pub(crate) fn part(&self, model: &Architecture, part: Part) -> Result<Vec<Found>, ModelError> {
        let mut found = Vec::new();
        for need in model.needs(part) {
            match need {
                Need::Floats { name, shape, decides_type } => {
                    let tensor = self
                        .get(&name)
                        .map(|info| whole(info, info.dtype, info.shape.clone()))
                        .ok_or_else(|| self.missing(&name, FLOATS, &shape))?;
                    expect(&tensor, FLOATS, &shape)?;
                    found.push(Found { tensor, decides_type });
                }
                Need::Matrix { module, shape, has_bias, stored, decides_type } => {
                    let matrix = Matrix { shelf: self, module, shape, stored };
                    let tensors = matrix.find(has_bias)?;
                    // A scale of a whole matrix has 32 bits in any model.
                    let decides = |tensor: &Tensor| decides_type && !tensor.name.ends_with(WHOLE);
                    found.extend(
                        tensors
                            .into_iter()
                            .map(|tensor| Found { decides_type: decides(&tensor), tensor }),
                    );
                }
            }
        }
        Ok(found)
    }

    fn missing(&self, name: &str, dtypes: &[Dtype], shape: &[usize]) -> ModelError {
        ModelError::MissingTensor {
            folder: self.folder.to_owned(),
            name: shown(name.to_owned()),
            expected: shown(describe(dtypes, shape)),
        }
    }
}

/// A matrix, or a stack of them, that is looked for.
struct Matrix<'a> {
    shelf: &'a Shelf<'a>,
    module: &'a str,
    shape: Vec<usize>,
    stored: &'a Stored,
}

impl Matrix<'_> {
    fn find(&self, has_bias: bool) -> Result<Vec<Tensor>, ModelError> {
        let mut found = Vec::new();
        let weight = self.locate("weight")?;
        match self.locate("scales")? {
            Some(scales) if weight.as_ref().is_none_or(|weight| weight.shape != self.shape) => {
                found.extend(self.packed(weight, scales)?);
            }
            _ => found.push(self.checked(weight, "weight", FLOATS, &self.shape)?),
        }
        if has_bias && let Some((_, but_columns)) = self.shape.split_last() {
            found.push(self.checked(self.locate("bias")?, "bias", FLOATS, but_columns)?);
        }
        Ok(found)
    }

    /// The tensors that stand for a packed matrix.
    fn packed(&self, weight: Option<Tensor>, scales: Tensor) -> Result<Vec<Tensor>, ModelError> {
        let Some((columns, before)) = self.shape.split_last() else {
            return Ok(Vec::new());
        };
        let last = |tensor: &Tensor| tensor.shape.last().copied().unwrap_or(0);
        let with_last = |last: usize| [before, &[last]].concat();
        let params = weight.as_ref().and_then(|weight| {
            QuantParams::of_shapes(*columns, last(weight), last(&scales), scales.dtype)
        });
        let Some(params) = params else {
            // No way of packing fits: say what a matrix of 4 bits would look like.
            let shape = with_last(columns / 8);
            self.checked(weight, "weight", &[Dtype::U32], &shape)?;
            let expected = format!("a scale for every 16, 32, 64 or 128 of {columns} columns");
            return Err(wrong(&scales, expected));
        };
        if let Some(listed) = self.shelf.listed.of(self.module).filter(|listed| *listed != params) {
            let say = |p: QuantParams| {
                format!("{} of {} bits in groups of {}", p.mode.name(), p.bits, p.group_size)
            };
            return Err(ModelError::Config {
                file: self.shelf.folder.join("config.json"),
                key: format!("quantization.{}", self.module),
                problem: format!("is {}, but the files hold {}", say(listed), say(params)),
            });
        }
        let groups = with_last(last(&scales));
        let packed_shape = with_last(columns * params.bits as usize / 32);
        let mut weight = self.checked(weight, "weight", &[Dtype::U32], &packed_shape)?;
        weight.packed = Some(params);
        let scale_types = [scales.dtype];
        let mut tensors =
            vec![weight, self.checked(Some(scales), "scales", &scale_types, &groups)?];
        if scale_types != [Dtype::U8] {
            tensors.push(self.checked(self.locate("biases")?, "biases", FLOATS, &groups)?);
        }
        if params.mode == QuantMode::Nvfp4
            && let Some(whole) = self.locate(WHOLE)?
        {
            let (_, stack) = before.split_last().unwrap_or((&0, &[]));
            tensors.push(self.checked(Some(whole), WHOLE, &[Dtype::F32], stack)?);
        }
        Ok(tensors)
    }

    fn checked(
        &self,
        tensor: Option<Tensor>,
        kind: &str,
        dtypes: &[Dtype],
        shape: &[usize],
    ) -> Result<Tensor, ModelError> {
        if let Some(problem) = self.problem() {
            return Err(wrong_info(&problem.tensor, problem.expected.clone()));
        }
        let missing = || {
            let mut shape = shape.to_vec();
            if let (Stored::Rows { of, .. }, Some(rows)) = (self.stored, shape.first_mut()) {
                *rows = *of as usize;
            }
            self.shelf.missing(&self.stored_name(kind), dtypes, &shape)
        };
        let tensor = tensor.ok_or_else(missing)?;
        expect(&tensor, dtypes, shape)?;
        Ok(tensor)
    }

    /// Why the module could not be seen as MLX packs it.
    fn problem(&self) -> Option<&ModuleProblem> {
        let name = self.stored_name("weight");
        self.shelf.repacked?.problem_of(name.strip_suffix(".weight")?)
    }

    /// What the files call `kind` (`weight`, `scales`, `biases` or `bias`), or its first piece.
    fn stored_name(&self, kind: &str) -> String {
        match self.stored {
            Stored::Own | Stored::Columns { .. } => format!("{}.{kind}", self.module),
            Stored::Some { stored, .. } => {
                Self { stored, shape: Vec::new(), ..*self }.stored_name(kind)
            }
            Stored::Rows { module, .. } | Stored::PerHead { module, .. } => {
                format!("{module}.{kind}")
            }
            Stored::Each(modules) => {
                format!("{}.{kind}", modules.first().map_or(self.module, String::as_str))
            }
            Stored::Joined { tensor, .. } | Stored::Turned { tensor, .. } => match kind {
                "weight" => tensor.clone(),
                kind => format!("{tensor}.{kind}"),
            },
            Stored::Blocks { module, .. } => match kind {
                "weight" => format!("{module}_blocks"),
                kind => format!("{module}_{kind}"),
            },
        }
    }

    /// The tensor of that kind, if the files have it; nothing of it is compared with what the model
    /// wants yet.
    fn locate(&self, kind: &str) -> Result<Option<Tensor>, ModelError> {
        // A matrix that is turned cannot be packed.
        let unpacked = match self.stored {
            Stored::PerHead { .. } => self.shelf.get(&self.stored_name(UNPACKED)),
            _ => None,
        };
        let info = match (unpacked, kind) {
            (Some(unpacked), "weight") => Some(unpacked),
            (Some(_), _) => None,
            (None, _) => self.shelf.get(&self.stored_name(kind)),
        };
        let Some(info) = info else { return Ok(None) };
        let name = format!("{}.{kind}", self.module);
        let mut tensor = match self.stored {
            Stored::Own => whole(info, info.dtype, info.shape.clone()),
            Stored::Rows { .. } | Stored::Columns { .. } if kind == WHOLE => {
                whole(info, info.dtype, info.shape.clone())
            }
            Stored::Rows { first, of, .. } => self.rows(info, *first as usize, *of as usize)?,
            Stored::Columns { .. } if kind == "bias" => whole(info, info.dtype, info.shape.clone()),
            Stored::Columns { first, of } => self.columns(info, *first as usize, *of as usize)?,
            Stored::Some { stored, first, of } => {
                return self.some(kind, stored, *first as usize, *of as usize);
            }
            Stored::Each(modules) => self.each(kind, modules, info)?,
            Stored::Blocks { first, step, .. } => {
                self.blocks(kind, info, *first as usize, *step as usize)?
            }
            Stored::PerHead { first, of, transposed, .. } => {
                self.per_head(info, *first as usize, *of as usize, *transposed)?
            }
            Stored::Joined { first, of, .. } => self.joined(info, *first as usize, *of as usize)?,
            Stored::Turned { first, of, .. } => self.turned(info, *first as usize, *of as usize)?,
        };
        tensor.name = name;
        Ok(Some(tensor))
    }

    fn rows(&self, info: &TensorInfo, first: usize, of: usize) -> Result<Tensor, ModelError> {
        let rows = self.shape.first().copied().unwrap_or(0);
        let Some((stored, rest)) = info.shape.split_first().filter(|(stored, _)| **stored == of)
        else {
            return Err(wrong_info(info, format!("{of} rows")));
        };
        // A shape was compared with its bytes, so the rows are equal parts of them.
        let row_bytes = info.byte_count() / (*stored).max(1) as u64;
        let start = info.bytes.start + first as u64 * row_bytes;
        let shape = [&[rows], rest].concat();
        let mut tensor = whole(info, info.dtype, shape);
        let bytes = start..start + rows as u64 * row_bytes;
        tensor.pieces = vec![Piece { bytes, ..piece(info) }];
        Ok(tensor)
    }

    /// The numbers that stand for some of the `of` columns of a matrix: of packed columns, of scales, or of the columns
    /// themselves, as many for each.
    fn columns(&self, info: &TensorInfo, first: usize, of: usize) -> Result<Tensor, ModelError> {
        let count = self.shape.last().copied().unwrap_or(0);
        let bytes = info.dtype.bitsize() / 8;
        let part = |columns: usize, stored: usize| {
            let product = columns.checked_mul(stored)?;
            product.is_multiple_of(of.max(1)).then_some(product / of.max(1))
        };
        let Some((stored, before)) = info.shape.split_last() else {
            return Err(wrong_info(info, format!("{of} columns")));
        };
        let (Some(start), Some(own)) = (part(first, *stored), part(count, *stored)) else {
            return Err(wrong_info(info, format!("a number for every so many of {of} columns")));
        };
        let mut tensor = whole(info, info.dtype, [before, &[own]].concat());
        tensor.columns = Some(Columns {
            row_bytes: (*stored * bytes) as u64,
            own: (start * bytes) as u64..((start + own) * bytes) as u64,
        });
        Ok(tensor)
    }

    /// Some matrices of a stack.
    fn some(
        &self,
        kind: &str,
        stored: &Stored,
        first: usize,
        of: usize,
    ) -> Result<Option<Tensor>, ModelError> {
        let count = self.shape.first().copied().unwrap_or(0);
        let mut shape = self.shape.clone();
        if let Some(all) = shape.first_mut() {
            *all = of;
        }
        let Some(mut tensor) = (Matrix { stored, shape, ..*self }).locate(kind)? else {
            return Ok(None);
        };
        if tensor.shape.first() != Some(&of) {
            return Err(wrong(&tensor, format!("{of} matrices")));
        }
        if tensor.pieces.len() == of {
            tensor.pieces = tensor.pieces.get(first..first + count).unwrap_or_default().to_vec();
        } else {
            // A stack in one piece: matrices of equal length, one after the other.
            for Piece { bytes, .. } in &mut tensor.pieces {
                let each = (bytes.end - bytes.start) / of.max(1) as u64;
                *bytes =
                    bytes.start + first as u64 * each..bytes.start + (first + count) as u64 * each;
            }
        }
        let picked = tensor.pick.as_mut().and_then(|pick| pick.stored.first_mut());
        for all in tensor.shape.first_mut().into_iter().chain(picked) {
            *all = count;
        }
        Ok(Some(tensor))
    }

    fn each(
        &self,
        kind: &str,
        modules: &[String],
        first: &TensorInfo,
    ) -> Result<Tensor, ModelError> {
        let shape = [&[modules.len()], first.shape.as_slice()].concat();
        let mut tensor = whole(first, first.dtype, shape);
        tensor.pieces.clear();
        for module in modules {
            let name = format!("{module}.{kind}");
            let dtypes = [first.dtype];
            let info = self
                .shelf
                .get(&name)
                .ok_or_else(|| self.shelf.missing(&name, &dtypes, &first.shape))?;
            if info.dtype != first.dtype || info.shape != first.shape {
                return Err(wrong_info(info, describe(&dtypes, &first.shape)));
            }
            tensor.pieces.push(piece(info));
        }
        Ok(tensor)
    }

    fn blocks(
        &self,
        kind: &str,
        info: &TensorInfo,
        first: usize,
        step: usize,
    ) -> Result<Tensor, ModelError> {
        let mut dtype = info.dtype;
        let mut shape = info.shape.clone();
        if kind == "weight" {
            // Groups of 16 bytes, four 32-bit words each.
            let words = match shape.as_slice() {
                [_, _, groups, 16] if dtype == Dtype::U8 => groups.checked_mul(4),
                _ => None,
            };
            let expected = || "U8 [experts, rows, groups, 16]".to_owned();
            let words = words.ok_or_else(|| wrong_info(info, expected()))?;
            shape.truncate(2);
            shape.push(words);
            dtype = Dtype::U32;
        }
        let rows = self.shape.get(1).map_or(0, |own| own * step);
        if shape.get(1) != Some(&rows) {
            return Err(wrong_info(info, format!("{rows} rows for each expert")));
        }
        Ok(self.picked(whole(info, dtype, shape), first, step, false))
    }

    fn per_head(
        &self,
        info: &TensorInfo,
        first: usize,
        of: usize,
        transposed: bool,
    ) -> Result<Tensor, ModelError> {
        let heads = self.shape.first().copied().unwrap_or(0);
        let [rows, columns] = info.shape.as_slice() else {
            return Err(wrong_info(info, "a matrix".to_owned()));
        };
        if heads.checked_mul(of) != Some(*rows) {
            return Err(wrong_info(info, format!("{of} rows for each of {heads} heads")));
        }
        if info.dtype == Dtype::U32 {
            let expected = "floats: convert the model with a present mlx_lm.convert".to_owned();
            return Err(wrong_info(info, expected));
        }
        let tensor = whole(info, info.dtype, vec![heads, of, *columns]);
        Ok(self.picked(tensor, first, 1, transposed))
    }

    fn joined(&self, info: &TensorInfo, first: usize, of: usize) -> Result<Tensor, ModelError> {
        let [count, _, columns] = self.shape.as_slice() else {
            return Err(wrong_info(info, "a stack of matrices".to_owned()));
        };
        let stored = [*count, of, *columns];
        if info.shape != stored {
            return Err(wrong_info(info, describe(FLOATS, &stored)));
        }
        Ok(self.picked(whole(info, info.dtype, info.shape.clone()), first, 1, false))
    }

    fn turned(&self, info: &TensorInfo, first: usize, of: usize) -> Result<Tensor, ModelError> {
        let [count, rows, columns] = self.shape.as_slice() else {
            return Err(wrong_info(info, "a stack of matrices".to_owned()));
        };
        let turned = [*count, *columns, of];
        let straight = [*count, of, *columns];
        // Some loaders turn them, and save them so.
        if info.shape == straight && straight != turned {
            return self.joined(info, first, of);
        }
        if info.shape != turned {
            return Err(wrong_info(info, describe(FLOATS, &turned)));
        }
        let before = Matrix { shape: vec![*count, *columns, *rows], ..*self };
        let tensor = before.columns(info, first, of)?;
        Ok(self.picked(tensor, 0, 1, true))
    }

    /// Takes this matrix's rows of each matrix in `tensor [matrices, rows, ..]`, which has them.
    fn picked(&self, mut tensor: Tensor, first: usize, step: usize, transposed: bool) -> Tensor {
        let axis = if transposed { 2 } else { 1 };
        let count = self.shape.get(axis).copied().unwrap_or(0);
        let stored = tensor.shape.clone();
        if let Some(rows) = tensor.shape.get_mut(1) {
            *rows = count;
        }
        if transposed && let [_, rows, columns] = tensor.shape.as_mut_slice() {
            std::mem::swap(rows, columns);
        }
        if stored != tensor.shape || transposed {
            tensor.pick = Some(Pick { stored, first, step, count, transposed });
        }
        tensor
    }
}

/// All of a stored tensor, seen as `dtype` and `shape`.
fn whole(info: &TensorInfo, dtype: Dtype, shape: Vec<usize>) -> Tensor {
    let name = info.name.clone();
    Tensor {
        name,
        dtype,
        shape,
        pieces: vec![piece(info)],
        pick: None,
        columns: None,
        packed: None,
    }
}

fn piece(info: &TensorInfo) -> Piece {
    Piece { file: Arc::clone(&info.file), bytes: info.bytes.clone(), made: info.made.clone() }
}

fn expect(tensor: &Tensor, dtypes: &[Dtype], shape: &[usize]) -> Result<(), ModelError> {
    if dtypes.contains(&tensor.dtype) && tensor.shape == shape {
        Ok(())
    } else {
        Err(wrong(tensor, describe(dtypes, shape)))
    }
}

fn describe(dtypes: &[Dtype], shape: &[usize]) -> String {
    let types: Vec<String> = dtypes.iter().map(ToString::to_string).collect();
    format!("{} {shape:?}", types.join(" or "))
}

fn wrong(tensor: &Tensor, expected: String) -> ModelError {
    ModelError::WrongTensor {
        file: tensor.pieces.first().map(|piece| piece.file.to_path_buf()).unwrap_or_default(),
        name: shown(tensor.name.clone()),
        expected: shown(expected),
        found: shown(describe(&[tensor.dtype], &tensor.shape)),
    }
}

fn wrong_info(info: &TensorInfo, expected: String) -> ModelError {
    wrong(&whole(info, info.dtype, info.shape.clone()), expected)
}
