//! Where results go.
#![expect(unsafe_code, reason = "threads write into one piece of memory, each its own columns")]

use std::marker::PhantomData;
use std::slice::from_raw_parts_mut;

use half::{bf16, f16};

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

// SAFETY: it stands for a `&mut [u8]`, which may be sent; of it shared, see `write`.
unsafe impl Send for Out<'_> {}
// SAFETY: as above.
unsafe impl Sync for Out<'_> {}

impl<'a> Out<'a> {
    pub(crate) const fn new(memory: &'a mut [u8], number: Number, outputs: usize) -> Self {
        let results = memory.len() / number.bytes();
        Self { start: memory.as_mut_ptr(), results, number, outputs, memory: PhantomData }
    }

    /// Writes a result, rounded to the nearest number of the type.
    ///
    /// # Safety
    /// No other thread writes the results of this output.
    pub(crate) unsafe fn write(&self, row: usize, output: usize, value: f32) {
        let at = row * self.outputs + output;
        assert!(output < self.outputs && at < self.results);
        // SAFETY: within the memory, which is borrowed for as long as this lives; others write elsewhere.
        unsafe {
            let place = self.start.add(at * self.number.bytes());
            match self.number {
                Number::F32 => place.cast::<[u8; 4]>().write(value.to_le_bytes()),
                Number::F16 => place.cast::<[u8; 2]>().write(f16::from_f32(value).to_le_bytes()),
                Number::Bf16 => place.cast::<[u8; 2]>().write(bf16::from_f32(value).to_le_bytes()),
            }
        }
    }

    /// Writes results of consecutive outputs, as [`Self::write`] does.
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
        // SAFETY: as in `write`.
        let own = unsafe { from_raw_parts_mut(self.start.add(at * size), values.len() * size) };
        self.number.store(simd, values, own);
    }
}
