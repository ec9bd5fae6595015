//! NEON: four registers have sixteen lanes.
#![expect(unsafe_code, reason = "instructions of the machine")]
// SAFETY of every block here: a value of `Neon` exists only where `detect` found the instructions. Loads and
// stores are of arrays of the very size.

#[cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "the instructions"))]
use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use half::f16;

use super::{LANES, Simd, Task};

/// NEON, which every machine of 64 bits has but those without floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

#[target_feature(enable = "neon")]
fn with_features<T: Task>(simd: Neon, task: T) -> T::Output {
    task.run(simd)
}

type Floats = [float32x4_t; 4];
type Words = [uint32x4_t; 4];

/// The same for each of four registers.
macro_rules! each {
    ($of:ident($($values:ident),+)) => {
        // SAFETY: as above.
        unsafe {
            [
                $of($($values[0]),+),
                $of($($values[1]),+),
                $of($($values[2]),+),
                $of($($values[3]),+),
            ]
        }
    };
}

impl Simd for Neon {
    type Floats = Floats;
    type Words = Words;
    /// Sixty-four bytes.
    type Table = uint8x16x4_t;

    const MANY_REGISTERS: bool = false;

    fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: as above.
        unsafe { with_features(self, task) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        // SAFETY: as above.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    fn halves(self, first: f32, second: f32) -> Floats {
        // SAFETY: as above.
        let (first, second) = unsafe { (vdupq_n_f32(first), vdupq_n_f32(second)) };
        [first, first, second, second]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Floats {
        let from = from.as_ptr();
        // SAFETY: as above.
        unsafe {
            [
                vld1q_f32(from),
                vld1q_f32(from.add(4)),
                vld1q_f32(from.add(8)),
                vld1q_f32(from.add(12)),
            ]
        }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], values: Floats) {
        let to = to.as_mut_ptr();
        // SAFETY: as above.
        unsafe {
            vst1q_f32(to, values[0]);
            vst1q_f32(to.add(4), values[1]);
            vst1q_f32(to.add(8), values[2]);
            vst1q_f32(to.add(12), values[3]);
        }
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        each!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        each!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        each!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn sum(self, values: Floats) -> f32 {
        // SAFETY: as above.
        unsafe {
            let low = vaddq_f32(values[0], values[2]);
            let four = vaddq_f32(low, vaddq_f32(values[1], values[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; LANES]) -> Words {
        // SAFETY: as above.
        unsafe {
            let bytes = vld1q_u8(from.as_ptr());
            let low = vmovl_u8(vget_low_u8(bytes));
            let high = vmovl_u8(vget_high_u8(bytes));
            [
                vmovl_u16(vget_low_u16(low)),
                vmovl_u16(vget_high_u16(low)),
                vmovl_u16(vget_low_u16(high)),
                vmovl_u16(vget_high_u16(high)),
            ]
        }
    }

    #[inline(always)]
    fn splat_word(self, value: u32) -> Words {
        // SAFETY: as above.
        unsafe { [vdupq_n_u32(value); 4] }
    }

    #[inline(always)]
    fn and(self, a: Words, b: Words) -> Words {
        each!(vandq_u32(a, b))
    }

    #[inline(always)]
    fn or(self, a: Words, b: Words) -> Words {
        each!(vorrq_u32(a, b))
    }

    #[inline(always)]
    fn shift_left<const BY: u32>(self, words: Words) -> Words {
        // SAFETY: as above.
        let by = unsafe { [vdupq_n_s32(BY.cast_signed()); 4] };
        each!(vshlq_u32(words, by))
    }

    #[inline(always)]
    fn shift_right<const BY: u32>(self, words: Words) -> Words {
        // SAFETY: as above. To the left by less than nothing.
        let by = unsafe { [vdupq_n_s32(-BY.cast_signed()); 4] };
        each!(vshlq_u32(words, by))
    }

    #[inline(always)]
    fn to_floats(self, words: Words) -> Floats {
        each!(vcvtq_f32_u32(words))
    }

    #[inline(always)]
    fn as_floats(self, words: Words) -> Floats {
        each!(vreinterpretq_f32_u32(words))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Floats {
        // SAFETY: as above.
        let words = unsafe {
            let low = vreinterpretq_u16_u8(vld1q_u8(from.as_ptr()));
            let high = vreinterpretq_u16_u8(vld1q_u8(from.as_ptr().add(16)));
            [
                vshll_n_u16::<16>(vget_low_u16(low)),
                vshll_n_u16::<16>(vget_high_u16(low)),
                vshll_n_u16::<16>(vget_low_u16(high)),
                vshll_n_u16::<16>(vget_high_u16(high)),
            ]
        };
        self.as_floats(words)
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Floats {
        // The instruction's type has no name in stable Rust.
        let mut numbers = [0.0; LANES];
        for (to, from) in numbers.iter_mut().zip(from.as_chunks().0) {
            *to = f16::from_le_bytes(*from).to_f32();
        }
        self.load(&numbers)
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u8; 2 * LANES], values: Floats) {
        // As in `load_f16`.
        let mut numbers = [0.0; LANES];
        self.store(&mut numbers, values);
        for (to, from) in to.as_chunks_mut().0.iter_mut().zip(numbers) {
            *to = f16::from_f32(from).to_le_bytes();
        }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> Floats {
        let from = from.as_ptr();
        // SAFETY: as above.
        let bytes = unsafe {
            [vld1q_u8(from), vld1q_u8(from.add(16)), vld1q_u8(from.add(32)), vld1q_u8(from.add(48))]
        };
        each!(vreinterpretq_f32_u8(bytes))
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn table(self, entries: Floats) -> uint8x16x4_t {
        let [a, b, c, d] = each!(vreinterpretq_u8_f32(entries));
        uint8x16x4_t(a, b, c, d)
    }

    #[inline(always)]
    fn look_up(self, table: uint8x16x4_t, words: Words) -> Floats {
        // SAFETY: as above. Entry `n` is bytes `4 * n` and the three after it.
        unsafe {
            let found = |words: uint32x4_t| {
                let number = vandq_u32(words, vdupq_n_u32(15));
                let bytes = vmlaq_u32(vdupq_n_u32(0x0302_0100), number, vdupq_n_u32(0x0404_0404));
                vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)))
            };
            [found(words[0]), found(words[1]), found(words[2]), found(words[3])]
        }
    }
}
