//! The gated feed-forward part of a layer.

use std::f32::consts::FRAC_2_PI;

use mlx_rs::ops::{clip, minimum, sigmoid, tanh};
use mlx_rs::{Array, Dtype};
use planaria_engine::architecture::{Activation, Gated};
use planaria_kernels::Gate;

use super::error::LoadError;
use super::linear::{Linear, Projected, Projection};
use super::weights::Weights;
use super::{Mlx, cpu};

/// `down(activation(gate(x), up(x)))`.
pub(super) struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Projection,
    activation: Activation,
}

impl GatedMlp {
    /// `widths` are the columns of each unit, if it is cut.
    pub(super) fn take(
        weights: &mut Weights<'_>,
        gated: &Gated,
        widths: Option<&[u32]>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            gate: Linear::take(weights, &gated.gate)?,
            up: Linear::take(weights, &gated.up)?,
            down: Projection::take(weights, &gated.down, widths)?,
            activation: gated.activation,
        })
    }

    /// Of `x [rows, hidden]`, same shape out.
    pub(super) fn forward(&self, x: &Array) -> Mlx<Projected> {
        let gated = combine(self.activation, &self.gate.forward(x)?, &self.up.forward(x)?)?;
        self.down.forward(&gated)
    }

    /// Of what partial sums of all units came to.
    pub(super) fn finish(&self, sum: Array, dtype: Dtype) -> Mlx<Array> {
        self.down.finish(sum, dtype)
    }
}

/// What the kernels call an activation.
const fn gate_of(activation: Activation) -> Gate {
    match activation {
        Activation::Silu => Gate::Silu,
        Activation::GeluTanh => Gate::GeluTanh,
        Activation::ClampedSwish { limit } => Gate::ClampedSwish { limit },
        Activation::ClampedSilu { limit } => Gate::ClampedSilu { limit },
    }
}

/// One number for each gate and value.
pub(super) fn combine(activation: Activation, gate: &Array, up: &Array) -> Mlx<Array> {
    if let Some(combined) = cpu::gated(gate_of(activation), gate, up)? {
        return Ok(combined);
    }
    // Constants take the type of what they meet, as in Python.
    let number = |value: f32| Array::from_f32(value).as_dtype(gate.dtype());
    match activation {
        Activation::Silu => gate.multiply(sigmoid(gate)?)?.multiply(up),
        Activation::GeluTanh => {
            let cube = gate.multiply(gate)?.multiply(gate)?;
            let inner = gate.add(number(0.044_715)?.multiply(cube)?)?;
            let bent = tanh(number(FRAC_2_PI.sqrt())?.multiply(inner)?)?;
            let half = number(0.5)?.multiply(gate)?;
            half.multiply(number(1.0)?.add(bent)?)?.multiply(up)
        }
        Activation::ClampedSwish { limit } => {
            let high = number(limit)?;
            let gate = minimum(gate, &high)?;
            let up = clip(up, (&number(-limit)?, &high))?;
            let swish = gate.multiply(sigmoid(number(1.702)?.multiply(&gate)?)?)?;
            up.add(number(1.0)?)?.multiply(swish)
        }
        Activation::ClampedSilu { limit } => {
            let high = number(limit)?;
            let gate = minimum(gate.multiply(sigmoid(gate)?)?, &high)?;
            gate.multiply(clip(up, (&number(-limit)?, &high))?)
        }
    }
}
