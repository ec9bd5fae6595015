//! Rotary positions.

use std::f32::consts::TAU;

use mlx_rs::fast::rope_dynamic;
use mlx_rs::ops::indexing::{IntoStrideBy, TryIndexOp};
use mlx_rs::ops::{arange, concatenate, cos, exp, sin, stack};
use mlx_rs::{Array, Device, DeviceType, Dtype};

use super::Mlx;
use crate::model_dir::RopeScaling;

/// Turns pairs of numbers of queries and keys by angles that grow with the position.
pub(super) struct Rope {
    head_dim: i32,
    /// The pairs are neighbours; otherwise they lie half a head apart.
    traditional: bool,
    speeds: Speeds,
    /// GPUs have a kernel for the whole of it. On CPUs MLX composes it of some twenty operations,
    /// cosines and sines among them, for every call; so there what depends on the positions alone
    /// is computed once per step, and turning takes four.
    has_kernel: bool,
}

/// How fast each pair turns.
enum Speeds {
    /// Pair `i` of `n` by `scale / base^(i/n)` per position.
    Base { base: f32, scale: f32 },
    /// Pair `i` by `1 / periods[i]` per position. MLX calls these `freqs`.
    Periods(Array),
}

/// What the rows of a step are turned by, for all layers and heads.
pub(super) enum Turns {
    /// Each row's position, `i32 [rows]`.
    Positions(Array),
    /// What each number and its partner are multiplied by, `[rows, 1, head_dim]`.
    Factors { own: Array, partner: Array },
}

impl Rope {
    pub(super) fn new(
        head_dim: i32,
        base: f32,
        traditional: bool,
        scaling: RopeScaling,
    ) -> Mlx<Self> {
        let speeds = match scaling {
            RopeScaling::Default => Speeds::Base { base, scale: 1.0 },
            RopeScaling::Linear { factor } => Speeds::Base { base, scale: factor.recip() },
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let llama3 = Llama3 {
                    factor,
                    low: low_freq_factor,
                    high: high_freq_factor,
                    context: original_max_position_embeddings as f32,
                };
                let periods: Vec<f32> = (0..head_dim)
                    .step_by(2)
                    .map(|dim| llama3.period(base.powf(dim as f32 / head_dim as f32)))
                    .collect();
                Speeds::Periods(Array::from_slice(&periods, &[head_dim / 2]))
            }
        };
        let has_kernel = matches!(Device::try_default()?.get_type()?, DeviceType::Gpu);
        Ok(Self { head_dim, traditional, speeds, has_kernel })
    }

    /// What rows at `positions` (`i32 [rows]`) are turned by, for numbers of type `dtype`.
    pub(super) fn turns(&self, positions: &Array, dtype: Dtype) -> Mlx<Turns> {
        if self.has_kernel {
            return Ok(Turns::Positions(positions.clone()));
        }
        // Every number and its type as in MLX's own composition, so that results are the same.
        let pairs = self.head_dim / 2;
        let (speeds, scale) = match &self.speeds {
            Speeds::Base { base, scale } => {
                let step = Array::from_f32(base.ln() / pairs as f32);
                let exponents = arange::<_, f32>(0, -pairs, -1)?.multiply(step)?;
                (exp(exponents)?, *scale)
            }
            Speeds::Periods(periods) => (periods.reciprocal()?, 1.0),
        };
        let positions = positions.as_type::<f32>()?.multiply(Array::from_f32(scale))?;
        let angles = positions.reshape(&[-1, 1, 1])?.multiply(speeds)?;
        let cosines = cos(&angles)?.as_dtype(dtype)?;
        let sines = sin(&angles)?.as_dtype(dtype)?;
        Ok(Turns::Factors {
            own: self.pairs(&cosines, &cosines)?,
            partner: self.pairs(&sines.negative()?, &sines)?,
        })
    }

    /// Turns every head of `x [rows, heads, head_dim]`.
    pub(super) fn forward(&self, x: &Array, turns: &Turns) -> Mlx<Array> {
        match turns {
            Turns::Factors { own, partner } => {
                let (first, second) = self.halves(x)?;
                let partners = self.pairs(&second, &first)?;
                x.multiply(own)?.add(partners.multiply(partner)?)
            }
            Turns::Positions(positions) => {
                let (base, scale, periods) = match &self.speeds {
                    Speeds::Base { base, scale } => (Some(*base), *scale, None),
                    Speeds::Periods(periods) => (None, 1.0, Some(periods)),
                };
                // MLX counts positions along the last axis but one, from an offset for each of the
                // first. Rows of one position each are just that.
                let x = x.expand_dims(2)?;
                rope_dynamic(x, self.head_dim, self.traditional, base, scale, positions, periods)?
                    .squeeze_axes(&[2])
            }
        }
    }

    /// The first and the second of every pair, `[.., head_dim / 2]` each.
    fn halves(&self, x: &Array) -> Mlx<(Array, Array)> {
        let pairs = self.head_dim / 2;
        if self.traditional {
            let second = x.try_index((.., .., (1..).stride_by(2)))?;
            Ok((x.try_index((.., .., (..).stride_by(2)))?, second))
        } else {
            Ok((x.try_index((.., .., ..pairs))?, x.try_index((.., .., pairs..))?))
        }
    }

    /// Puts the firsts and seconds of pairs where [`Self::halves`] takes them from.
    fn pairs(&self, first: &Array, second: &Array) -> Mlx<Array> {
        if self.traditional {
            stack(&[first, second], -1)?.flatten(-2, -1)
        } else {
            concatenate(&[first, second], -1)
        }
    }
}

/// The scaling of Llama 3.1 (`apply_scaling` in Meta's llama-models).
struct Llama3 {
    factor: f32,
    low: f32,
    high: f32,
    context: f32,
}

impl Llama3 {
    /// Pairs that turn less than `low` times in the original context are slowed by `factor`, those
    /// that turn more than `high` times are left alone, and those between are blended.
    fn period(&self, period: f32) -> f32 {
        let turns = self.context / (TAU * period);
        if turns < self.low {
            period * self.factor
        } else if turns > self.high {
            period
        } else {
            let kept = (turns - self.low) / (self.high - self.low);
            period / ((1.0 - kept) / self.factor + kept)
        }
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Stream, with_stream};

    use super::*;

    #[test]
    fn llama3_slows_the_slow_and_keeps_the_fast() {
        let llama3 = Llama3 { factor: 8.0, low: 1.0, high: 4.0, context: 8192.0 };
        let fast = 8192.0 / (5.0 * TAU);
        let slow = 8192.0 / (0.5 * TAU);
        assert_eq!(llama3.period(fast), fast);
        assert_eq!(llama3.period(slow), 8.0 * slow);
        // Half-way between the two, in turns.
        let middle = 8192.0 / (2.5 * TAU);
        assert!((llama3.period(middle) / middle - 1.0 / (0.5 / 8.0 + 0.5)).abs() < 1e-5);
    }

    /// On the CPU both ways can be compared, number by number.
    #[test]
    fn factors_turn_as_mlx_does() {
        with_stream(&Stream::cpu(), compare_both_ways);
    }

    fn compare_both_ways() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64,
        };
        let numbers: Vec<f32> = (0..48).map(|n| (n as f32 * 0.7).sin()).collect();
        let positions = Array::from_slice(&[0, 7, 3000], &[3]);
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            let x = Array::from_slice(&numbers, &[3, 2, 8]).as_dtype(dtype).unwrap();
            for scaling in [RopeScaling::Default, RopeScaling::Linear { factor: 4.0 }, llama3] {
                for traditional in [false, true] {
                    let turned = [false, true].map(|has_kernel| {
                        let rope = Rope::new(8, 10_000.0, traditional, scaling).unwrap();
                        let rope = Rope { has_kernel, ..rope };
                        let turns = rope.turns(&positions, dtype).unwrap();
                        rope.forward(&x, &turns).unwrap()
                    });
                    let [ours, theirs] = turned;
                    assert_eq!(ours.dtype(), dtype);
                    assert!(ours.eq_exact(theirs).unwrap(), "{dtype:?} {scaling:?} {traditional}");
                }
            }
        }
    }

    #[test]
    fn a_row_is_turned_by_its_own_position_only() {
        let rope = Rope::new(8, 10_000.0, false, RopeScaling::Default).unwrap();
        let at = |positions: &[i32]| {
            let rows = i32::try_from(positions.len()).unwrap();
            let positions = Array::from_slice(positions, &[rows]);
            let x = Array::from_slice(&[0.5_f32; 16], &[1, 2, 8]);
            let turns = rope.turns(&positions, Dtype::Float32).unwrap();
            let turned = rope.forward(&x, &turns).unwrap();
            turned.try_as_slice::<f32>().unwrap().to_vec()
        };
        let together = at(&[0, 7, 300]);
        for (row, position) in [0, 7, 300].into_iter().enumerate() {
            assert_eq!(together[row * 16..][..16], at(&[position]));
        }
    }
}
