//! Matrices as models store them, plain or packed: linear layers, stacks of them, the embedding.

use std::ops::Range;

use mlx_rs::ops::indexing::{Ellipsis, TryIndexOp};
use mlx_rs::ops::{concatenate, gather_mm, zeros};
use mlx_rs::{Array, Dtype};

use planaria_engine::architecture::{
    Embedding as EmbeddingParts, Linear as LinearParts, Stack as StackParts,
};
use planaria_engine::model_dir::ModelError;

use super::error::LoadError;
use super::packed::Packed;
use super::weights::Weights;
use super::{Mlx, cpu};

/// A weight `[.., out, in]`. On CPUs it may lie at any byte of a file, so there only `cpu` reads it in place.
enum Matrix {
    /// As it is.
    Plain {
        /// `[.., out, in]`.
        weight: Array,
        /// The same memory seen as `[.., in, out]`.
        transposed: Array,
    },
    Packed(Packed),
}

impl Matrix {
    fn take(weights: &mut Weights<'_>, module: &str) -> Result<Self, LoadError> {
        let name = format!("{module}.weight");
        let packed = weights.packing_of(&name);
        let weight = weights.take_anywhere(&name)?;
        let Some(params) = packed else {
            return Ok(Self::plain(weight)?);
        };
        let biases = format!("{module}.biases");
        let whole = format!("{module}.global_scale");
        Ok(Self::Packed(Packed {
            weight,
            scales: weights.take_anywhere(&format!("{module}.scales"))?,
            biases: weights.has(&biases).then(|| weights.take_anywhere(&biases)).transpose()?,
            whole: weights.has(&whole).then(|| weights.take(&whole)).transpose()?,
            params,
        }))
    }

    fn plain(weight: Array) -> Mlx<Self> {
        let transposed = weight.swap_axes(-1, -2)?;
        transposed.eval()?;
        Ok(Self::Plain { weight, transposed })
    }

    /// Some of the columns, as a stack `[count, out, width]` in memory of its own.
    fn stack_of(&self, columns: &Range<i32>, count: i32) -> Mlx<Self> {
        let part = |array: &Array, (times, by): (i32, i32)| -> Mlx<Array> {
            let own = columns.start * times / by..columns.end * times / by;
            let width = own.len() / usize::try_from(count.max(1)).unwrap_or(1);
            let own = array.try_index((Ellipsis, own))?;
            let own = own.reshape(&[-1, count, i32::try_from(width).unwrap_or(i32::MAX)])?;
            let own = own.swap_axes(0, 1)?.contiguous()?;
            own.eval()?;
            Ok(own)
        };
        Ok(match self {
            Self::Plain { weight, .. } => Self::plain(part(weight, (1, 1))?)?,
            Self::Packed(Packed { weight, scales, biases, whole, params }) => {
                let small = |size: u32| i32::try_from(size).unwrap_or(i32::MAX);
                let groups = (1, small(params.group_size));
                Self::Packed(Packed {
                    weight: part(weight, (small(params.bits), 32))?,
                    scales: part(scales, groups)?,
                    biases: biases.as_ref().map(|biases| part(biases, groups)).transpose()?,
                    whole: whole.clone(),
                    params: *params,
                })
            }
        })
    }

    /// `x [.., in]` to `[.., out]`.
    fn apply(&self, x: &Array) -> Mlx<Array> {
        match self {
            Self::Plain { weight, transposed } => {
                match cpu::matmul(x, &cpu::Matrix::Plain(weight))? {
                    Some(product) => Ok(product),
                    None => x.matmul(for_mlx(weight, transposed)?),
                }
            }
            Self::Packed(packed) => packed.matmul(x),
        }
    }

    /// [`Self::apply`] of `x f32`, to `f32` whatever the type of the weights.
    fn apply_wide(&self, x: &Array) -> Mlx<Array> {
        match self {
            Self::Plain { weight, transposed } => {
                match cpu::matmul_wide(x, &cpu::Matrix::Plain(weight))? {
                    Some(product) => Ok(product),
                    None => x.matmul(for_mlx(weight, transposed)?.as_dtype(Dtype::Float32)?),
                }
            }
            Self::Packed(packed) => packed.matmul(x),
        }
    }

    /// [`Self::apply_each`] of `x f32`, to `f32` whatever the type of the weights.
    fn apply_each_wide(&self, x: &Array) -> Mlx<Array> {
        match self {
            Self::Plain { weight, transposed } => {
                match cpu::matmul_each_wide(x, &cpu::Matrix::Plain(weight))? {
                    Some(products) => Ok(products),
                    None => x.matmul(for_mlx(weight, transposed)?.as_dtype(Dtype::Float32)?),
                }
            }
            Self::Packed(packed) => packed.matmul_each(x),
        }
    }

    /// Every matrix of a stack applied to its own `x [1, count or 1, rows, in]`: `[1, count, rows, out]`.
    fn apply_each(&self, x: &Array) -> Mlx<Array> {
        match self {
            Self::Plain { weight, transposed } => {
                match cpu::matmul_each(x, &cpu::Matrix::Plain(weight))? {
                    Some(products) => Ok(products),
                    None => x.matmul(for_mlx(weight, transposed)?),
                }
            }
            Self::Packed(packed) => packed.matmul_each(x),
        }
    }

    /// `x [.., out]` to `[.., in]`.
    fn apply_backwards(&self, x: &Array) -> Mlx<Array> {
        match self {
            Self::Plain { weight, .. } => x.matmul(cpu::copied(weight)?),
            Self::Packed(packed) => packed.matmul_backwards(x),
        }
    }

    /// The rows of the weight that `ids` name: `[ids, in]`.
    fn rows(&self, ids: &Array) -> Mlx<Array> {
        match self {
            Self::Plain { weight, .. } => rows_of(weight, ids),
            Self::Packed(packed) => packed.rows(ids),
        }
    }
}

/// A linear layer.
pub(super) struct Linear {
    matrix: Matrix,
    bias: Option<Array>,
}

impl Linear {
    pub(super) fn take(weights: &mut Weights<'_>, parts: &LinearParts) -> Result<Self, LoadError> {
        let LinearParts { module, has_bias, .. } = parts;
        let matrix = Matrix::take(weights, module)?;
        let bias = has_bias.then(|| weights.take(&format!("{module}.bias"))).transpose()?;
        Ok(Self { matrix, bias })
    }

    /// The same, ready for [`Self::forward_wide`]: where MLX multiplies, it has the weights in 32 bits from the beginning.
    pub(super) fn take_wide(
        weights: &mut Weights<'_>,
        parts: &LinearParts,
    ) -> Result<Self, LoadError> {
        let Self { matrix, bias } = Self::take(weights, parts)?;
        let matrix = match matrix {
            Matrix::Plain { weight, .. } if !cpu::is_here() => {
                Matrix::plain(weight.as_dtype(Dtype::Float32)?)?
            }
            matrix => matrix,
        };
        Ok(Self { matrix, bias })
    }

    /// `x [rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, x: &Array) -> Mlx<Array> {
        self.biased(self.matrix.apply(x)?)
    }

    /// The same in 32 bits, whatever the type of `x` and the weights: `f32 [rows, out]`.
    pub(super) fn forward_wide(&self, x: &Array) -> Mlx<Array> {
        self.biased(self.matrix.apply_wide(&x.as_dtype(Dtype::Float32)?)?)
    }

    fn biased(&self, product: Array) -> Mlx<Array> {
        match &self.bias {
            None => Ok(product),
            Some(bias) => cpu::add(&product, bias)?.map_or_else(|| product.add(bias), Ok),
        }
    }
}

/// What makes a layer's hidden states of what heads, or the inner width, gave.
pub(super) enum Projection {
    Whole(Linear),
    Units(UnitLinear),
}

/// What came of a projection.
pub(super) enum Projected {
    /// `[rows, out]`, in the type of what went in.
    Whole(Array),
    /// For each unit its partial sum, `f32 [units, rows, out]`.
    Partial(Array),
}

impl Projection {
    /// `widths` are the columns of each unit, if it is cut.
    pub(super) fn take(
        weights: &mut Weights<'_>,
        parts: &LinearParts,
        widths: Option<&[u32]>,
    ) -> Result<Self, LoadError> {
        Ok(match widths {
            None => Self::Whole(Linear::take(weights, parts)?),
            Some(widths) => Self::Units(UnitLinear::take(weights, parts, widths)?),
        })
    }

    pub(super) fn forward(&self, x: &Array) -> Mlx<Projected> {
        match self {
            Self::Whole(linear) => linear.forward(x).map(Projected::Whole),
            Self::Units(units) => units.forward(x).map(Projected::Partial),
        }
    }

    /// What partial sums `f32 [rows, out]` of all units came to, with what is added once: of type `dtype`.
    pub(super) fn finish(&self, sum: Array, dtype: Dtype) -> Mlx<Array> {
        let bias = match self {
            Self::Units(UnitLinear { bias, .. }) => bias.as_ref(),
            Self::Whole(_) => None,
        };
        let sum = match bias {
            None => sum,
            Some(bias) => sum.add(bias.as_dtype(Dtype::Float32)?)?,
        };
        sum.as_dtype(dtype)
    }
}

/// Some columns of a linear layer, unit by unit.
pub(super) struct UnitLinear {
    /// Units in a row that have as many columns each.
    alike: Vec<Alike>,
    rows: i32,
    bias: Option<Array>,
}

struct Alike {
    count: i32,
    /// Those of all of them.
    columns: Range<i32>,
    /// A matrix for each; none if they have no columns.
    stack: Option<Matrix>,
}

impl UnitLinear {
    fn take(
        weights: &mut Weights<'_>,
        parts: &LinearParts,
        widths: &[u32],
    ) -> Result<Self, LoadError> {
        let Linear { matrix, bias } = Linear::take(weights, parts)?;
        let mut alike = Vec::new();
        let mut start = 0;
        for same in widths.chunk_by(|a, b| a == b) {
            let count = i32::try_from(same.len()).unwrap_or(i32::MAX);
            let columns = start..start + as_dim(same.iter().sum())?;
            start = columns.end;
            let has_any = !columns.is_empty();
            let stack = has_any.then(|| matrix.stack_of(&columns, count)).transpose()?;
            alike.push(Alike { count, columns, stack });
        }
        Ok(Self { alike, rows: as_dim(parts.rows)?, bias })
    }

    fn forward(&self, x: &Array) -> Mlx<Array> {
        let rows = x.shape().first().copied().unwrap_or(0);
        let partial = self.alike.iter().map(|Alike { count, columns, stack }| {
            let Some(stack) = stack else { return zeros::<f32>(&[*count, rows, self.rows]) };
            let own = x.try_index((.., columns.clone()))?.as_dtype(Dtype::Float32)?;
            let own = own.reshape(&[1, rows, *count, -1])?.transpose_axes(&[0, 2, 1, 3])?;
            stack.apply_each_wide(&own)?.squeeze_axes(&[0])
        });
        match partial.collect::<Mlx<Vec<Array>>>()?.as_slice() {
            [one] => Ok(one.clone()),
            many => concatenate(many, 0),
        }
    }
}

/// Several linear layers of one shape.
pub(super) struct Stack {
    matrix: Matrix,
    /// `[count, out]`.
    bias: Option<Array>,
}

impl Stack {
    pub(super) fn take(weights: &mut Weights<'_>, parts: &StackParts) -> Result<Self, LoadError> {
        let Linear { matrix, bias } = Linear::take(weights, &parts.each)?;
        Ok(Self { matrix, bias })
    }

    /// Every matrix applied to its own `x`: `[1, count, rows, in]` to `[1, count, rows, out]`.
    pub(super) fn each(&self, x: &Array) -> Mlx<Array> {
        self.matrix.apply_each(x)
    }

    /// The same from the other side: `[1, count or 1, rows, out]` to `[1, count, rows, in]`.
    pub(super) fn each_backwards(&self, x: &Array) -> Mlx<Array> {
        self.matrix.apply_backwards(x)
    }

    /// For every one of `indices [.., n]` the matrix of that number applied to `x [.., 1 or n, 1,
    /// in]`: `[.., n, 1, out]`. `sorted` says that the indices grow.
    pub(super) fn chosen(&self, x: &Array, indices: &Array, sorted: bool) -> Mlx<Array> {
        let products = match &self.matrix {
            Matrix::Plain { weight, transposed } => {
                match cpu::matmul_chosen(x, indices, &cpu::Matrix::Plain(weight))? {
                    Some(products) => products,
                    None => gather_mm(x, for_mlx(weight, transposed)?, None, indices, sorted)?,
                }
            }
            Matrix::Packed(packed) => packed.gather_matmul(x, indices, sorted)?,
        };
        match &self.bias {
            None => Ok(products),
            Some(bias) => products.add(bias.take_axis(indices, 0)?.expand_dims(-2)?),
        }
    }
}

/// The token embedding, which is the head as well where weights are tied.
pub(super) struct Embedding {
    matrix: Matrix,
    scale: Option<f32>,
}

impl Embedding {
    pub(super) fn take(
        weights: &mut Weights<'_>,
        parts: &EmbeddingParts,
    ) -> Result<Self, LoadError> {
        Ok(Self { matrix: Matrix::take(weights, &parts.module)?, scale: parts.scale })
    }

    /// The rows of `ids [rows]`, `[rows, hidden]`, as numbers of type `dtype`.
    pub(super) fn forward(&self, ids: &Array, dtype: Dtype) -> Mlx<Array> {
        let rows = self.matrix.rows(ids)?.as_dtype(dtype)?;
        match self.scale {
            None => Ok(rows),
            Some(scale) => rows.multiply(Array::from_f32(scale).as_dtype(dtype)?),
        }
    }

    /// Scores of every token for `x [rows, hidden]`: `[rows, vocab]`.
    pub(super) fn as_linear(&self, x: &Array) -> Mlx<Array> {
        self.matrix.apply(x)
    }
}

/// `transposed`, of `weight`, where MLX's own operations can read it.
fn for_mlx(weight: &Array, transposed: &Array) -> Mlx<Array> {
    if cpu::is_here() { cpu::copied(weight)?.swap_axes(-1, -2) } else { Ok(transposed.clone()) }
}

/// The rows of `matrix [count, ..]` that `ids [n]` name: `[n, ..]`.
pub(super) fn rows_of(matrix: &Array, ids: &Array) -> Mlx<Array> {
    match cpu::rows_of(matrix, ids)? {
        Some(rows) => Ok(rows),
        None => matrix.take_axis(ids, 0),
    }
}

/// A size of the configuration as MLX wants it.
pub(super) fn as_dim(size: u32) -> Result<i32, LoadError> {
    let error = || ModelError::Backend(format!("{size} is too large for MLX"));
    i32::try_from(size).map_err(|_| error().into())
}
