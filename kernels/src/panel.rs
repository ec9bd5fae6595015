//! Rows of numbers as products read them: `f32`, each in its lane, padded with zeros.

use std::cell::Cell;

use crate::isa::Isa;
use crate::number::Number;
use crate::pool::Pool;
use crate::product::Misfit;
use crate::simd::{LANES, Simd, Task};
use crate::vector::Vectors;

/// Rows `[rows, inputs]` of numbers, row after row at a distance of `stride` numbers.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The bytes, little endian.
    pub bytes: &'a [u8],
    /// How each number is stored.
    pub number: Number,
    /// How many there are.
    pub rows: usize,
    /// Numbers of each.
    pub inputs: usize,
    /// Numbers from the beginning of one to that of the next.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// All of them, one row after the other; those that are not there are left out.
    #[must_use]
    pub fn numbers(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.rows * self.inputs];
        for (row, to) in numbers.chunks_exact_mut(self.inputs.max(1)).enumerate() {
            self.number.read(self.row(row), to);
        }
        numbers
    }

    /// The bytes of row `row`; none if they are not there.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        let size = self.number.bytes();
        let start = row * self.stride * size;
        self.bytes.get(start..start + self.inputs * size).unwrap_or_default()
    }

    /// Whether all of the numbers are there, and none of them in two rows; so there are no more rows than numbers.
    pub(crate) fn check(&self) -> Result<(), Misfit> {
        let Self { rows, inputs, stride, .. } = *self;
        if rows > 1 && stride < inputs.max(1) {
            return Err(Misfit::Count {
                what: "numbers of a row and from one to the next",
                rows: inputs,
                matrix: stride,
            });
        }
        let last = rows.saturating_sub(1).saturating_mul(stride);
        let wanted = last.saturating_add(inputs).saturating_mul(self.number.bytes());
        let bytes = self.bytes.len();
        if rows == 0 || wanted <= bytes {
            Ok(())
        } else {
            Err(Misfit::Size { what: "rows", bytes, wanted })
        }
    }
}

/// Some rows, vector by vector.
#[derive(Debug)]
pub(crate) struct Panel {
    vectors: Vectors,
    /// Vectors of each row.
    width: usize,
    /// Vectors from the beginning of one to that of the next: rows begin at different places of a cache.
    stride: usize,
}

impl Panel {
    /// The rows, for weights of which `per_lane` lie side by side in each lane.
    /// A row takes a multiple of `multiple` vectors, which is one of `per_lane`.
    pub(crate) fn new(
        pool: &Pool,
        isa: Isa,
        rows: &Rows<'_>,
        per_lane: usize,
        multiple: usize,
    ) -> Self {
        let width = rows.inputs.div_ceil(LANES).next_multiple_of(multiple.max(1));
        let stride = width + 1;
        let mut vectors = KEPT.take();
        // What is there is written over.
        vectors.resize(stride * rows.rows);
        let fill = |row: usize, vectors: &mut [[f32; LANES]]| {
            isa.run(Fill { rows, row, per_lane, vectors });
        };
        if rows.rows * width < SMALL {
            (0..).zip(vectors.chunks_mut(stride)).for_each(|(row, part)| fill(row, part));
        } else {
            pool.each_part(&mut vectors, stride, &fill);
        }
        Self { vectors, width, stride }
    }

    /// Gives its memory to the next one of this thread.
    pub(crate) fn free(self) {
        if self.vectors.len() <= MOST_KEPT {
            KEPT.set(self.vectors);
        }
    }

    /// Vectors of each row.
    pub(crate) const fn width(&self) -> usize {
        self.width
    }

    /// The vectors of row `row`; none if there is no such row.
    pub(crate) fn row(&self, row: usize) -> &[[f32; LANES]] {
        let first = row * self.stride;
        self.vectors.get(first..first + self.width).unwrap_or_default()
    }
}

thread_local! {
    /// Memory of the last panel: to fetch new pages takes as long as a tenth of a product.
    static KEPT: Cell<Vectors> = Cell::default();
}

/// Vectors that are kept at most: 16 MiB.
const MOST_KEPT: usize = 1 << 18;

/// Puts a row into its vectors.
struct Fill<'a> {
    rows: &'a Rows<'a>,
    row: usize,
    per_lane: usize,
    vectors: &'a mut [[f32; LANES]],
}

impl Task for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, row, per_lane, vectors } = self;
        let numbers = vectors.as_flattened_mut();
        if let Some((numbers, padding)) = numbers.split_at_mut_checked(rows.inputs) {
            rows.number.load(simd, rows.row(row), numbers);
            padding.fill(0.0);
        }
        if per_lane == 2 {
            for [first, second] in vectors.as_chunks_mut().0 {
                let [even, odd] = simd.parted(simd.load(first), simd.load(second));
                simd.store(first, even);
                simd.store(second, odd);
            }
        }
    }
}

/// Panels of fewer vectors are put together by one thread.
const SMALL: usize = 4096;
