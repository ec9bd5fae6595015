//! The gated feed-forward part of a layer.

use mlx_rs::Array;
use mlx_rs::ops::sigmoid;

use super::Mlx;
use super::linear::Linear;

/// `down(silu(gate(x)) * up(x))`.
pub(super) struct GatedMlp {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl GatedMlp {
    /// `x [rows, hidden]`, same shape out.
    pub(super) fn forward(&self, x: &Array) -> Mlx<Array> {
        let gate = self.gate.forward(x)?;
        let gated = gate.multiply(sigmoid(&gate)?)?.multiply(self.up.forward(x)?)?;
        self.down.forward(&gated)
    }
}
