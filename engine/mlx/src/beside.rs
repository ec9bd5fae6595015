//! A dense part and experts beside each other.

use mlx_rs::error::Exception;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use planaria_engine::architecture::{Beside, FeedForwardUnit};

use super::error::LoadError;
use super::experts::ExpertMlp;
use super::linear::Projected;
use super::mlp::GatedMlp;
use super::norm::RmsNorm;
use super::weights::Weights;
use super::{Mlx, cpu};

/// Both see the same hidden states through norms of their own, and what they give is normed before it is added.
pub(super) struct DenseBesideExperts {
    dense: GatedMlp,
    after_dense: RmsNorm,
    before_router: RmsNorm,
    before_experts: RmsNorm,
    experts: ExpertMlp,
    after_experts: RmsNorm,
}

impl DenseBesideExperts {
    /// `units` are those of a rank, if it is cut.
    pub(super) fn take(
        weights: &mut Weights<'_>,
        both: &Beside,
        units: Option<&[FeedForwardUnit]>,
    ) -> Result<Self, LoadError> {
        let widths: Option<Vec<u32>> =
            units.map(|units| units.iter().map(|unit| unit.columns).collect());
        Ok(Self {
            dense: GatedMlp::take(weights, &both.dense, widths.as_deref())?,
            after_dense: RmsNorm::take(weights, &both.after_dense)?,
            before_router: RmsNorm::of_router(weights, &both.before_router)?,
            before_experts: RmsNorm::take(weights, &both.before_experts)?,
            experts: ExpertMlp::take(weights, &both.experts, units)?,
            after_experts: RmsNorm::take(weights, &both.after_experts)?,
        })
    }

    /// Of `hidden [rows, hidden]` and of what the norm before the dense part makes of it. Partial sums are those of both,
    /// `f32 [units, 2 * rows, hidden]`: each has to be whole before it is normed, and one exchange takes less time than two.
    pub(super) fn forward(&self, hidden: &Array, normed: &Array) -> Mlx<Projected> {
        let dense = self.dense.forward(normed)?;
        let seen = self.before_router.forward_as(hidden)?;
        let said = self.experts.forward_routed(&self.before_experts.forward(hidden)?, &seen)?;
        match (dense, said) {
            (Projected::Whole(dense), Projected::Whole(said)) => {
                self.added(&dense, &said).map(Projected::Whole)
            }
            (Projected::Partial(dense), Projected::Partial(said)) => {
                concatenate(&[dense, said], 1).map(Projected::Partial)
            }
            _ => Err(Exception::custom("experts and what is beside them are cut alike")),
        }
    }

    /// Of what partial sums of all units came to, `f32 [2 * rows, hidden]`.
    pub(super) fn finish(&self, sum: &Array, dtype: Dtype) -> Mlx<Array> {
        let rows = sum.shape().first().copied().unwrap_or(0) / 2;
        let dense = self.dense.finish(sum.try_index(..rows)?, dtype)?;
        self.added(&dense, &sum.try_index(rows..)?.as_dtype(dtype)?)
    }

    fn added(&self, dense: &Array, said: &Array) -> Mlx<Array> {
        let (dense, said) = (self.after_dense.forward(dense)?, self.after_experts.forward(said)?);
        match cpu::add(&dense, &said)? {
            Some(sum) => Ok(sum),
            None => dense.add(said),
        }
    }
}
