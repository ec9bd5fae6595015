//! Root mean square norm.

use mlx_rs::Array;
use mlx_rs::fast::rms_norm;

use super::Mlx;
use super::weights::Weights;
use crate::model_dir::ModelError;

/// Divides every row by its root mean square and multiplies by a weight.
pub(super) struct RmsNorm {
    weight: Array,
    eps: f32,
}

impl RmsNorm {
    pub(super) fn take(
        weights: &mut Weights<'_>,
        module: &str,
        eps: f32,
    ) -> Result<Self, ModelError> {
        Ok(Self { weight: weights.take(&format!("{module}.weight"))?, eps })
    }

    /// `x [rows, hidden]`, same shape out.
    pub(super) fn forward(&self, x: &Array) -> Mlx<Array> {
        rms_norm(x, Some(&self.weight), self.eps)
    }
}
