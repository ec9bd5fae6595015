//! Inputs of their own that layers take of each token.

use std::f32::consts::FRAC_1_SQRT_2;

use mlx_rs::Array;
use planaria_engine::architecture::{
    Activation, LayerInput as LayerInputParts, LayerInputs as LayerInputsParts,
};

use super::Mlx;
use super::error::LoadError;
use super::linear::{Embedding, Linear, as_dim};
use super::mlp::combine;
use super::norm::RmsNorm;
use super::weights::Weights;

/// Makes the inputs of all layers.
pub(super) struct LayerInputs {
    table: Embedding,
    projection: Linear,
    norm: RmsNorm,
    scale: f32,
    width: i32,
}

impl LayerInputs {
    pub(super) fn take(
        weights: &mut Weights<'_>,
        parts: &LayerInputsParts,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            table: Embedding::take(weights, &parts.table)?,
            projection: Linear::take(weights, &parts.projection)?,
            norm: RmsNorm::take(weights, &parts.norm)?,
            scale: parts.scale,
            width: as_dim(parts.width)?,
        })
    }

    /// Of `ids [rows]` and `hidden [rows, hidden]`, which stand before the first layer: `[rows, layers, width]`.
    pub(super) fn forward(&self, ids: &Array, hidden: &Array) -> Mlx<Array> {
        let dtype = hidden.dtype();
        let number = |value: f32| Array::from_f32(value).as_dtype(dtype);
        let rows = ids.shape().first().copied().unwrap_or(0);
        let by_layer = |x: &Array| x.reshape(&[rows, -1, self.width]);
        let projected = self.projection.forward(hidden)?.multiply(number(self.scale)?)?;
        let projected = self.norm.forward(&by_layer(&projected)?)?;
        let sum = projected.add(by_layer(&self.table.forward(ids, dtype)?)?)?;
        sum.multiply(number(FRAC_1_SQRT_2)?)
    }
}

/// Adds a layer's input to its hidden states.
pub(super) struct LayerInput {
    gate: Linear,
    projection: Linear,
    norm: RmsNorm,
}

impl LayerInput {
    pub(super) fn take(
        weights: &mut Weights<'_>,
        parts: &LayerInputParts,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            gate: Linear::take(weights, &parts.gate)?,
            projection: Linear::take(weights, &parts.projection)?,
            norm: RmsNorm::take(weights, &parts.norm)?,
        })
    }

    /// What is added to `x [rows, hidden]` for `input [rows, width]`: same shape as `x`.
    pub(super) fn forward(&self, x: &Array, input: &Array) -> Mlx<Array> {
        let gated = combine(Activation::GeluTanh, &self.gate.forward(x)?, input)?;
        self.norm.forward(&self.projection.forward(&gated)?)
    }
}
