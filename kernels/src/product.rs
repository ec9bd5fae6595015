//! Products of rows with a matrix.
//!
//! Few rows: outputs four at a time, weights unpacked into registers and used at once, since reading them is
//! what takes the time. Many rows: sixteen outputs at a time, a stretch of their weights unpacked into a cache, and used
//! for all rows. Each pair of row and output has sixteen lanes of its own throughout, so both
//! give the same bits.

use std::ops::Range;

use thiserror::Error;

use crate::format::{
    Affine2, Affine4, Affine4By32, Affine8, AffineOdd, DenseBf16, DenseF16, DenseF32, Format,
    Mxfp4, Mxfp8, Nvfp4, Packing,
};
use crate::isa::Isa;
use crate::number::Number;
use crate::panel::{Panel, Rows};
use crate::pool::Pool;
use crate::simd::{LANES, Simd, Task};

mod direct;
mod source;
mod tiles;

use crate::out::Out;

/// A matrix `[outputs, inputs]`, or what there is of it in memory.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// How weights are stored.
    pub packing: Packing,
    /// Rows.
    pub outputs: usize,
    /// Weights of a row.
    pub inputs: usize,
    /// All weights, row by row.
    pub weights: &'a [u8],
    /// A scale for each group of a row, row by row; empty if there are none.
    pub scales: &'a [u8],
    /// The same of biases.
    pub biases: &'a [u8],
}

/// A product that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Misfit {
    /// Rows and matrix do not go together.
    #[error("rows of {rows} numbers do not fit a matrix of {matrix} inputs")]
    Inputs {
        /// Numbers of a row.
        rows: usize,
        /// Inputs of the matrix.
        matrix: usize,
    },
    /// There is no such packing.
    #[error("{inputs} inputs cannot be packed as {packing:?}")]
    Packing {
        /// What it is to be.
        packing: Packing,
        /// Inputs of the matrix.
        inputs: usize,
    },
    /// Two counts that should be one.
    #[error("{what}: {rows} and {matrix}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// One of them.
        rows: usize,
        /// The other.
        matrix: usize,
    },
    /// A piece of memory has another size than it should.
    #[error("{what} take {bytes} bytes where {wanted} were expected")]
    Size {
        /// What.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// What it should be.
        wanted: usize,
    },
}

impl Matrix<'_> {
    fn check(&self) -> Result<(), Misfit> {
        let Self { packing, outputs, inputs, .. } = *self;
        if !packing.fits(inputs) {
            return Err(Misfit::Packing { packing, inputs });
        }
        let group = packing.group().unwrap_or(1);
        let scales = inputs / group * packing.scale_bytes();
        let biases = if packing.has_biases() { scales } else { 0 };
        let row_bytes = self.row_bytes();
        for (what, memory, each) in [
            ("weights", self.weights, row_bytes),
            ("scales", self.scales, scales),
            ("biases", self.biases, biases),
        ] {
            let (bytes, wanted) = (memory.len(), outputs.saturating_mul(each));
            if bytes != wanted {
                return Err(Misfit::Size { what, bytes, wanted });
            }
        }
        Ok(())
    }

    const fn row_bytes(&self) -> usize {
        self.inputs.saturating_mul(self.packing.bits()) / 8
    }

    fn scale_bytes(&self) -> usize {
        self.packing.group().map_or(0, |group| self.inputs / group * self.packing.scale_bytes())
    }
}

/// A row, and which of some matrices it is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Number of the row.
    pub row: usize,
    /// Number of the matrix.
    pub matrix: usize,
}

/// `rows [rows, inputs]` times the transposed `matrix [outputs, inputs]`, into `out [rows, outputs]`, numbers of the
/// type of the rows.
///
/// # Errors
/// When the sizes do not fit.
pub fn matmul(
    pool: &Pool,
    isa: Isa,
    rows: &Rows<'_>,
    matrix: &Matrix<'_>,
    out: &mut [u8],
) -> Result<(), Misfit> {
    rows.check()?;
    let all: Vec<Choice> = (0..rows.rows).map(|row| Choice { row, matrix: 0 }).collect();
    matmul_chosen(pool, isa, rows, matrix, 1, &all, out)
}

/// For each choice its row times its matrix of a stack of `matrices`, into `out [choices, outputs]`, numbers of the type
/// of the rows. `stack [matrices * outputs, inputs]` has them one after the other. Each matrix is read once, however many
/// rows choose it.
///
/// # Errors
/// When the sizes do not fit, or a choice is of no row or no matrix.
pub fn matmul_chosen(
    pool: &Pool,
    isa: Isa,
    rows: &Rows<'_>,
    stack: &Matrix<'_>,
    matrices: usize,
    choices: &[Choice],
    out: &mut [u8],
) -> Result<(), Misfit> {
    let matrix = stack;
    matrix.check()?;
    if rows.inputs != matrix.inputs {
        return Err(Misfit::Inputs { rows: rows.inputs, matrix: matrix.inputs });
    }
    rows.check()?;
    let outputs = matrix.outputs / matrices.max(1);
    if outputs.saturating_mul(matrices) != matrix.outputs {
        let (rows, matrix) = (matrix.outputs, matrices);
        return Err(Misfit::Count { what: "outputs and matrices", rows, matrix });
    }
    let is_there = |choice: &Choice| choice.row < rows.rows && choice.matrix < matrices;
    if let Some(choice) = choices.iter().find(|choice| !is_there(choice)) {
        let what = "no such row and matrix";
        return Err(Misfit::Count { what, rows: choice.row, matrix: choice.matrix });
    }
    let wanted = choices.len().saturating_mul(outputs).saturating_mul(rows.number.bytes());
    if out.len() != wanted {
        return Err(Misfit::Size { what: "results", bytes: out.len(), wanted });
    }
    if out.is_empty() {
        return Ok(());
    }
    let mut places: Vec<Place> =
        (0..).zip(choices).map(|(out, choice)| Place { choice: *choice, out }).collect();
    places.sort_by_key(|place| place.choice.matrix);
    let out = Out::new(out, rows.number, outputs);
    let product = Product { pool, isa, rows, matrix, outputs, places, out };
    match matrix.packing {
        Packing::Dense(Number::F32) => product.compute::<_, 64, 1>(DenseF32),
        Packing::Dense(Number::F16) => product.compute::<_, 32, 1>(DenseF16),
        Packing::Dense(Number::Bf16) => product.compute::<_, 32, 1>(DenseBf16),
        Packing::Mxfp4 => product.compute::<_, 16, 2>(Mxfp4),
        Packing::Nvfp4 => product.compute::<_, 16, 2>(Nvfp4),
        Packing::Mxfp8 => product.compute::<_, 16, 1>(Mxfp8),
        Packing::Affine { bits, group, .. } => {
            let shift = |unit: usize| (group / unit).ilog2();
            match bits {
                4 if group == 32 => product.compute::<_, 16, 2>(Affine4By32),
                4 => product.compute::<_, 32, 4>(Affine4 { shift: shift(64) }),
                8 => product.compute::<_, 16, 1>(Affine8 { shift: shift(16) }),
                2 => product.compute::<_, 8, 2>(Affine2 { shift: shift(32) }),
                3 => product.compute::<_, 6, 1>(AffineOdd::<3> { shift: shift(16) }),
                5 => product.compute::<_, 10, 1>(AffineOdd::<5> { shift: shift(16) }),
                _ => product.compute::<_, 12, 1>(AffineOdd::<6> { shift: shift(16) }),
            }
        }
    }
    Ok(())
}

struct Product<'a> {
    pool: &'a Pool,
    isa: Isa,
    rows: &'a Rows<'a>,
    /// All matrices, one after the other.
    matrix: &'a Matrix<'a>,
    /// Outputs of each.
    outputs: usize,
    /// By matrix.
    places: Vec<Place>,
    out: Out<'a>,
}

/// A row of results.
#[derive(Debug, Clone, Copy)]
struct Place {
    choice: Choice,
    out: usize,
}

/// Consecutive outputs of one matrix, for the rows that choose it.
struct Block<'a> {
    places: &'a [Place],
    /// Which rows of all matrices.
    outputs: Range<usize>,
    /// The first of this matrix.
    first: usize,
}

/// Parts of a product that each thread gets, so that one that was interrupted holds up the others for less.
const PARTS: usize = 4;

/// A part has at least so many weights: it takes some microseconds.
const LEAST_WEIGHTS: usize = 1 << 15;

/// Outputs of a part are a multiple of this.
const OUTPUTS: usize = LANES;

/// Up to so many rows are used at once as weights are read.
const FEW: usize = 4;

impl Product<'_> {
    fn compute<F: Format<B, V>, const B: usize, const V: usize>(&self, format: F) {
        let Matrix { inputs, packing, .. } = *self.matrix;
        let panel = Panel::new(self.pool, self.isa, self.rows, packing.per_lane(), V);
        let groups = self.places.chunk_by(|a, b| a.choice.matrix == b.choice.matrix);
        let groups: Vec<&[Place]> = groups.collect();
        let shared = self.pool.threads() * PARTS;
        let mut blocks = Vec::new();
        for places in &groups {
            let least = LEAST_WEIGHTS.div_ceil((inputs * places.len()).max(1));
            let size = (self.outputs * groups.len()).div_ceil(shared).max(least);
            let size = size.next_multiple_of(OUTPUTS).min(self.outputs);
            let first = places.first().map_or(0, |place| place.choice.matrix) * self.outputs;
            let end = first + self.outputs;
            let starts = (first..end).step_by(size);
            blocks.extend(starts.map(|start| Block {
                places,
                outputs: start..end.min(start + size),
                first,
            }));
        }
        self.pool.each(blocks.len(), &|part| {
            if let Some(block) = blocks.get(part) {
                self.isa.run(Part { product: self, format, panel: &panel, block });
            }
        });
        panel.free();
    }
}

/// Some outputs for all rows.
struct Part<'a, F, const B: usize, const V: usize> {
    product: &'a Product<'a>,
    format: F,
    panel: &'a Panel,
    block: &'a Block<'a>,
}

impl<F: Format<B, V>, const B: usize, const V: usize> Task for Part<'_, F, B, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { product, format, panel, block } = self;
        let (matrix, out) = (product.matrix, &product.out);
        match block.places.len() {
            1 => direct::compute::<S, F, B, V, 1>(simd, format, panel, matrix, block, out),
            // Two or three take as long as four, which is as long as their weights take to be read.
            2..=FEW => direct::compute::<S, F, B, V, FEW>(simd, format, panel, matrix, block, out),
            _ => tiles::compute(simd, format, panel, matrix, block, out),
        }
    }
}

/// Writes the sums of consecutive outputs, from `first` on, of one row.
#[inline(always)]
#[expect(unsafe_code, reason = "see `Out`")]
fn write<S: Simd>(
    simd: S,
    out: &Out<'_>,
    block: &Block<'_>,
    place: &Place,
    first: usize,
    sums: &[f32],
) {
    // SAFETY: a part of a product has its outputs of its rows for itself.
    unsafe { out.write_some(simd, place.out, first - block.first, sums) };
}
