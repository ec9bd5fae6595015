//! Rotary positions.

use mlx_rs::fast::rope_dynamic;
use mlx_rs::ops::indexing::{Ellipsis, IntoStrideBy, TryIndexOp};
use mlx_rs::ops::{arange, concatenate, cos, exp, sin, stack};
use mlx_rs::{Array, Device, DeviceType, Dtype};
use planaria_engine::architecture::{Rope as RopeParts, Speeds as SpeedsParts};

use super::error::LoadError;
use super::linear::as_dim;
use super::{Mlx, cpu};

/// Turns pairs of numbers of queries and keys by angles that grow with the position.
pub(super) struct Rope {
    /// What it was made of; models have one or two.
    parts: RopeParts,
    dims: i32,
    speeds: Speeds,
    /// GPUs have a kernel for the whole of it. On CPUs MLX composes it of some twenty operations,
    /// cosines and sines among them, for every call; so there what depends on the positions alone
    /// is computed once per step, and turning takes four.
    has_kernel: bool,
}

enum Speeds {
    Base { base: f32, scale: f32 },
    Periods(Array),
}

/// What the rows of a step are turned by, for all layers and heads.
pub(super) enum Turns {
    /// Each row's position, `i32 [rows]`.
    Positions(Array),
    /// What each number and its partner are multiplied by, `[rows, 1, dims]`.
    Factors { own: Array, partner: Array },
}

impl Rope {
    pub(super) fn new(parts: &RopeParts) -> Result<Self, LoadError> {
        let dims = as_dim(parts.dims)?;
        let speeds = match &parts.speeds {
            SpeedsParts::Base { base, scale } => Speeds::Base { base: *base, scale: *scale },
            SpeedsParts::Periods(periods) => {
                Speeds::Periods(Array::from_slice(periods, &[dims / 2]))
            }
        };
        let has_kernel = matches!(Device::try_default()?.get_type()?, DeviceType::Gpu);
        Ok(Self { parts: parts.clone(), dims, speeds, has_kernel })
    }

    /// Whether it was made of these.
    pub(super) fn is(&self, parts: &RopeParts) -> bool {
        self.parts == *parts
    }

    /// What rows at `positions` (`i32 [rows]`) are turned by, for numbers of type `dtype`.
    pub(super) fn turns(&self, positions: &Array, dtype: Dtype) -> Mlx<Turns> {
        if self.has_kernel {
            return Ok(Turns::Positions(positions.clone()));
        }
        // Every number and its type as in MLX's own composition, so that results are the same.
        let pairs = self.dims / 2;
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

    /// Turns the first numbers of every head of `x [rows, heads, head_dim]`.
    pub(super) fn forward(&self, x: &Array, turns: &Turns) -> Mlx<Array> {
        if let Turns::Factors { own, partner } = turns {
            let RopeParts { traditional, amplitude, .. } = self.parts;
            let factors = cpu::Factors { own, partner, traditional, amplitude };
            if let Some(turned) = cpu::rotate(x, &factors)? {
                return Ok(turned);
            }
        }
        if x.shape().last() == Some(&self.dims) {
            return self.turn(x, turns);
        }
        let turned = self.turn(&x.try_index((Ellipsis, ..self.dims))?, turns)?;
        concatenate(&[turned, x.try_index((Ellipsis, self.dims..))?], -1)
    }

    /// Turns every head of `x [rows, heads, dims]`.
    fn turn(&self, x: &Array, turns: &Turns) -> Mlx<Array> {
        let louder;
        let x = if self.parts.amplitude == 1.0 {
            x
        } else {
            louder = x.multiply(Array::from_f32(self.parts.amplitude).as_dtype(x.dtype())?)?;
            &louder
        };
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
                rope_dynamic(x, self.dims, self.parts.traditional, base, scale, positions, periods)?
                    .squeeze_axes(&[2])
            }
        }
    }

    /// The first and the second of every pair, `[.., dims / 2]` each.
    fn halves(&self, x: &Array) -> Mlx<(Array, Array)> {
        let pairs = self.dims / 2;
        if self.parts.traditional {
            let second = x.try_index((.., .., (1..).stride_by(2)))?;
            Ok((x.try_index((.., .., (..).stride_by(2)))?, second))
        } else {
            Ok((x.try_index((.., .., ..pairs))?, x.try_index((.., .., pairs..))?))
        }
    }

    /// Puts the firsts and seconds of pairs where [`Self::halves`] takes them from.
    fn pairs(&self, first: &Array, second: &Array) -> Mlx<Array> {
        if self.parts.traditional {
            stack(&[first, second], -1)?.flatten(-2, -1)
        } else {
            concatenate(&[first, second], -1)
        }
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Stream, with_stream};

    use super::*;

    /// On the CPU both ways can be compared, number by number.
    #[test]
    fn factors_turn_as_mlx_does() {
        with_stream(&Stream::cpu(), compare_both_ways);
    }

    fn compare_both_ways() {
        let numbers: Vec<f32> = (0..48).map(|n| (n as f32 * 0.7).sin()).collect();
        let positions = Array::from_slice(&[0, 7, 3000], &[3]);
        let base = |scale| SpeedsParts::Base { base: 10_000.0, scale };
        let periods = SpeedsParts::Periods(vec![1.0, 12.0, 90.0, 4000.0]);
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            let x = Array::from_slice(&numbers, &[3, 2, 8]).as_dtype(dtype).unwrap();
            for speeds in [base(1.0), base(0.25), periods.clone()] {
                for (traditional, amplitude) in [(false, 1.0), (true, 1.0), (false, 1.3)] {
                    let parts =
                        RopeParts { dims: 8, traditional, speeds: speeds.clone(), amplitude };
                    let turned = [false, true].map(|has_kernel| {
                        let rope = Rope { has_kernel, ..Rope::new(&parts).unwrap() };
                        let turns = rope.turns(&positions, dtype).unwrap();
                        rope.forward(&x, &turns).unwrap()
                    });
                    let [ours, theirs] = turned;
                    assert_eq!(ours.dtype(), dtype);
                    assert!(ours.eq_exact(theirs).unwrap(), "{dtype:?} {parts:?}");
                }
            }
        }
    }

    fn plain(dims: u32) -> Rope {
        let speeds = SpeedsParts::Base { base: 10_000.0, scale: 1.0 };
        Rope::new(&RopeParts { dims, traditional: false, speeds, amplitude: 1.0 }).unwrap()
    }

    #[test]
    fn a_row_is_turned_by_its_own_position_only() {
        let rope = plain(8);
        let at = |positions: &[i32]| {
            let rows = i32::try_from(positions.len()).unwrap();
            let positions = Array::from_slice(positions, &[rows]);
            let x = Array::from_slice(&[0.5_f32; 48], &[3, 2, 8]).try_index(..rows).unwrap();
            let turns = rope.turns(&positions, Dtype::Float32).unwrap();
            let turned = rope.forward(&x, &turns).unwrap();
            turned.contiguous().unwrap().try_as_slice::<f32>().unwrap().to_vec()
        };
        let together = at(&[0, 7, 300]);
        for (row, position) in [0, 7, 300].into_iter().enumerate() {
            assert_eq!(together[row * 16..][..16], at(&[position]));
        }
    }

    #[test]
    fn what_is_behind_the_turned_part_of_a_head_stays() {
        let rope = plain(4);
        let numbers: Vec<f32> = (0..8).map(|n| n as f32).collect();
        let x = Array::from_slice(&numbers, &[1, 1, 8]);
        let turns = rope.turns(&Array::from_slice(&[5], &[1]), Dtype::Float32).unwrap();
        let turned = rope.forward(&x, &turns).unwrap();
        let turned = turned.try_as_slice::<f32>().unwrap();
        assert_eq!(turned[4..], numbers[4..]);
        assert!(turned[..4].iter().zip(&numbers).all(|(a, b)| a != b), "{turned:?}");
    }
}
