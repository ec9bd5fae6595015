//! Elementary functions, sixteen lanes at a time.
//!
//! Plain loops over arrays, which become instructions of whatever set a [`crate::simd::Task`] runs with. Each step is one
//! correctly rounded operation, so the bits are the same everywhere.
//!
//! The exponential and the tangent are those of Cephes (S. Moshier, `expf.c`, `tanhf.c`), with fused multiply-adds.

use std::ops::{Deref, DerefMut};

use crate::simd::LANES;

pub(crate) type Vector = [f32; LANES];

/// Vectors that each lie in one line of a cache: to load one that lies in two takes twice as long.
#[derive(Debug, Default)]
pub(crate) struct Vectors {
    numbers: Vec<f32>,
    /// Numbers before the first line.
    start: usize,
    count: usize,
}

impl Vectors {
    /// So many vectors of zeros.
    pub(crate) fn new(count: usize) -> Self {
        let mut vectors = Self::default();
        vectors.resize(count);
        vectors
    }

    /// Makes them so many. What is in them is anything that was there before, or zeros.
    pub(crate) fn resize(&mut self, count: usize) {
        self.numbers.resize((count + 1) * LANES, 0.0);
        self.start = self.numbers.as_ptr().align_offset(align_of::<Line>()).min(LANES);
        self.count = count;
    }
}

/// A line of a cache.
#[repr(align(64))]
struct Line;

impl Deref for Vectors {
    type Target = [Vector];

    #[inline(always)]
    fn deref(&self) -> &[Vector] {
        let numbers = self.numbers.get(self.start..).unwrap_or_default();
        numbers.as_chunks().0.get(..self.count).unwrap_or_default()
    }
}

impl DerefMut for Vectors {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [Vector] {
        let numbers = self.numbers.get_mut(self.start..).unwrap_or_default();
        numbers.as_chunks_mut().0.get_mut(..self.count).unwrap_or_default()
    }
}

/// Fewer numbers than a vector has, filled up with zeros.
#[inline(always)]
pub(crate) fn padded(numbers: &[f32]) -> Vector {
    let mut vector = [0.0; LANES];
    vector.iter_mut().zip(numbers).for_each(|(to, from)| *to = *from);
    vector
}

#[inline(always)]
pub(crate) fn map(values: Vector, f: impl Fn(f32) -> f32) -> Vector {
    // Not `values.map`, which is compiled by itself, without a task's instructions.
    let mut out = values;
    for value in &mut out {
        *value = f(*value);
    }
    out
}

#[inline(always)]
pub(crate) fn zip(a: Vector, b: Vector, f: impl Fn(f32, f32) -> f32) -> Vector {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out = f(*out, b);
    }
    out
}

/// `e` to the power of `x`, within 2 units in the last place. 0 below -104, infinite above 89.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, whose bits are the lowest of the sum.
    const MAGIC: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons that let pass what is no number.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let whole = shifted - MAGIC;
    let rest = whole.mul_add(-LN_2_LOW, whole.mul_add(-LN_2_HIGH, x));
    let mut sum = 1.987_569_1e-4_f32;
    sum = sum.mul_add(rest, 1.398_199_9e-3);
    sum = sum.mul_add(rest, 8.333_452e-3);
    sum = sum.mul_add(rest, 4.166_579_6e-2);
    sum = sum.mul_add(rest, 0.166_666_66);
    sum = sum.mul_add(rest, 0.5);
    let value = sum.mul_add(rest * rest, rest) + 1.0;
    // 2^whole in two factors, since one alone may be no normal number.
    let whole = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed();
    let half = whole >> 1;
    value * power_of_two(half) * power_of_two(whole - half)
}

/// `2^exponent` for exponents of normal numbers.
#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127).cast_unsigned()) << 23)
}

/// The hyperbolic tangent, within 3 units in the last place.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let square = x * x;
    let mut sum = -5.704_988_7e-3_f32;
    sum = sum.mul_add(square, 2.063_908_8e-2);
    sum = sum.mul_add(square, -5.373_971_5e-2);
    sum = sum.mul_add(square, 0.133_314_42);
    sum = sum.mul_add(square, -0.333_332_8);
    let near_zero = (sum * square).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(size + size) + 1.0);
    if size < 0.625 { near_zero } else { far.copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest distance of `found` from the exact value, in units of its last place.
    fn worst(from: f32, to: f32, found: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let steps = 200_000;
        let each = |step: i32| {
            let x = from + (to - from) * (step as f32 / steps as f32);
            let exact = exact(f64::from(x));
            #[expect(clippy::cast_possible_truncation, reason = "its neighbours are wanted")]
            let near = exact as f32;
            let unit = f64::from(near.abs().next_up()) - f64::from(near.abs());
            (f64::from(found(x)) - exact).abs() / unit
        };
        (0..=steps).map(each).fold(0.0, f64::max)
    }

    #[test]
    fn vectors_lie_in_lines() {
        let mut vectors = Vectors::new(3);
        for count in [3, 1000, 2, 0] {
            vectors.resize(count);
            assert_eq!(vectors.len(), count);
            assert!(vectors.as_ptr().addr().is_multiple_of(64) || count == 0);
        }
        assert!(Vectors::new(100).iter().flatten().all(|number| number.to_bits() == 0));
    }

    #[test]
    fn exponentials_are_right() {
        let found = worst(-103.0, 88.7, exp, f64::exp);
        assert!(found < 2.0, "{found}");
        let found = worst(-1.0, 1.0, exp, f64::exp);
        assert!(found < 2.0, "{found}");
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert!(exp(f32::INFINITY).is_infinite() && exp(f32::MAX).is_infinite());
        assert_eq!(exp(f32::MIN).to_bits(), 0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tangents_are_right() {
        let found = worst(-12.0, 12.0, tanh, f64::tanh).max(worst(-1.0, 1.0, tanh, f64::tanh));
        assert!(found < 3.0, "{found}");
        assert_eq!(tanh(f32::INFINITY).to_bits(), 1.0_f32.to_bits());
        assert_eq!(tanh(f32::NEG_INFINITY).to_bits(), (-1.0_f32).to_bits());
        assert!(tanh(f32::NAN).is_nan());
    }
}
