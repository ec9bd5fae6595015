//! Norms.

use mlx_rs::fast::{layer_norm, rms_norm};
use mlx_rs::ops::ones;
use mlx_rs::{Array, Dtype};
use planaria_engine::architecture::{LayerNorm as LayerNormParts, Norm, RouterNorm};

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

/// Takes the mean of every row away, divides it by its standard deviation, multiplies by a weight and adds a bias.
pub(super) struct LayerNorm {
    /// Both `f32 [width]`.
    weight: Array,
    bias: Array,
    eps: f32,
}

impl LayerNorm {
    pub(super) fn take(
        weights: &mut Weights<'_>,
        norm: &LayerNormParts,
    ) -> Result<Self, LoadError> {
        let mut take = |name: &str| -> Result<Array, LoadError> {
            let array = weights.take(&format!("{}.{name}", norm.module))?;
            let wide = array.as_dtype(Dtype::Float32)?;
            wide.eval()?;
            Ok(wide)
        };
        Ok(Self { weight: take("weight")?, bias: take("bias")?, eps: norm.eps })
    }

    /// `x [.., width]`, same shape and type out; computed in 32 bits.
    pub(super) fn forward(&self, x: &Array) -> Mlx<Array> {
        match cpu::layer_norm(x, &self.weight, &self.bias, self.eps)? {
            Some(normed) => Ok(normed),
            None => {
                let wide = x.as_dtype(Dtype::Float32)?;
                layer_norm(wide, &self.weight, &self.bias, self.eps)?.as_dtype(x.dtype())
            }
        }
    }
}
