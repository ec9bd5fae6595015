//! Sixteen lanes of numbers, on whatever a machine has for them.
//!
//! Everything in this crate that adds, multiplies or converts does so through [`Simd`]. Each method is one
//! correctly rounded operation of IEEE 754 in each lane, or moves bits about, so every implementation gives
//! the same bits. Sums over lanes are a fixed tree, [`Simd::sum`].
//!
//! A value of an implementing type is proof that this machine has the instructions: it comes from
//! `detect` only.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod plain;

/// Lanes of every vector, whatever the width of the machine's registers.
pub const LANES: usize = 16;

/// Operations on [`LANES`] lanes.
///
/// Methods are to be inlined into a function that has the instructions enabled, by [`Simd::run`].
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen `f32`.
    type Floats: Copy;
    /// Sixteen `u32`.
    type Words: Copy;
    /// Sixteen `f32` to be looked up by number.
    type Table: Copy;

    /// Whether there are registers for some thirty vectors.
    const MANY_REGISTERS: bool;

    /// Calls `task` with the instructions enabled.
    fn run<T: Task>(self, task: T) -> T::Output;

    fn splat(self, value: f32) -> Self::Floats;
    /// `first` in the first eight lanes, `second` in the others.
    fn halves(self, first: f32, second: f32) -> Self::Floats;
    fn load(self, from: &[f32; LANES]) -> Self::Floats;
    fn store(self, to: &mut [f32; LANES], values: Self::Floats);

    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The sum of all lanes: lane `i` and lane `i + 8`, of those `i` and `i + 4`, and so on.
    fn sum(self, values: Self::Floats) -> f32;

    /// The sum of each.
    #[inline(always)]
    fn sums(self, values: &[Self::Floats; LANES]) -> Self::Floats {
        let mut sums = [0.0; LANES];
        for (to, each) in sums.iter_mut().zip(values) {
            *to = self.sum(*each);
        }
        self.load(&sums)
    }

    /// Of two vectors one after the other every second number, from the first on and from the second on.
    #[inline(always)]
    fn parted(self, first: Self::Floats, second: Self::Floats) -> [Self::Floats; 2] {
        let mut numbers = [[0.0; LANES]; 2];
        let [low, high] = &mut numbers;
        self.store(low, first);
        self.store(high, second);
        let mut parts = [[0.0; LANES]; 2];
        let [even, odd] = &mut parts;
        for ((even, odd), [a, b]) in
            even.iter_mut().zip(&mut *odd).zip(numbers.as_flattened().as_chunks::<2>().0)
        {
            (*even, *odd) = (*a, *b);
        }
        [self.load(even), self.load(odd)]
    }

    /// Each byte as a word.
    fn bytes(self, from: &[u8; LANES]) -> Self::Words;
    fn splat_word(self, value: u32) -> Self::Words;
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn or(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn shift_left<const BY: u32>(self, words: Self::Words) -> Self::Words;
    fn shift_right<const BY: u32>(self, words: Self::Words) -> Self::Words;
    /// Each word, which is less than 2^24, as a number.
    fn to_floats(self, words: Self::Words) -> Self::Floats;
    /// Each word's bits as a number.
    fn as_floats(self, words: Self::Words) -> Self::Floats;

    /// `[bf16; 16]`, little endian.
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::Floats;
    /// `[f16; 16]`, little endian.
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Self::Floats;
    /// `[f16; 16]`, little endian, each the nearest.
    fn store_f16(self, to: &mut [u8; 2 * LANES], values: Self::Floats);
    /// `[f32; 16]`, little endian.
    fn load_f32(self, from: &[u8; 4 * LANES]) -> Self::Floats;

    /// Says that what is there, if anything, will be read soon.
    fn prefetch(self, at: *const u8);

    fn table(self, entries: Self::Floats) -> Self::Table;
    /// The entries whose numbers are the lowest four bits of each word.
    fn look_up(self, table: Self::Table, words: Self::Words) -> Self::Floats;
}

/// Something to be done with one instruction set or another.
pub(crate) trait Task {
    type Output;

    /// Does it. Implementations are `#[inline(always)]`, as is all that they call with `simd`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
