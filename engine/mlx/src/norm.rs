//! Root mean square norm.

use mlx_rs::Array;
use mlx_rs::fast::rms_norm;
use mlx_rs::ops::ones;
use planaria_engine::architecture::{Norm, RouterNorm};

use super::error::LoadError;
use super::weights::Weights;
use super::{Mlx, cpu};

/// Divides every row by its root mean square and multiplies by a weight.
pub(super) struct RmsNorm {
    weight: Array,
    eps: f32,
}

impl RmsNorm {
    pub(super) fn take(weights: &mut Weights<'_>, norm: &Norm) -> Result<Self, LoadError> {
        let mut weight = weights.take(&format!("{}.weight", norm.module))?;
        if norm.from_one {
            weight = weight.add(Array::from_f32(1.0).as_dtype(weight.dtype())?)?;
            weight.eval()?;
        }
        Ok(Self { weight, eps: norm.eps })
    }

    /// The norm before a router.
    pub(super) fn of_router(
        weights: &mut Weights<'_>,
        norm: &RouterNorm,
    ) -> Result<Self, LoadError> {
        let weight = weights.take(&norm.name)?;
        let weight = weight.multiply(Array::from_f32(norm.factor).as_dtype(weight.dtype())?)?;
        weight.eval()?;
        Ok(Self { weight, eps: norm.eps })
    }

    /// A norm of `width` numbers without a weight.
    pub(super) fn unweighted(width: i32, eps: f32) -> Result<Self, LoadError> {
        let weight = ones::<f32>(&[width])?;
        weight.eval()?;
        Ok(Self { weight, eps })
    }

    /// [`Self::forward`] by a weight that may be of another type than `x`, to the type of `x`.
    pub(super) fn forward_as(&self, x: &Array) -> Mlx<Array> {
        let weight = self.weight.as_dtype(x.dtype())?;
        Self { weight, eps: self.eps }.forward(x)
    }

    /// The length of the axis that it norms.
    pub(super) fn width(&self) -> i32 {
        self.weight.shape().last().copied().unwrap_or(0)
    }

    /// `x [.., width]`, same shape out.
    pub(super) fn forward(&self, x: &Array) -> Mlx<Array> {
        match cpu::rms_norm(x, &self.weight, self.eps)? {
            Some(normed) => Ok(normed),
            None => rms_norm(x, Some(&self.weight), self.eps),
        }
    }
}
