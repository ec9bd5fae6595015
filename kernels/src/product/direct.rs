//! Few rows: weights are used as they are read.
#![expect(clippy::indexing_slicing, reason = "of arrays; and of slices that are cut to one length")]
#![expect(clippy::needless_range_loop, reason = "several arrays are gone through at once")]

use super::source::{Scratch, Source};
use super::{Block, Matrix};
use crate::format::Format;
use crate::out::Out;
use crate::panel::Panel;
use crate::simd::{LANES, Simd};

/// Outputs at once: each has a chain of sums of its own, and the machine works on some at a time.
const AT_ONCE: usize = 4;

/// Bytes between what is read and what is asked for meanwhile: the time that memory takes to answer.
const AHEAD: usize = 8192;

/// All `M` rows of the block times its outputs.
#[inline(always)]
pub(super) fn compute<
    S: Simd,
    F: Format<B, V, C>,
    const B: usize,
    const V: usize,
    const C: usize,
    const M: usize,
>(
    simd: S,
    format: F,
    panel: &Panel,
    matrix: &Matrix<'_>,
    block: &Block<'_>,
    out: &Out<'_>,
) {
    let mut x: [&[[[f32; LANES]; V]]; M] = [&[]; M];
    for m in 0..M {
        x[m] = panel.row(block.places[m].choice.row).as_chunks().0;
    }
    let mut first = block.outputs.start;
    let mut scratch = Scratch::<AT_ONCE, C>::new();
    while first + AT_ONCE <= block.outputs.end {
        let sums = some(simd, format, &scratch.read(matrix, first), &x);
        write(out, block, first, &sums);
        first += AT_ONCE;
    }
    let mut scratch = Scratch::<1, C>::new();
    for output in first..block.outputs.end {
        let sums = some(simd, format, &scratch.read(matrix, output), &x);
        write(out, block, output, &sums);
    }
}

#[inline(always)]
fn some<
    S: Simd,
    F: Format<B, V, C>,
    const B: usize,
    const V: usize,
    const C: usize,
    const M: usize,
    const R: usize,
>(
    simd: S,
    format: F,
    sources: &[Source<'_, B, C>; R],
    x: &[&[[[f32; LANES]; V]]; M],
) -> [[f32; M]; R] {
    let mut lanes = [[simd.splat(0.0); M]; R];
    let units = sources[0].units.len();
    // The same place in outputs that come soon.
    let together = R * size_of_val(sources[0].units).max(1);
    let ahead = together * AHEAD.div_ceil(together);
    for unit in 0..units {
        for r in 0..R {
            let bytes = &sources[r].units[unit];
            simd.prefetch(bytes.as_ptr().wrapping_add(ahead));
            step(simd, format, bytes, &sources[r], unit, x, &mut lanes[r]);
        }
    }
    for r in 0..R {
        if let Some(tail) = &sources[r].tail {
            step(simd, format, tail, &sources[r], units, x, &mut lanes[r]);
        }
    }
    let mut sums = [[0.0; M]; R];
    for r in 0..R {
        for m in 0..M {
            sums[r][m] = simd.sum(lanes[r][m]);
        }
    }
    sums
}

/// Goes on with the lanes of one output, over a unit of its weights.
#[inline(always)]
fn step<
    S: Simd,
    F: Format<B, V, C>,
    const B: usize,
    const V: usize,
    const C: usize,
    const M: usize,
>(
    simd: S,
    format: F,
    bytes: &[u8; B],
    source: &Source<'_, B, C>,
    unit: usize,
    x: &[&[[[f32; LANES]; V]]; M],
    lanes: &mut [S::Floats; M],
) {
    let weights = format.unpack(simd, bytes, source.scales(unit, format.shift()));
    for m in 0..M {
        let x = &x[m][unit];
        for v in 0..V {
            lanes[m] = simd.mul_add(simd.load(&x[v]), weights[v], lanes[m]);
        }
    }
}

#[expect(unsafe_code, reason = "see `Out`")]
fn write<const M: usize, const R: usize>(
    out: &Out<'_>,
    block: &Block<'_>,
    first: usize,
    sums: &[[f32; M]; R],
) {
    for (output, sums) in (first - block.first..).zip(sums) {
        for (place, sum) in block.places.iter().zip(sums) {
            // SAFETY: a part of a product has its outputs of its rows for itself.
            unsafe { out.write(place.out, output, *sum) };
        }
    }
}
