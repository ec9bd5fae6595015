//! Rows of a matrix, cut into the units that a format unpacks.

use crate::format::{Scales, read_scales};
use crate::product::Matrix;
use crate::simd::Simd;

/// Memory for the scales of some consecutive rows.
#[derive(Default)]
pub(super) struct Scratch {
    scales: Vec<f32>,
    biases: Vec<f32>,
    /// The first of these rows.
    first: usize,
}

/// One row of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Source<'a, const B: usize> {
    /// Whole units.
    pub(super) units: &'a [[u8; B]],
    /// What is left, filled up with zeros.
    pub(super) tail: Option<[u8; B]>,
    pub(super) scales: Scales<'a>,
}

impl Scratch {
    /// Reads the scales of `count` rows of the matrix.
    #[inline(always)]
    pub(super) fn read<S: Simd>(
        &mut self,
        simd: S,
        matrix: &Matrix<'_>,
        first: usize,
        count: usize,
    ) {
        let size = matrix.scale_bytes();
        if size > 0 {
            let [scales, biases] =
                [matrix.scales, matrix.biases].map(|all| part(all, first, count, size));
            read_scales(simd, matrix.packing, scales, &mut self.scales);
            read_scales(simd, matrix.packing, biases, &mut self.biases);
        }
        self.first = first;
    }

    /// A row whose scales were read.
    #[inline(always)]
    pub(super) fn row<'a, const B: usize>(
        &'a self,
        matrix: &Matrix<'a>,
        row: usize,
    ) -> Source<'a, B> {
        let (units, rest) = part(matrix.weights, row, 1, matrix.row_bytes()).as_chunks::<B>();
        let tail = (!rest.is_empty()).then(|| {
            let mut tail = [0; B];
            tail.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            tail
        });
        let groups = matrix.packing.group().map_or(0, |group| matrix.inputs / group);
        let own = |all: &'a [f32]| part(all, row - self.first, 1, groups);
        Source {
            units,
            tail,
            scales: Scales { scales: own(&self.scales), biases: own(&self.biases) },
        }
    }
}

/// `count` rows of `size` elements each.
#[inline(always)]
fn part<T>(all: &[T], first: usize, count: usize, size: usize) -> &[T] {
    all.get(first * size..(first + count) * size).unwrap_or_default()
}
