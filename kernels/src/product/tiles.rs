//! Many rows: a stretch of some outputs' weights is unpacked once and used for all of them.
#![expect(clippy::indexing_slicing, reason = "of arrays, and of slices of the very length")]

use std::ops::{Range, RangeInclusive};

use super::source::{Scratch, Source};
use super::{Block, Matrix, Place, write};
use crate::format::Format;
use crate::out::Out;
use crate::panel::Panel;
use crate::simd::{LANES, Simd};
use crate::vector::{Vector, Vectors};

/// Outputs whose weights are unpacked at once: a vector of results for each row.
const OUTPUTS: usize = LANES;

/// Vectors of each that are unpacked at once. Six rows' part of the stretch fits the first cache, and all of the weights
/// the second.
const STRETCH: usize = 64;

/// Rows that they are used for, the more the shorter rows are. Their vectors are read for every sixteen outputs, so they are to
/// stay in the second cache; tuned with one of 2 MiB.
const ROWS: RangeInclusive<usize> = 96..=192;

/// Vectors of all these rows together: 768 KiB.
const KEPT: usize = 12 << 10;

/// Rows of it begin at different places of the cache.
type Unpacked = [[Vector; STRETCH + 1]; OUTPUTS];
type Lanes = [Vector; OUTPUTS];

/// All rows of the block times its outputs.
#[inline(always)]
pub(super) fn compute<S: Simd, F: Format<B, V>, const B: usize, const V: usize>(
    simd: S,
    format: F,
    panel: &Panel,
    matrix: &Matrix<'_>,
    block: &Block<'_>,
    out: &Out<'_>,
) {
    let mut unpacked = Vectors::new((STRETCH + 1) * OUTPUTS);
    let Some(unpacked) = whole(&mut unpacked) else { return };
    let rows = (KEPT / panel.width().max(1)).clamp(*ROWS.start(), *ROWS.end());
    let mut lanes = Vectors::new(rows * OUTPUTS);
    let (lanes, _) = lanes.as_chunks_mut::<OUTPUTS>();
    let mut scratch = Scratch::default();
    for places in block.places.chunks(rows) {
        let count = places.len();
        for first in block.outputs.clone().step_by(OUTPUTS) {
            let some = OUTPUTS.min(block.outputs.end - first);
            scratch.read(simd, matrix, first, some);
            for start in (0..panel.width()).step_by(STRETCH) {
                let vectors = STRETCH.min(panel.width() - start);
                for (r, to) in unpacked.iter_mut().enumerate().take(some) {
                    let source = scratch.row(matrix, first + r);
                    unpack(simd, format, &source, start, &mut to[..vectors]);
                }
                all_rows(
                    simd,
                    unpacked,
                    start..start + vectors,
                    panel,
                    places,
                    some,
                    &mut lanes[..count],
                );
            }
            for (place, lanes) in places.iter().zip(&*lanes) {
                let mut own = [simd.splat(0.0); OUTPUTS];
                for r in 0..OUTPUTS {
                    own[r] = simd.load(&lanes[r]);
                }
                let mut sums = [0.0; OUTPUTS];
                simd.store(&mut sums, simd.sums(&own));
                write(simd, out, block, place, first, &sums[..some]);
            }
        }
    }
}

/// Room for the weights of some outputs.
fn whole(vectors: &mut [Vector]) -> Option<&mut Unpacked> {
    vectors.as_chunks_mut().0.as_chunks_mut().0.first_mut()
}

/// The vectors of a row from vector `start` on.
#[inline(always)]
fn unpack<S: Simd, F: Format<B, V>, const B: usize, const V: usize>(
    simd: S,
    format: F,
    source: &Source<'_, B>,
    start: usize,
    to: &mut [Vector],
) {
    let (units, _) = to.as_chunks_mut::<V>();
    for (unit, to) in (start / V..).zip(units) {
        let bytes = source.units.get(unit).or(source.tail.as_ref());
        if let Some(bytes) = bytes {
            let weights = format.unpack(simd, bytes, unit, &source.scales);
            for v in 0..V {
                simd.store(&mut to[v], weights[v]);
            }
        }
    }
}

/// Goes on with the lanes of all rows and these outputs, over a stretch.
#[inline(always)]
fn all_rows<S: Simd>(
    simd: S,
    unpacked: &Unpacked,
    stretch: Range<usize>,
    panel: &Panel,
    places: &[Place],
    outputs: usize,
    lanes: &mut [Lanes],
) {
    // Lanes begin with 0, whatever is there.
    let is_first = stretch.start == 0;
    let mut row = 0;
    while row < lanes.len() {
        let left = lanes.len() - row;
        let x = |number: usize| &panel.row(places[row + number].choice.row)[stretch.clone()];
        if S::MANY_REGISTERS && left >= 6 {
            let x = [x(0), x(1), x(2), x(3), x(4), x(5)];
            tiles::<S, 6, 4>(simd, unpacked, &x, outputs, is_first, &mut lanes[row..]);
            row += 6;
        } else if left >= 3 {
            let x = [x(0), x(1), x(2)];
            tiles::<S, 3, 2>(simd, unpacked, &x, outputs, is_first, &mut lanes[row..]);
            row += 3;
        } else {
            tiles::<S, 1, 4>(simd, unpacked, &[x(0)], outputs, is_first, &mut lanes[row..]);
            row += 1;
        }
    }
}

/// `M` rows and all outputs, `R` at a time. `is_first` says that it is their first stretch.
#[inline(always)]
fn tiles<S: Simd, const M: usize, const R: usize>(
    simd: S,
    unpacked: &Unpacked,
    x: &[&[Vector]; M],
    outputs: usize,
    is_first: bool,
    lanes: &mut [Lanes],
) {
    let mut first = 0;
    while first + R <= outputs {
        tile::<S, M, R>(simd, unpacked, x, first, is_first, lanes);
        first += R;
    }
    for output in first..outputs {
        tile::<S, M, 1>(simd, unpacked, x, output, is_first, lanes);
    }
}

#[inline(always)]
fn tile<S: Simd, const M: usize, const R: usize>(
    simd: S,
    unpacked: &Unpacked,
    x: &[&[Vector]; M],
    first: usize,
    is_first: bool,
    lanes: &mut [Lanes],
) {
    let mut sums = [[simd.splat(0.0); R]; M];
    if !is_first {
        for m in 0..M {
            for r in 0..R {
                sums[m][r] = simd.load(&lanes[m][first + r]);
            }
        }
    }
    let vectors = x[0].len();
    for k in 0..vectors {
        let mut weights = [simd.splat(0.0); R];
        for r in 0..R {
            weights[r] = simd.load(&unpacked[first + r][k]);
        }
        for m in 0..M {
            let x = simd.load(&x[m][k]);
            for r in 0..R {
                sums[m][r] = simd.mul_add(x, weights[r], sums[m][r]);
            }
        }
    }
    for m in 0..M {
        for r in 0..R {
            simd.store(&mut lanes[m][first + r], sums[m][r]);
        }
    }
}
