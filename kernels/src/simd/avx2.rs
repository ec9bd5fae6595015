//! AVX2 with fused multiply-add: two registers have sixteen lanes.
#![expect(unsafe_code, reason = "instructions of the machine")]
// SAFETY of every block here: a value of `Avx2` exists only where `detect` found the instructions that `run`
// enables, and all intrinsics below belong to these. Loads and stores are of arrays of the very size.

#[cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "the instructions"))]
use std::arch::x86_64::*;

use super::{LANES, Simd, Task};

/// AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        let has_it = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_it.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn with_features<T: Task>(simd: Avx2, task: T) -> T::Output {
    task.run(simd)
}

/// The tree of [`Simd::sum`] from eight lanes on.
///
/// # Safety
/// The machine has AVX.
#[inline(always)]
pub(super) unsafe fn sum_of_eight(eight: __m256) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        let one = _mm_add_ss(two, _mm_shuffle_ps::<1>(two, two));
        _mm_cvtss_f32(one)
    }
}

type Floats = [__m256; 2];
type Words = [__m256i; 2];

impl Simd for Avx2 {
    type Floats = Floats;
    type Words = Words;
    type Table = Floats;

    const MANY_REGISTERS: bool = false;

    fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: as above.
        unsafe { with_features(self, task) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        // SAFETY: as above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn halves(self, first: f32, second: f32) -> Floats {
        // SAFETY: as above.
        unsafe { [_mm256_set1_ps(first), _mm256_set1_ps(second)] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Floats {
        // SAFETY: as above.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], [low, high]: Floats) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), low);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), high);
        }
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        // SAFETY: as above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        // SAFETY: as above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        // SAFETY: as above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn sum(self, [low, high]: Floats) -> f32 {
        // SAFETY: as above.
        unsafe { sum_of_eight(_mm256_add_ps(low, high)) }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; LANES]) -> Words {
        // SAFETY: as above.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))]
        }
    }

    #[inline(always)]
    fn splat_word(self, value: u32) -> Words {
        // SAFETY: as above.
        unsafe { [_mm256_set1_epi32(value.cast_signed()); 2] }
    }

    #[inline(always)]
    fn and(self, a: Words, b: Words) -> Words {
        // SAFETY: as above.
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn or(self, a: Words, b: Words) -> Words {
        // SAFETY: as above.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn shift_left<const BY: u32>(self, words: Words) -> Words {
        // SAFETY: as above.
        unsafe {
            let by = _mm_cvtsi32_si128(BY.cast_signed());
            [_mm256_sll_epi32(words[0], by), _mm256_sll_epi32(words[1], by)]
        }
    }

    #[inline(always)]
    fn shift_right<const BY: u32>(self, words: Words) -> Words {
        // SAFETY: as above.
        unsafe {
            let by = _mm_cvtsi32_si128(BY.cast_signed());
            [_mm256_srl_epi32(words[0], by), _mm256_srl_epi32(words[1], by)]
        }
    }

    #[inline(always)]
    fn to_floats(self, words: Words) -> Floats {
        // SAFETY: as above.
        unsafe { [_mm256_cvtepi32_ps(words[0]), _mm256_cvtepi32_ps(words[1])] }
    }

    #[inline(always)]
    fn as_floats(self, words: Words) -> Floats {
        // SAFETY: as above.
        unsafe { [_mm256_castsi256_ps(words[0]), _mm256_castsi256_ps(words[1])] }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Floats {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(16).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Floats {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u8; 2 * LANES], [low, high]: Floats) {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(low);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(high);
            _mm_storeu_si128(to.as_mut_ptr().cast(), low);
            _mm_storeu_si128(to.as_mut_ptr().add(LANES).cast(), high);
        }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> Floats {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_loadu_ps(from.as_ptr().cast()),
                _mm256_loadu_ps(from.as_ptr().add(4 * 8).cast()),
            ]
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: as above. Nothing is read; addresses of no memory are left aside.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn table(self, entries: Floats) -> Floats {
        entries
    }

    #[inline(always)]
    fn look_up(self, table: Floats, words: Words) -> Floats {
        // SAFETY: as above.
        unsafe { [look_up_eight(table, words[0]), look_up_eight(table, words[1])] }
    }
}

/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn look_up_eight([low, high]: Floats, words: __m256i) -> __m256 {
    // SAFETY: the caller's. The permutations read three bits of each word; the fourth, made the sign, chooses
    // between them.
    unsafe {
        let chooses = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(words));
        _mm256_blendv_ps(
            _mm256_permutevar8x32_ps(low, words),
            _mm256_permutevar8x32_ps(high, words),
            chooses,
        )
    }
}
