//! Few rows: weights are used as they are read.
#![expect(clippy::indexing_slicing, reason = "of arrays; and of slices that are cut to one length")]
#![expect(clippy::needless_range_loop, reason = "several arrays are gone through at once")]

use super::source::{Scratch, Source};
use super::{Block, Matrix, write};
use crate::format::Format;
use crate::out::Out;
use crate::panel::Panel;
use crate::simd::{LANES, Simd};

/// Outputs at once: each has a chain of sums of its own, and the machine works on some at a time.
const AT_ONCE: usize = 4;

/// Bytes between what is read and what is asked for meanwhile: the time that memory takes to answer.
const AHEAD: usize = 8192;

/// The rows of the block, at most `M` and at least one, times its outputs.
#[inline(always)]
pub(super) fn compute<S: Simd, F: Format<B, V>, const B: usize, const V: usize, const M: usize>(
    simd: S,
    format: F,
    panel: &Panel,
    matrix: &Matrix<'_>,
    block: &Block<'_>,
    out: &Out<'_>,
) {
    let mut x: [&[[[f32; LANES]; V]]; M] = [&[]; M];
    for m in 0..M {
        // In place of those that are not there, the last.
        let place = m.min(block.places.len() - 1);
        x[m] = panel.row(block.places[place].choice.row).as_chunks().0;
    }
    let mut scratch = Scratch::default();
    for start in block.outputs.clone().step_by(LANES) {
        let end = block.outputs.end.min(start + LANES);
        scratch.read(simd, matrix, start, end - start);
        let mut lanes = [[simd.splat(0.0); LANES]; M];
        let mut first = start;
        while first + AT_ONCE <= end {
            let row = |more: usize| scratch.row(matrix, first + more);
            let sources: [Source<'_, B>; AT_ONCE] = [row(0), row(1), row(2), row(3)];
            some(simd, format, &sources, &x, first - start, &mut lanes);
            first += AT_ONCE;
        }
        for output in first..end {
            let sources = [scratch.row(matrix, output)];
            some(simd, format, &sources, &x, output - start, &mut lanes);
        }
        for (place, lanes) in block.places.iter().zip(&lanes) {
            let mut sums = [0.0; LANES];
            simd.store(&mut sums, simd.sums(lanes));
            write(simd, out, block, place, start, &sums[..end - start]);
        }
    }
}

/// All weights of `R` outputs, to `lanes` from `first` on.
#[inline(always)]
fn some<
    S: Simd,
    F: Format<B, V>,
    const B: usize,
    const V: usize,
    const M: usize,
    const R: usize,
>(
    simd: S,
    format: F,
    sources: &[Source<'_, B>; R],
    x: &[&[[[f32; LANES]; V]]; M],
    first: usize,
    to: &mut [[S::Floats; LANES]; M],
) {
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
        for m in 0..M {
            to[m][first + r] = lanes[r][m];
        }
    }
}

/// Goes on with the lanes of one output, over a unit of its weights.
#[inline(always)]
fn step<S: Simd, F: Format<B, V>, const B: usize, const V: usize, const M: usize>(
    simd: S,
    format: F,
    bytes: &[u8; B],
    source: &Source<'_, B>,
    unit: usize,
    x: &[&[[[f32; LANES]; V]]; M],
    lanes: &mut [S::Floats; M],
) {
    let weights = format.unpack(simd, bytes, unit, &source.scales);
    for m in 0..M {
        let x = &x[m][unit];
        for v in 0..V {
            lanes[m] = simd.mul_add(simd.load(&x[v]), weights[v], lanes[m]);
        }
    }
}
