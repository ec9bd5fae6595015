//! What is done to each row for itself: norms, sums, gates, rotary positions.
//!
//! Every step is rounded to the type of the rows where MLX rounds it, when it composes the same of its operations.
//! Rows are dealt out among threads; within a row the only sum is that of the norm, which is made as in a dot product.

use std::f32::consts::FRAC_2_PI;

use crate::isa::Isa;
use crate::number::Number;
use crate::panel::Rows;
use crate::pool::Pool;
use crate::product::Misfit;
use crate::simd::{LANES, Simd, Task};
use crate::vector::{Vector, exp, map, padded, tanh, zip};

/// How a gate and a value become one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// `gate * sigmoid(gate) * value`.
    Silu,
    /// The Gaussian error linear unit of the gate, by a hyperbolic tangent, times the value.
    GeluTanh,
    /// `gate * sigmoid(1.702 * gate) * (value + 1)`, the gate at most `limit`, the value between it and its opposite.
    ClampedSwish {
        /// The bound.
        limit: f32,
    },
    /// `gate * sigmoid(gate) * value`, the product of gate and sigmoid at most `limit`, the value between it and its opposite.
    ClampedSilu {
        /// The bound.
        limit: f32,
    },
}

/// How heads are turned.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// What each number is multiplied by, `[rows / heads, dims]`.
    pub own: Rows<'a>,
    /// What its partner is multiplied by; the sum of both is the result.
    pub partner: Rows<'a>,
    /// Consecutive rows that are turned alike: the heads of a position.
    pub heads: usize,
    /// Whether partners are neighbours; otherwise they are half of `dims` apart.
    pub traditional: bool,
    /// What all numbers that are turned are multiplied by before.
    pub amplitude: f32,
}

/// Divides every row by its root mean square, and multiplies it by `weight`, one row of as many numbers. `eps` is added
/// to the mean of the squares. Into `out [rows, inputs]`, numbers of the type of `x`, as is the weight.
///
/// # Errors
/// When sizes or types do not fit.
pub fn rms_norm(
    pool: &Pool,
    isa: Isa,
    x: &Rows<'_>,
    weight: &Rows<'_>,
    eps: f32,
    out: &mut [u8],
) -> Result<(), Misfit> {
    same_width(x, weight)?;
    if weight.rows != 1 {
        return Err(Misfit::Count { what: "rows of a weight", rows: weight.rows, matrix: 1 });
    }
    let mut factors = vec![0.0; weight.inputs];
    weight.number.read(weight.row(0), &mut factors);
    each_row(pool, isa, x, out, &Norm { x, weight: &factors, eps })
}

/// What a row is normed by.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// What each number is multiplied by in the end.
    pub weight: &'a [f32],
    /// What is added to it then.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// Takes the mean of every row away, divides what is left by its root mean square, multiplies by a weight and adds a bias;
/// rounded once, in the end. Both sums are made as in a dot product. Into `out [rows, inputs]`, numbers of the type of `x`.
///
/// # Errors
/// When sizes do not fit.
pub fn layer_norm(
    pool: &Pool,
    isa: Isa,
    x: &Rows<'_>,
    norm: &LayerNorm<'_>,
    out: &mut [u8],
) -> Result<(), Misfit> {
    for numbers in [norm.weight, norm.bias] {
        if numbers.len() != x.inputs {
            return Err(Misfit::Inputs { rows: x.inputs, matrix: numbers.len() });
        }
    }
    each_row(pool, isa, x, out, &Centered { x, norm })
}

/// `a + b`, number by number, into `out`; all of one type and shape, but `b` may be one row for all.
///
/// # Errors
/// When sizes or types do not fit.
pub fn add(
    pool: &Pool,
    isa: Isa,
    a: &Rows<'_>,
    b: &Rows<'_>,
    out: &mut [u8],
) -> Result<(), Misfit> {
    same_width(a, b)?;
    if b.rows != 1 {
        same_count(a, b)?;
    }
    each_row(pool, isa, a, out, &Sum { a, b })
}

/// One number for each gate and value, into `out`; all of one type and shape.
///
/// # Errors
/// When sizes or types do not fit.
pub fn gated(
    pool: &Pool,
    isa: Isa,
    gate: Gate,
    gates: &Rows<'_>,
    values: &Rows<'_>,
    out: &mut [u8],
) -> Result<(), Misfit> {
    same_width(gates, values)?;
    same_count(gates, values)?;
    each_row(pool, isa, gates, out, &Gated { gate, gates, values })
}

/// Turns the first numbers of every row of `x`, as many as `rotary` has factors for, and copies the others, into `out`;
/// all of one type.
///
/// # Errors
/// When sizes or types do not fit.
pub fn rotate(
    pool: &Pool,
    isa: Isa,
    x: &Rows<'_>,
    rotary: &Rotary<'_>,
    out: &mut [u8],
) -> Result<(), Misfit> {
    let Rotary { own, partner, heads, .. } = rotary;
    same_width(own, partner)?;
    same_count(own, partner)?;
    let fits = own.number == x.number
        && own.inputs <= x.inputs
        && own.inputs.is_multiple_of(2)
        && own.rows.checked_mul(*heads) == Some(x.rows);
    if !fits {
        return Err(Misfit::Inputs { rows: x.inputs, matrix: own.inputs });
    }
    each_row(pool, isa, x, out, &Turned { x, rotary })
}

fn same_width(a: &Rows<'_>, b: &Rows<'_>) -> Result<(), Misfit> {
    if a.number != b.number || a.inputs != b.inputs {
        return Err(Misfit::Inputs { rows: a.inputs, matrix: b.inputs });
    }
    for rows in [a, b] {
        rows.check()?;
    }
    Ok(())
}

const fn same_count(a: &Rows<'_>, b: &Rows<'_>) -> Result<(), Misfit> {
    if a.rows == b.rows {
        Ok(())
    } else {
        Err(Misfit::Size { what: "rows", bytes: b.rows, wanted: a.rows })
    }
}

/// What becomes of a row.
trait Rowwise: Sync {
    /// Puts it into `result`, whose numbers are rounded when they are stored. `scratch` is as long.
    fn compute<S: Simd>(&self, simd: S, row: usize, scratch: &mut [f32], result: &mut [f32]);
}

/// A thread takes at least so many numbers: some microseconds of work.
const LEAST: usize = 1 << 13;

fn each_row<R: Rowwise>(
    pool: &Pool,
    isa: Isa,
    x: &Rows<'_>,
    out: &mut [u8],
    rowwise: &R,
) -> Result<(), Misfit> {
    x.check()?;
    let row_bytes = x.inputs.saturating_mul(x.number.bytes());
    let wanted = x.rows.saturating_mul(row_bytes);
    if out.len() != wanted {
        return Err(Misfit::Size { what: "results", bytes: out.len(), wanted });
    }
    if out.is_empty() {
        return Ok(());
    }
    let rows = LEAST.div_ceil(x.inputs).max(x.rows.div_ceil(pool.threads() * 4));
    pool.each_part(out, rows * row_bytes, &|part, out| {
        isa.run(Part { rowwise, x, first: part * rows, out });
    });
    Ok(())
}

struct Part<'a, R> {
    rowwise: &'a R,
    x: &'a Rows<'a>,
    first: usize,
    out: &'a mut [u8],
}

impl<R: Rowwise> Task for Part<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rowwise, x, first, out } = self;
        let mut result = vec![0.0; x.inputs];
        let mut scratch = vec![0.0; x.inputs];
        for (row, out) in (first..).zip(out.chunks_mut(x.inputs * x.number.bytes())) {
            rowwise.compute(simd, row, &mut scratch, &mut result);
            x.number.store(simd, &result, out);
        }
    }
}

/// Calls `f` with sixteen numbers of both at a time; it changes those of the first.
#[inline(always)]
fn both(to: &mut [f32], from: &[f32], f: impl Fn(Vector, Vector) -> Vector) {
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    let (from, from_rest) = from.as_chunks::<LANES>();
    let (mut a, b) = (padded(to_rest), padded(from_rest));
    // One call, so that it becomes a part of this function and uses the instructions of a task.
    for (to, from) in to.iter_mut().chain([&mut a]).zip(from.iter().chain([&b])) {
        *to = f(*to, *from);
    }
    to_rest.iter_mut().zip(a).for_each(|(to, from)| *to = from);
}

struct Norm<'a> {
    x: &'a Rows<'a>,
    weight: &'a [f32],
    eps: f32,
}

impl Rowwise for Norm<'_> {
    #[inline(always)]
    fn compute<S: Simd>(&self, simd: S, row: usize, _: &mut [f32], result: &mut [f32]) {
        let number = self.x.number;
        number.load(simd, self.x.row(row), result);
        let mean = dot(simd, result, result) * (1.0 / result.len() as f32);
        let factor = 1.0 / (mean + self.eps).sqrt();
        both(result, self.weight, |x, weight| {
            zip(number.round(simd, map(x, |x| x * factor)), weight, |x, weight| x * weight)
        });
    }
}

struct Centered<'a> {
    x: &'a Rows<'a>,
    norm: &'a LayerNorm<'a>,
}

impl Rowwise for Centered<'_> {
    #[inline(always)]
    fn compute<S: Simd>(&self, simd: S, row: usize, scratch: &mut [f32], result: &mut [f32]) {
        self.x.number.load(simd, self.x.row(row), result);
        let part = 1.0 / result.len() as f32;
        scratch.fill(1.0);
        let mean = dot(simd, result, scratch) * part;
        scratch.fill(mean);
        both(result, scratch, |x, mean| zip(x, mean, |x, mean| x - mean));
        let factor = 1.0 / (dot(simd, result, result) * part + self.norm.eps).sqrt();
        both(result, self.norm.weight, |x, weight| {
            zip(map(x, |x| x * factor), weight, |x, weight| x * weight)
        });
        both(result, self.norm.bias, |x, bias| zip(x, bias, |x, bias| x + bias));
    }
}

/// The dot product of two rows of `f32`.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = simd.splat(0.0);
    for (a, b) in a.iter().chain([&padded(a_rest)]).zip(b.iter().chain([&padded(b_rest)])) {
        lanes = simd.mul_add(simd.load(a), simd.load(b), lanes);
    }
    simd.sum(lanes)
}

struct Sum<'a> {
    a: &'a Rows<'a>,
    b: &'a Rows<'a>,
}

impl Rowwise for Sum<'_> {
    #[inline(always)]
    fn compute<S: Simd>(&self, simd: S, row: usize, scratch: &mut [f32], result: &mut [f32]) {
        self.a.number.load(simd, self.a.row(row), result);
        self.a.number.load(simd, self.b.row(row.min(self.b.rows - 1)), scratch);
        both(result, scratch, |a, b| zip(a, b, |a, b| a + b));
    }
}

struct Gated<'a> {
    gate: Gate,
    gates: &'a Rows<'a>,
    values: &'a Rows<'a>,
}

impl Rowwise for Gated<'_> {
    #[inline(always)]
    fn compute<S: Simd>(&self, simd: S, row: usize, scratch: &mut [f32], result: &mut [f32]) {
        let number = self.gates.number;
        number.load(simd, self.gates.row(row), result);
        number.load(simd, self.values.row(row), scratch);
        let steps = Steps { simd, number };
        match self.gate {
            Gate::Silu => both(result, scratch, |gate, value| steps.silu(gate, value)),
            Gate::GeluTanh => both(result, scratch, |gate, value| steps.gelu(gate, value)),
            Gate::ClampedSwish { limit } => {
                both(result, scratch, |gate, value| steps.clamped_swish(limit, gate, value));
            }
            Gate::ClampedSilu { limit } => {
                both(result, scratch, |gate, value| steps.clamped_silu(limit, gate, value));
            }
        }
    }
}

/// Steps of a gate, each rounded to the type of the rows; but the last, which is when it is stored.
#[derive(Clone, Copy)]
struct Steps<S> {
    simd: S,
    number: Number,
}

impl<S: Simd> Steps<S> {
    #[inline(always)]
    fn round(self, values: Vector) -> Vector {
        self.number.round(self.simd, values)
    }

    #[inline(always)]
    fn constant(self, value: f32) -> Vector {
        self.round([value; LANES])
    }

    #[inline(always)]
    fn times(self, a: Vector, b: Vector) -> Vector {
        self.round(zip(a, b, |a, b| a * b))
    }

    #[inline(always)]
    fn plus(self, a: Vector, b: Vector) -> Vector {
        self.round(zip(a, b, |a, b| a + b))
    }

    #[inline(always)]
    fn sigmoid(self, x: Vector) -> Vector {
        let powers = self.round(map(x, |x| exp(x.abs())));
        let small = map(powers, |power| 1.0 / (1.0 + power));
        self.round(zip(small, x, |small, x| if x < 0.0 { small } else { 1.0 - small }))
    }

    #[inline(always)]
    fn silu(self, gate: Vector, value: Vector) -> Vector {
        zip(self.times(gate, self.sigmoid(gate)), value, |a, b| a * b)
    }

    #[inline(always)]
    fn gelu(self, gate: Vector, value: Vector) -> Vector {
        let cube = self.times(self.times(gate, gate), gate);
        let inner = self.plus(gate, self.times(self.constant(0.044_715), cube));
        let scaled = self.times(self.constant(FRAC_2_PI.sqrt()), inner);
        let bent = self.plus(self.constant(1.0), self.round(map(scaled, tanh)));
        let half = self.times(self.constant(0.5), gate);
        zip(self.times(half, bent), value, |a, b| a * b)
    }

    #[inline(always)]
    fn clamped_swish(self, limit: f32, gate: Vector, value: Vector) -> Vector {
        let (gate, value) = self.clamped(limit, gate, value);
        let swish = self.times(gate, self.sigmoid(self.times(self.constant(1.702), gate)));
        zip(self.plus(value, self.constant(1.0)), swish, |a, b| a * b)
    }

    #[inline(always)]
    fn clamped_silu(self, limit: f32, gate: Vector, value: Vector) -> Vector {
        let (silu, value) = self.clamped(limit, self.times(gate, self.sigmoid(gate)), value);
        zip(silu, value, |a, b| a * b)
    }

    /// The gate at most `limit`, the value between it and its opposite.
    #[inline(always)]
    fn clamped(self, limit: f32, gate: Vector, value: Vector) -> (Vector, Vector) {
        let (low, high) = (self.constant(-limit), self.constant(limit));
        // What is no number stays none.
        let gate = zip(gate, high, |a, b| if a > b { b } else { a });
        let value = zip(value, low, |a, b| if a < b { b } else { a });
        (gate, zip(value, high, |a, b| if a > b { b } else { a }))
    }
}

struct Turned<'a> {
    x: &'a Rows<'a>,
    rotary: &'a Rotary<'a>,
}

impl Rowwise for Turned<'_> {
    #[inline(always)]
    fn compute<S: Simd>(&self, simd: S, row: usize, scratch: &mut [f32], result: &mut [f32]) {
        let Rotary { own, partner, heads, traditional, amplitude } = *self.rotary;
        let number = self.x.number;
        let round = |values: Vector| number.round(simd, values);
        number.load(simd, self.x.row(row), result);
        let dims = own.inputs;
        let Some(turned) = result.get_mut(..dims) else { return };
        if amplitude.to_bits() != 1.0_f32.to_bits() {
            // The same for all of them, in place of other numbers.
            let louder = round([amplitude; LANES]);
            scratch.fill(0.0);
            both(turned, scratch, |x, _| round(zip(x, louder, |a, b| a * b)));
        }
        let Some(partners) = scratch.get_mut(..dims) else { return };
        if traditional {
            let pairs = partners.as_chunks_mut::<2>().0.iter_mut().zip(turned.as_chunks::<2>().0);
            pairs.for_each(|(to, [first, second])| *to = [*second, *first]);
        } else {
            let (first, second) = turned.split_at(dims / 2);
            let (to_first, to_second) = partners.split_at_mut(dims / 2);
            to_first.copy_from_slice(second);
            to_second.copy_from_slice(first);
        }
        let mut factors = vec![0.0; dims];
        let position = row / heads;
        number.load(simd, own.row(position), &mut factors);
        both(turned, &factors, |x, own| round(zip(x, own, |a, b| a * b)));
        number.load(simd, partner.row(position), &mut factors);
        both(partners, &factors, |x, partner| round(zip(x, partner, |a, b| a * b)));
        both(turned, partners, |a, b| zip(a, b, |a, b| a + b));
    }
}
