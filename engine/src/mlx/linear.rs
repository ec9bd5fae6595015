//! Matrices as models store them, plain or quantized: linear layers and the embedding.

use mlx_rs::Array;
use mlx_rs::ops::{addmm, dequantize, quantized_matmul};

use super::Mlx;
use super::weights::Weights;
use crate::model_dir::{ModelError, QuantParams};

/// A weight `[out, in]`.
pub(super) enum Matrix {
    /// As it is.
    Plain {
        /// `[out, in]`.
        weight: Array,
        /// The same memory seen as `[in, out]`.
        transposed: Array,
    },
    /// Affine quantization: groups of `group_size` numbers in a row share a scale and a bias.
    Quantized {
        /// `u32 [out, in * bits / 32]`.
        weight: Array,
        /// `[out, in / group_size]`.
        scales: Array,
        /// `[out, in / group_size]`.
        biases: Array,
        group_size: i32,
        bits: i32,
    },
}

impl Matrix {
    /// Takes the weight of `module`, quantized as the configuration says.
    pub(super) fn take(
        weights: &mut Weights<'_>,
        module: &str,
        quantization: Option<QuantParams>,
    ) -> Result<Self, ModelError> {
        let weight = weights.take(&format!("{module}.weight"))?;
        let Some(QuantParams { group_size, bits }) = quantization else {
            let transposed = weight.transpose()?;
            transposed.eval()?;
            return Ok(Self::Plain { weight, transposed });
        };
        Ok(Self::Quantized {
            weight,
            scales: weights.take(&format!("{module}.scales"))?,
            biases: weights.take(&format!("{module}.biases"))?,
            group_size: as_dim(group_size)?,
            bits: as_dim(bits)?,
        })
    }

    /// `x [rows, in]` times the weight: `[rows, out]`.
    fn apply(&self, x: &Array) -> Mlx<Array> {
        match self {
            Self::Plain { transposed, .. } => x.matmul(transposed),
            Self::Quantized { weight, scales, biases, group_size, bits } => {
                quantized_matmul(x, weight, scales, biases, true, *group_size, *bits)
            }
        }
    }

    /// The rows of the weight that `ids` name: `[ids, in]`.
    fn rows(&self, ids: &Array) -> Mlx<Array> {
        match self {
            Self::Plain { weight, .. } => weight.take_axis(ids, 0),
            Self::Quantized { weight, scales, biases, group_size, bits } => dequantize(
                weight.take_axis(ids, 0)?,
                scales.take_axis(ids, 0)?,
                &biases.take_axis(ids, 0)?,
                *group_size,
                *bits,
            ),
        }
    }
}

/// A linear layer.
pub(super) struct Linear {
    matrix: Matrix,
    bias: Option<Array>,
}

impl Linear {
    /// `matrix`, with the bias of `module` if it has one.
    pub(super) fn take(
        weights: &mut Weights<'_>,
        module: &str,
        matrix: Matrix,
        has_bias: bool,
    ) -> Result<Self, ModelError> {
        let bias = has_bias.then(|| weights.take(&format!("{module}.bias"))).transpose()?;
        Ok(Self { matrix, bias })
    }

    /// `x [rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, x: &Array) -> Mlx<Array> {
        match (&self.matrix, &self.bias) {
            (matrix, None) => matrix.apply(x),
            (Matrix::Plain { transposed, .. }, Some(bias)) => addmm(bias, x, transposed, 1.0, 1.0),
            (matrix, Some(bias)) => matrix.apply(x)?.add(bias),
        }
    }
}

/// The token embedding, which is the head as well where weights are tied.
pub(super) struct Embedding(Matrix);

impl Embedding {
    pub(super) const fn new(matrix: Matrix) -> Self {
        Self(matrix)
    }

    /// The rows of `ids [rows]`: `[rows, hidden]`.
    pub(super) fn forward(&self, ids: &Array) -> Mlx<Array> {
        self.0.rows(ids)
    }

    /// Scores of every token for `x [rows, hidden]`: `[rows, vocab]`.
    pub(super) fn as_linear(&self, x: &Array) -> Mlx<Array> {
        self.0.apply(x)
    }
}

/// A size of the configuration as MLX wants it.
pub(super) fn as_dim(size: u32) -> Result<i32, ModelError> {
    i32::try_from(size).map_err(|_| ModelError::Backend(format!("{size} is too large for MLX")))
}

impl From<mlx_rs::error::Exception> for ModelError {
    fn from(exception: mlx_rs::error::Exception) -> Self {
        Self::Backend(exception.what().to_owned())
    }
}
