//! Keys and values that are packed.
#![expect(clippy::indexing_slicing, reason = "of rows that `Heads::check` found to be long enough")]

use crate::format::{Affine4By32, Affine8, Format as _, Scales};
use crate::number::Number;
use crate::simd::{LANES, Simd};

/// Packed numbers that share a scale and a bias.
pub const KV_GROUP: usize = 32;

/// How numbers of a head at a position are packed, in groups of [`KV_GROUP`], as MLX's affine mode has it. A row is the
/// integers, then the scales of its groups, then their biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvBits {
    /// Two to a byte, the first in the lower half.
    Four,
    /// One byte each.
    Eight,
}

impl KvBits {
    /// Bytes of a row of so many numbers, a multiple of [`KV_GROUP`], with scales that are stored as `number`.
    #[must_use]
    pub const fn row_bytes(self, width: usize, number: Number) -> usize {
        self.integer_bytes(width).saturating_add(2 * number.bytes() * (width / KV_GROUP))
    }

    /// How many numbers a row of so many bytes has.
    #[must_use]
    pub const fn width(self, row_bytes: usize, number: Number) -> usize {
        row_bytes / self.row_bytes(KV_GROUP, number) * KV_GROUP
    }

    const fn integer_bytes(self, width: usize) -> usize {
        match self {
            Self::Four => width / 2,
            Self::Eight => width,
        }
    }

    /// The numbers of a row.
    #[inline(always)]
    pub(crate) fn unpack<S: Simd>(self, simd: S, row: &[u8], number: Number, to: &mut [f32]) {
        const GROUPS: usize = 16;
        let groups = to.len() / KV_GROUP;
        let Some((integers, rest)) = row.split_at_checked(self.integer_bytes(to.len())) else {
            return;
        };
        let (scales, biases) = rest.split_at(groups * number.bytes());
        let (parts, _) = integers.as_chunks::<16>();
        for (at, to) in to.chunks_mut(GROUPS * KV_GROUP).enumerate() {
            let mut own = [[0.0; GROUPS]; 2];
            let count = to.len() / KV_GROUP;
            for (bytes, own) in [scales, biases].into_iter().zip(&mut own) {
                let from = at * GROUPS * number.bytes();
                number.load(simd, &bytes[from..], &mut own[..count]);
            }
            let scales = Scales { scales: &own[0], biases: &own[1] };
            let first = at * GROUPS;
            for (group, to) in to.as_chunks_mut::<KV_GROUP>().0.iter_mut().enumerate() {
                let [mut low, mut high] = [[0.0; LANES]; 2];
                match self {
                    Self::Eight => {
                        for (half, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                            let bytes = &parts[2 * (first + group) + half];
                            let format = Affine8 { shift: 1 };
                            let [numbers] = format.unpack(simd, bytes, 2 * group, &scales);
                            simd.store(to, numbers);
                        }
                    }
                    Self::Four => {
                        let bytes = &parts[first + group];
                        let both = Affine4By32.unpack(simd, bytes, group, &scales);
                        for (to, from) in [&mut low, &mut high].into_iter().zip(both) {
                            simd.store(to, from);
                        }
                        for (to, pair) in to.as_chunks_mut().0.iter_mut().zip(low.iter().zip(high))
                        {
                            *to = [*pair.0, pair.1];
                        }
                    }
                }
            }
        }
    }
}
