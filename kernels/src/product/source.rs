//! Rows of a matrix, cut into the units that a format unpacks.

use crate::format::read_scales;
use crate::product::Matrix;

/// Memory for the scales of some rows.
pub(super) struct Scratch<const R: usize, const C: usize> {
    scales: [Vec<[f32; C]>; R],
}

/// One row of a matrix.
pub(super) struct Source<'a, const B: usize, const C: usize> {
    /// Whole units.
    pub(super) units: &'a [[u8; B]],
    /// What is left, filled up with zeros.
    pub(super) tail: Option<[u8; B]>,
    /// For some units together each.
    pub(super) scales: &'a [[f32; C]],
}

impl<const R: usize, const C: usize> Scratch<R, C> {
    pub(super) fn new() -> Self {
        Self { scales: [const { Vec::new() }; R] }
    }

    /// The rows of the matrix from `first` on.
    pub(super) fn read<'a, const B: usize>(
        &'a mut self,
        matrix: &Matrix<'a>,
        first: usize,
    ) -> [Source<'a, B, C>; R] {
        let cut = |memory: &'a [u8], row: usize, size: usize| {
            memory.get(row * size..(row + 1) * size).unwrap_or_default()
        };
        if C > 0 {
            let size = matrix.scale_bytes();
            for (row, to) in (first..).zip(&mut self.scales) {
                let [scales, biases] =
                    [matrix.scales, matrix.biases].map(|all| cut(all, row, size));
                read_scales(matrix.packing, scales, biases, to);
            }
        }
        let mut row = first;
        self.scales.each_ref().map(|scales| {
            let (units, rest) = cut(matrix.weights, row, matrix.row_bytes()).as_chunks::<B>();
            let tail = (!rest.is_empty()).then(|| {
                let mut tail = [0; B];
                tail.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                tail
            });
            row += 1;
            Source { units, tail, scales }
        })
    }
}

impl<const B: usize, const C: usize> Source<'_, B, C> {
    /// The scales of a unit where `1 << shift` units share them.
    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "there are as many as units want, see `Matrix::check`"
    )]
    pub(super) fn scales(&self, unit: usize, shift: u32) -> &[f32; C] {
        if C == 0 { &[0.0; C] } else { &self.scales[unit >> shift] }
    }
}
