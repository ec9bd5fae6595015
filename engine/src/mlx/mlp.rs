//! The gated feed-forward part of a layer.

use std::f32::consts::FRAC_2_PI;

use mlx_rs::Array;
use mlx_rs::ops::{clip, minimum, sigmoid, tanh};
use planaria_kernels::Gate;

use super::linear::Linear;
use super::weights::Weights;
use super::{Mlx, cpu};
use crate::architecture::{Activation, Gated};
use crate::model_dir::ModelError;

/// `down(activation(gate(x), up(x)))`.
pub(super) struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl GatedMlp {
    pub(super) fn take(weights: &mut Weights<'_>, gated: &Gated) -> Result<Self, ModelError> {
        Ok(Self {
            gate: Linear::take(weights, &gated.gate)?,
            up: Linear::take(weights, &gated.up)?,
            down: Linear::take(weights, &gated.down)?,
            activation: gated.activation,
        })
    }

    /// `x [rows, hidden]`, same shape out.
    pub(super) fn forward(&self, x: &Array) -> Mlx<Array> {
        let gated = self.activation.combine(&self.gate.forward(x)?, &self.up.forward(x)?)?;
        self.down.forward(&gated)
    }
}

impl Activation {
    /// As the kernels call it.
    const fn gate(self) -> Gate {
        match self {
            Self::Silu => Gate::Silu,
            Self::GeluTanh => Gate::GeluTanh,
            Self::ClampedSwish { limit } => Gate::ClampedSwish { limit },
        }
    }

    /// One number for each gate and value.
    pub(super) fn combine(self, gate: &Array, up: &Array) -> Mlx<Array> {
        if let Some(combined) = cpu::gated(self.gate(), gate, up)? {
            return Ok(combined);
        }
        // Constants take the type of what they meet, as in Python.
        let number = |value: f32| Array::from_f32(value).as_dtype(gate.dtype());
        match self {
            Self::Silu => gate.multiply(sigmoid(gate)?)?.multiply(up),
            Self::GeluTanh => {
                let cube = gate.multiply(gate)?.multiply(gate)?;
                let inner = gate.add(number(0.044_715)?.multiply(cube)?)?;
                let bent = tanh(number(FRAC_2_PI.sqrt())?.multiply(inner)?)?;
                let half = number(0.5)?.multiply(gate)?;
                half.multiply(number(1.0)?.add(bent)?)?.multiply(up)
            }
            Self::ClampedSwish { limit } => {
                let high = number(limit)?;
                let gate = minimum(gate, &high)?;
                let up = clip(up, (&number(-limit)?, &high))?;
                let swish = gate.multiply(sigmoid(number(1.702)?.multiply(&gate)?)?)?;
                up.add(number(1.0)?)?.multiply(swish)
            }
        }
    }
}
