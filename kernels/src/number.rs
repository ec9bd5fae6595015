//! Numbers as they lie in memory, and how results are rounded to them.

use half::f16;

use crate::simd::{LANES, Simd};
use crate::vector::{Vector, map, padded};

/// How a number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Number {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `F32`.
    Bf16,
}

impl Number {
    /// Bytes of one.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Numbers from little-endian bytes, as many as both sides have.
    pub(crate) fn read(self, bytes: &[u8], to: &mut [f32]) {
        fn each<const N: usize>(bytes: &[u8], to: &mut [f32], number: impl Fn([u8; N]) -> f32) {
            for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *to = number(*bytes);
            }
        }
        let bf16 = |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
        match self {
            Self::F32 => each(bytes, to, f32::from_le_bytes),
            Self::F16 => each(bytes, to, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => each(bytes, to, bf16),
        }
    }

    /// Numbers from little-endian bytes, as many as both sides have.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(self, simd: S, bytes: &[u8], to: &mut [f32]) {
        let (vectors, rest) = to.as_chunks_mut::<LANES>();
        let whole = vectors.len() * LANES * self.bytes();
        match self {
            Self::F32 => {
                for (to, from) in vectors.iter_mut().zip(bytes.as_chunks().0) {
                    simd.store(to, simd.load_f32(from));
                }
            }
            Self::F16 => {
                for (to, from) in vectors.iter_mut().zip(bytes.as_chunks().0) {
                    simd.store(to, simd.load_f16(from));
                }
            }
            Self::Bf16 => {
                for (to, from) in vectors.iter_mut().zip(bytes.as_chunks().0) {
                    simd.store(to, simd.load_bf16(from));
                }
            }
        }
        self.read(bytes.get(whole..).unwrap_or_default(), rest);
    }

    /// Writes values, rounded to the nearest number, as many as both sides have.
    #[inline(always)]
    pub(crate) fn store<S: Simd>(self, simd: S, values: &[f32], to: &mut [u8]) {
        let (vectors, rest) = values.as_chunks::<LANES>();
        self.store_vectors(simd, vectors, to);
        if !rest.is_empty()
            && let Some(to) = to.get_mut(vectors.len() * LANES * self.bytes()..)
        {
            let mut bytes = [0; 4 * LANES];
            self.store_vectors(simd, &[padded(rest)], &mut bytes);
            to.iter_mut()
                .zip(bytes)
                .take(rest.len() * self.bytes())
                .for_each(|(to, byte)| *to = byte);
        }
    }

    #[inline(always)]
    fn store_vectors<S: Simd>(self, simd: S, vectors: &[Vector], to: &mut [u8]) {
        match self {
            Self::F32 => {
                for (to, value) in to.as_chunks_mut().0.iter_mut().zip(vectors.as_flattened()) {
                    *to = value.to_le_bytes();
                }
            }
            Self::F16 => {
                for (to, values) in to.as_chunks_mut().0.iter_mut().zip(vectors) {
                    simd.store_f16(to, simd.load(values));
                }
            }
            Self::Bf16 => {
                for (to, values) in to.as_chunks_mut::<{ 2 * LANES }>().0.iter_mut().zip(vectors) {
                    for (to, value) in to.as_chunks_mut().0.iter_mut().zip(values) {
                        *to = bf16_bits(*value).to_le_bytes();
                    }
                }
            }
        }
    }

    /// The nearest numbers of this kind.
    #[inline(always)]
    pub(crate) fn round<S: Simd>(self, simd: S, values: Vector) -> Vector {
        match self {
            Self::F32 => values,
            Self::F16 => {
                let (mut bytes, mut rounded) = ([0; 2 * LANES], [0.0; LANES]);
                simd.store_f16(&mut bytes, simd.load(&values));
                simd.store(&mut rounded, simd.load_f16(&bytes));
                rounded
            }
            Self::Bf16 => map(values, |value| f32::from_bits(u32::from(bf16_bits(value)) << 16)),
        }
    }
}

/// The upper half of an `f32`'s bits, rounded to nearest, ties to even.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the upper half is shifted down")]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    // A number that is none stays one.
    let quiet = (bits >> 16) | 0x40;
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    (if value.is_nan() { quiet } else { rounded }) as u16
}
