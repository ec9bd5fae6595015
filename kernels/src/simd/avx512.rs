//! AVX-512: a register has sixteen lanes.
#![expect(unsafe_code, reason = "instructions of the machine")]
// SAFETY of every block here: a value of `Avx512` exists only where `detect` found the instructions that
// `run` enables, and all intrinsics below belong to these. Loads and stores are of arrays of the very size.

#[cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "the instructions"))]
use std::arch::x86_64::*;

use super::{LANES, Simd, Task};

/// AVX-512 F, BW, DQ and VL.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let has_it = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_it.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn with_features<T: Task>(simd: Avx512, task: T) -> T::Output {
    task.run(simd)
}

impl Simd for Avx512 {
    type Floats = __m512;
    type Words = __m512i;
    type Table = __m512;

    const MANY_REGISTERS: bool = true;

    fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: as above.
        unsafe { with_features(self, task) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn halves(self, first: f32, second: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(first), _mm512_set1_ps(second)) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], values: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, values: __m512) -> f32 {
        // SAFETY: as above.
        unsafe {
            let eight =
                _mm256_add_ps(_mm512_castps512_ps256(values), _mm512_extractf32x8_ps::<1>(values));
            super::avx2::sum_of_eight(eight)
        }
    }

    #[inline(always)]
    fn sums(self, v: &[__m512; LANES]) -> __m512 {
        // Each step halves the lanes of every value and puts two of them side by side. Macros, since a function of
        // its own would be compiled without the instructions.
        macro_rules! halved {
            ($shuffle:ident, $low:literal, $high:literal, $a:expr, $b:expr) => {{
                let (a, b) = ($a, $b);
                _mm512_add_ps($shuffle::<$low>(a, b), $shuffle::<$high>(a, b))
            }};
        }
        macro_rules! fourths {
            ($n:expr) => {{
                let first = halved!(_mm512_shuffle_f32x4, 0x44, 0xee, v[$n], v[$n + 1]);
                let second = halved!(_mm512_shuffle_f32x4, 0x44, 0xee, v[$n + 2], v[$n + 3]);
                halved!(_mm512_shuffle_f32x4, 0x88, 0xdd, first, second)
            }};
        }
        macro_rules! seconds {
            ($n:literal) => {{
                let (a, b) = (fourths!($n), fourths!($n + 4));
                let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                let low = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
            }};
        }
        // SAFETY: as above.
        unsafe {
            let sums = halved!(_mm512_shuffle_ps, 0x88, 0xdd, seconds!(0), seconds!(8));
            // They lie in columns.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_ps(order, sums)
        }
    }

    #[inline(always)]
    fn parted(self, first: __m512, second: __m512) -> [__m512; 2] {
        // SAFETY: as above. Numbers from 16 on are those of the second.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            [
                _mm512_permutex2var_ps(first, even, second),
                _mm512_permutex2var_ps(first, odd, second),
            ]
        }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; LANES]) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn splat_word(self, value: u32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(value.cast_signed()) }
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn shift_left<const BY: u32>(self, words: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_slli_epi32::<BY>(words) }
    }

    #[inline(always)]
    fn shift_right<const BY: u32>(self, words: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srli_epi32::<BY>(words) }
    }

    #[inline(always)]
    fn to_floats(self, words: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(words) }
    }

    #[inline(always)]
    fn as_floats(self, words: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_castsi512_ps(words) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u8; 2 * LANES], values: __m512) {
        // SAFETY: as above.
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: as above. Nothing is read; addresses of no memory are left aside.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn table(self, entries: __m512) -> __m512 {
        entries
    }

    #[inline(always)]
    fn look_up(self, table: __m512, words: __m512i) -> __m512 {
        // SAFETY: as above. The instruction reads four bits of each word.
        unsafe { _mm512_permutexvar_ps(words, table) }
    }
}
