//! How weights are stored, and how sixteen lanes of them become `f32`.
//!
//! A matrix `[outputs, inputs]` is stored row by row. [`Format`]s unpack a row unit by unit. The value of a weight
//! is exact for dense formats and those of the OCP microscaling family, whose products with their scales fit an
//! `f32`; in the affine mode it is `q * scale + bias`, rounded once.
//!
//! Packed layouts are MLX's: numbers of 2, 4 and 8 bits lie in little-endian words, the first in the lowest
//! bits; 3 and 6 bits in three bytes for 8 or 4 numbers, 5 bits in five bytes for 8.

use crate::number::Number;
use crate::simd::{LANES, Simd};

/// How the weights of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// One number for each weight.
    Dense(Number),
    /// `q * scale + bias`, with a scale and a bias for each group.
    Affine {
        /// Bits of `q`: 2, 3, 4, 5, 6 or 8.
        bits: u8,
        /// Weights that share a scale: 32, 64 or 128.
        group: usize,
        /// How scales and biases are stored.
        scales: Number,
    },
    /// E2M1 numbers with an E8M0 scale for each 32.
    Mxfp4,
    /// E2M1 numbers with an E4M3 scale for each 16.
    Nvfp4,
    /// E4M3 numbers with an E8M0 scale for each 32.
    Mxfp8,
}

impl Packing {
    /// Whether there is such a packing, and rows of so many weights have whole groups.
    #[must_use]
    pub const fn fits(self, inputs: usize) -> bool {
        let is_known = match self {
            Self::Affine { bits, group, .. } => {
                matches!(bits, 2 | 3 | 4 | 5 | 6 | 8) && matches!(group, 32 | 64 | 128)
            }
            _ => true,
        };
        match self.group() {
            _ if !is_known => false,
            None => true,
            Some(group) => inputs.is_multiple_of(group),
        }
    }

    /// Bits of a weight.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::Dense(number) => number.bytes() * 8,
            Self::Affine { bits, .. } => bits as usize,
            Self::Mxfp4 | Self::Nvfp4 => 4,
            Self::Mxfp8 => 8,
        }
    }

    /// Weights that share a scale, if there are scales.
    #[must_use]
    pub const fn group(self) -> Option<usize> {
        match self {
            Self::Dense(_) => None,
            Self::Affine { group, .. } => Some(group),
            Self::Mxfp4 | Self::Mxfp8 => Some(32),
            Self::Nvfp4 => Some(16),
        }
    }

    /// Bytes of a scale; 0 if there are none.
    #[must_use]
    pub const fn scale_bytes(self) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Affine { scales, .. } => scales.bytes(),
            Self::Mxfp4 | Self::Nvfp4 | Self::Mxfp8 => 1,
        }
    }

    /// Whether there is a bias beside each scale.
    #[must_use]
    pub const fn has_biases(self) -> bool {
        matches!(self, Self::Affine { .. })
    }

    /// Numbers of one lane that lie side by side: two where a byte has two. See [`crate`].
    #[must_use]
    pub const fn per_lane(self) -> usize {
        match self.bits() {
            4 => 2,
            _ => 1,
        }
    }
}

/// The values of scales, or of biases, in the order in which they are stored: exact.
#[inline(always)]
pub(crate) fn read_scales<S: Simd>(simd: S, packing: Packing, bytes: &[u8], to: &mut Vec<f32>) {
    let value = match packing {
        Packing::Dense(_) => return to.clear(),
        Packing::Affine { scales, .. } => {
            to.resize(bytes.len() / scales.bytes(), 0.0);
            return scales.load(simd, bytes, to);
        }
        Packing::Mxfp4 | Packing::Mxfp8 => e8m0,
        Packing::Nvfp4 => e4m3,
    };
    to.clear();
    to.extend(bytes.iter().map(|byte| value(*byte)));
}

/// What a row's units need beside their bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scales<'a> {
    /// One for each group.
    pub(crate) scales: &'a [f32],
    /// The same; empty if there are none.
    pub(crate) biases: &'a [f32],
}

impl Scales<'_> {
    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "there are as many as units want, see `Matrix::check`"
    )]
    fn both(&self, group: usize) -> [f32; 2] {
        [self.scales[group], self.biases[group]]
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "as above")]
    fn scale(&self, group: usize) -> f32 {
        self.scales[group]
    }

    /// 0 behind the last group, where there are no weights either.
    #[inline(always)]
    fn scale_or_none(&self, group: usize) -> f32 {
        self.scales.get(group).copied().unwrap_or(0.0)
    }
}

/// Unpacks units of `BYTES` bytes to `VECTORS` vectors.
pub(crate) trait Format<const BYTES: usize, const VECTORS: usize>:
    Copy + Send + Sync
{
    /// The weights of unit `unit` of a row, whose bytes are given.
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; BYTES],
        unit: usize,
        scales: &Scales<'_>,
    ) -> [S::Floats; VECTORS];
}

/// [`Packing::Dense`] of `F32`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DenseF32;

impl Format<64, 1> for DenseF32 {
    #[inline(always)]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 64],
        _: usize,
        _: &Scales<'_>,
    ) -> [S::Floats; 1] {
        [simd.load_f32(bytes)]
    }
}

/// [`Packing::Dense`] of `F16`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DenseF16;

impl Format<32, 1> for DenseF16 {
    #[inline(always)]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 32],
        _: usize,
        _: &Scales<'_>,
    ) -> [S::Floats; 1] {
        [simd.load_f16(bytes)]
    }
}

/// [`Packing::Dense`] of `Bf16`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DenseBf16;

impl Format<32, 1> for DenseBf16 {
    #[inline(always)]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 32],
        _: usize,
        _: &Scales<'_>,
    ) -> [S::Floats; 1] {
        [simd.load_bf16(bytes)]
    }
}

const COUNT: [f32; LANES] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// The values of the E2M1 numbers 0 to 15.
const E2M1: [f32; LANES] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Two vectors of each sixteen bytes: the numbers in the low halves, then those in the high ones.
macro_rules! nibbles {
    ($simd:ident, $table:ident, $bytes:expr, $($at:literal),+) => {{
        let (parts, _) = $bytes.as_chunks::<LANES>();
        [$({
            let words = $simd.bytes(&parts[$at / 2]);
            let words = if $at % 2 == 0 { words } else { $simd.shift_right::<4>(words) };
            $simd.look_up($table, words)
        }),+]
    }};
}

/// [`Packing::Affine`] of 4 bits in groups of a multiple of 64.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine4 {
    /// Units that share a scale, as a power of two.
    pub(crate) shift: u32,
}

impl Format<32, 4> for Affine4 {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "of an array, within its length")]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 32],
        unit: usize,
        scales: &Scales<'_>,
    ) -> [S::Floats; 4] {
        let [scale, bias] = scales.both(unit >> self.shift);
        let entries = simd.mul_add(simd.load(&COUNT), simd.splat(scale), simd.splat(bias));
        let table = simd.table(entries);
        nibbles!(simd, table, bytes, 0, 1, 2, 3)
    }
}

/// The same in groups of 32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine4By32;

impl Format<16, 2> for Affine4By32 {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "of an array, within its length")]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 16],
        unit: usize,
        scales: &Scales<'_>,
    ) -> [S::Floats; 2] {
        let [scale, bias] = scales.both(unit);
        let entries = simd.mul_add(simd.load(&COUNT), simd.splat(scale), simd.splat(bias));
        let table = simd.table(entries);
        nibbles!(simd, table, bytes, 0, 1)
    }
}

/// [`Packing::Affine`] of 8 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine8 {
    /// Units that share a scale, as a power of two.
    pub(crate) shift: u32,
}

impl Format<16, 1> for Affine8 {
    #[inline(always)]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 16],
        unit: usize,
        scales: &Scales<'_>,
    ) -> [S::Floats; 1] {
        let [scale, bias] = scales.both(unit >> self.shift);
        let numbers = simd.to_floats(simd.bytes(bytes));
        [simd.mul_add(numbers, simd.splat(scale), simd.splat(bias))]
    }
}

/// [`Packing::Affine`] of 2 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine2 {
    /// Units that share a scale, as a power of two.
    pub(crate) shift: u32,
}

impl Format<8, 2> for Affine2 {
    #[inline(always)]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 8],
        unit: usize,
        scales: &Scales<'_>,
    ) -> [S::Floats; 2] {
        let numbers = |from: [u8; 4]| {
            let mut out = [0; LANES];
            for (four, byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(from) {
                *four = [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6];
            }
            out
        };
        let [a, b, c, d, e, f, g, h] = *bytes;
        let [scale, bias] = scales.both(unit >> self.shift);
        let (scale, bias) = (simd.splat(scale), simd.splat(bias));
        [
            simd.mul_add(simd.to_floats(simd.bytes(&numbers([a, b, c, d]))), scale, bias),
            simd.mul_add(simd.to_floats(simd.bytes(&numbers([e, f, g, h]))), scale, bias),
        ]
    }
}

/// [`Packing::Affine`] of 3, 5 or 6 bits: sixteen numbers lie in `2 * BITS` bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AffineOdd<const BITS: u32> {
    /// Units that share a scale, as a power of two.
    pub(crate) shift: u32,
}

impl<const BITS: u32> AffineOdd<BITS> {
    #[inline(always)]
    fn numbers<S: Simd>(simd: S, bytes: u128, [scale, bias]: [f32; 2]) -> [S::Floats; 1] {
        let mut numbers = [0_u8; LANES];
        let mut left = bytes;
        for number in &mut numbers {
            // Of at most six bits.
            *number = left.to_le_bytes()[0] & ((1 << BITS) - 1);
            left >>= BITS;
        }
        let numbers = simd.to_floats(simd.bytes(&numbers));
        [simd.mul_add(numbers, simd.splat(scale), simd.splat(bias))]
    }
}

macro_rules! odd {
    ($bits:literal, $bytes:literal) => {
        impl Format<$bytes, 1> for AffineOdd<$bits> {
            #[inline(always)]
            fn unpack<S: Simd>(
                self,
                simd: S,
                bytes: &[u8; $bytes],
                unit: usize,
                scales: &Scales<'_>,
            ) -> [S::Floats; 1] {
                let mut wide = [0; 16];
                for (to, from) in wide.iter_mut().zip(bytes) {
                    *to = *from;
                }
                Self::numbers(simd, u128::from_le_bytes(wide), scales.both(unit >> self.shift))
            }
        }
    };
}

odd!(3, 6);
odd!(5, 10);
odd!(6, 12);

/// The value of an E8M0 scale.
fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

/// The value of an E4M3 number. The two that are no numbers are taken for 480, as MLX does on CPUs.
#[must_use]
pub fn e4m3(byte: u8) -> f32 {
    let byte = u32::from(byte);
    f32::from_bits((byte & 0x80) << 24 | (byte & 0x7f) << 20) * TWO_TO_120
}

/// 2^120: between the exponents of E4M3 and of `f32`.
const TWO_TO_120: f32 = f32::from_bits((127 + 120) << 23);

/// [`Packing::Mxfp4`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mxfp4;

impl Format<16, 2> for Mxfp4 {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "of an array, within its length")]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 16],
        unit: usize,
        scales: &Scales<'_>,
    ) -> [S::Floats; 2] {
        let scale = scales.scale(unit);
        let table = simd.table(simd.mul(simd.load(&E2M1), simd.splat(scale)));
        nibbles!(simd, table, bytes, 0, 1)
    }
}

/// [`Packing::Nvfp4`]: two groups in a unit, a half of the lanes each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nvfp4;

impl Format<16, 2> for Nvfp4 {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "of an array, within its length")]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 16],
        unit: usize,
        scales: &Scales<'_>,
    ) -> [S::Floats; 2] {
        let table = simd.table(simd.load(&E2M1));
        let [low, high] = nibbles!(simd, table, bytes, 0, 1);
        let (first, second) = (scales.scale(2 * unit), scales.scale_or_none(2 * unit + 1));
        let scales = simd.halves(first, second);
        [simd.mul(low, scales), simd.mul(high, scales)]
    }
}

/// [`Packing::Mxfp8`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mxfp8;

impl Format<16, 1> for Mxfp8 {
    #[inline(always)]
    fn unpack<S: Simd>(
        self,
        simd: S,
        bytes: &[u8; 16],
        unit: usize,
        scales: &Scales<'_>,
    ) -> [S::Floats; 1] {
        let scale = scales.scale(unit >> 1);
        let words = simd.bytes(bytes);
        let sign = simd.shift_left::<24>(simd.and(words, simd.splat_word(0x80)));
        let size = simd.shift_left::<20>(simd.and(words, simd.splat_word(0x7f)));
        let number = simd.as_floats(simd.or(sign, size));
        [simd.mul(simd.mul(number, simd.splat(TWO_TO_120)), simd.splat(scale))]
    }
}
