//! Without any instructions but those that every machine has: for machines that have no others, and to
//! compare the others with.

use half::{bf16, f16};

use super::{LANES, Simd, Task};

/// Loops over arrays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain;

type Floats = [f32; LANES];
type Words = [u32; LANES];

#[inline(always)]
fn each<T: Copy, U: Copy + Default>(values: [T; LANES], f: impl Fn(T) -> U) -> [U; LANES] {
    values.map(f)
}

#[inline(always)]
fn zip<T: Copy, U: Copy + Default>(
    a: [T; LANES],
    b: [T; LANES],
    f: impl Fn(T, T) -> U,
) -> [U; LANES] {
    let mut out = [U::default(); LANES];
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = f(a, b);
    }
    out
}

/// Little-endian numbers of `N` bytes.
#[inline(always)]
fn numbers<const N: usize>(from: &[u8], number: impl Fn([u8; N]) -> f32) -> Floats {
    let mut out = [0.0; LANES];
    for (out, bytes) in out.iter_mut().zip(from.as_chunks::<N>().0) {
        *out = number(*bytes);
    }
    out
}

impl Simd for Plain {
    type Floats = Floats;
    type Words = Words;
    type Table = Floats;

    const MANY_REGISTERS: bool = false;

    fn run<T: Task>(self, task: T) -> T::Output {
        task.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn halves(self, first: f32, second: f32) -> Floats {
        let mut lanes = [first; LANES];
        lanes.iter_mut().skip(LANES / 2).for_each(|lane| *lane = second);
        lanes
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Floats {
        *from
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], values: Floats) {
        *to = values;
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        let mut out = c;
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a.mul_add(b, *out);
        }
        out
    }

    #[inline(always)]
    fn sum(self, values: Floats) -> f32 {
        let mut lanes = values;
        for half in [8, 4, 2, 1] {
            let (low, high) = lanes.split_at_mut(half);
            for (low, high) in low.iter_mut().zip(high) {
                *low += *high;
            }
        }
        let [sum, ..] = lanes;
        sum
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; LANES]) -> Words {
        each(*from, u32::from)
    }

    #[inline(always)]
    fn splat_word(self, value: u32) -> Words {
        [value; LANES]
    }

    #[inline(always)]
    fn and(self, a: Words, b: Words) -> Words {
        zip(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn or(self, a: Words, b: Words) -> Words {
        zip(a, b, |a, b| a | b)
    }

    #[inline(always)]
    fn shift_left<const BY: u32>(self, words: Words) -> Words {
        each(words, |word| word << BY)
    }

    #[inline(always)]
    fn shift_right<const BY: u32>(self, words: Words) -> Words {
        each(words, |word| word >> BY)
    }

    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "words are less than 2^24")]
    fn to_floats(self, words: Words) -> Floats {
        each(words, |word| word as f32)
    }

    #[inline(always)]
    fn as_floats(self, words: Words) -> Floats {
        each(words, f32::from_bits)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Floats {
        numbers(from, |bytes| bf16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Floats {
        numbers(from, |bytes| f16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u8; 2 * LANES], values: Floats) {
        for (to, value) in to.as_chunks_mut().0.iter_mut().zip(values) {
            *to = f16::from_f32(value).to_le_bytes();
        }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> Floats {
        numbers(from, f32::from_le_bytes)
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn table(self, entries: Floats) -> Floats {
        entries
    }

    #[inline(always)]
    fn look_up(self, table: Floats, words: Words) -> Floats {
        each(words, |word| table.get((word & 15) as usize).copied().unwrap_or(0.0))
    }
}
