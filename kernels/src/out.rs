//! Where results go.
#![expect(unsafe_code, reason = "threads write into one piece of memory, each its own columns")]

use std::marker::PhantomData;
use std::slice::from_raw_parts_mut;

use crate::number::Number;
use crate::simd::Simd;

/// `[rows, outputs]`, to be written by several threads, each result by one of them.
pub(crate) struct Out<'a> {
    start: *mut u8,
    results: usize,
    number: Number,
    outputs: usize,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: it stands for a `&mut [u8]`, which may be sent; of it shared, see `write_some`.
unsafe impl Send for Out<'_> {}
// SAFETY: as above.
unsafe impl Sync for Out<'_> {}

impl<'a> Out<'a> {
    pub(crate) const fn new(memory: &'a mut [u8], number: Number, outputs: usize) -> Self {
        let results = memory.len() / number.bytes();
        Self { start: memory.as_mut_ptr(), results, number, outputs, memory: PhantomData }
    }

    /// Writes results of consecutive outputs, rounded to the nearest numbers of the type.
    ///
    /// # Safety
    /// No other thread writes these results.
    #[inline(always)]
    pub(crate) unsafe fn write_some<S: Simd>(
        &self,
        simd: S,
        row: usize,
        first: usize,
        values: &[f32],
    ) {
        let at = row * self.outputs + first;
        assert!(first + values.len() <= self.outputs && at + values.len() <= self.results);
        let size = self.number.bytes();
        // SAFETY: within the memory, which is borrowed for as long as this lives; others write elsewhere.
        let own = unsafe { from_raw_parts_mut(self.start.add(at * size), values.len() * size) };
        self.number.store(simd, values, own);
    }
}
