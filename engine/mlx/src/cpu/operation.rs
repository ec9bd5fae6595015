//! A function of ours as an operation of MLX's graph.
//!
//! The operation itself is `engine/mlx/cpu_operation.cpp`; MLX evaluates it in its place among the others, on the thread of
//! its stream.

use mlx_rs::Array;
use planaria_kernels::{Number, Rows};

use crate::Mlx;

/// An array in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    /// From its first element to its last.
    pub(super) bytes: &'a [u8],
    pub(super) shape: &'a [i64],
    /// Elements from one to the next, along each axis.
    pub(super) strides: &'a [i64],
    pub(super) item_bytes: usize,
}

/// Whether operations of this kind can be computed here.
pub(crate) fn is_here() -> bool {
    linked::is_here()
}

/// The operation that gives an array of this shape, of the first input's type. `work` gets the inputs, and the bytes of
/// the result, row by row. It ends the process if it panics: to go on would be to compute with no numbers.
pub(super) fn operation(
    inputs: &[&Array],
    shape: &[i32],
    work: impl Fn(&[View<'_>], &mut [u8]) + Send + Sync + 'static,
) -> Mlx<Array> {
    linked::operation(inputs, shape, Box::new(work))
}

type Work = dyn Fn(&[View<'_>], &mut [u8]) + Send + Sync;

impl<'a> View<'a> {
    /// How long axis `axis` is, counted from the last; 1 if there are no so many.
    pub(super) fn size(&self, from_last: usize) -> usize {
        let size = self.shape.iter().rev().nth(from_last);
        size.map_or(1, |size| usize::try_from(*size).unwrap_or(0))
    }

    /// Elements from one to the next along an axis, counted from the last.
    pub(super) fn stride(&self, from_last: usize) -> usize {
        let stride = self.strides.iter().rev().nth(from_last);
        stride.map_or(0, |stride| usize::try_from(*stride).unwrap_or(0))
    }

    /// Rows of the last axis. What does not lie at equal distances is copied to `copy`.
    pub(super) fn rows<'b>(&self, number: Number, copy: &'b mut Vec<u8>) -> Rows<'b>
    where
        'a: 'b,
    {
        let inputs = self.size(0);
        let rows = (1..self.shape.len()).map(|axis| self.size(axis)).product();
        match self.distance().filter(|stride| *stride >= inputs || rows <= 1) {
            Some(stride) => Rows { bytes: self.bytes, number, rows, inputs, stride },
            None => {
                *copy = self.packed();
                Rows { bytes: copy, number, rows, inputs, stride: inputs }
            }
        }
    }

    /// All elements, row by row, in place if they lie so.
    pub(super) fn contiguous<'b>(&self, copy: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        let inputs = self.size(0);
        if self.distance() == Some(inputs) {
            return self.bytes;
        }
        *copy = self.packed();
        copy
    }

    /// Elements from one row to the next, where that is the same for all of them.
    fn distance(&self) -> Option<usize> {
        let inputs = self.size(0);
        if inputs > 1 && self.stride(0) != 1 {
            return None;
        }
        let mut rows = (1..self.shape.len()).filter(|axis| self.size(*axis) != 1);
        let Some(first) = rows.next() else { return Some(inputs) };
        let mut next = self.stride(first) * self.size(first);
        let all = rows.all(|axis| {
            let fits = self.stride(axis) == next;
            next *= self.size(axis);
            fits
        });
        all.then(|| self.stride(first))
    }

    fn packed(&self) -> Vec<u8> {
        let axes = self.shape.len();
        let count: usize = (0..axes).map(|axis| self.size(axis)).product();
        // Numbers in a row that lie side by side are copied at once.
        let is_dense = axes > 0 && self.stride(0) == 1;
        let (run, outer) = if is_dense { (self.size(0), 1) } else { (1, 0) };
        let run_bytes = run * self.item_bytes;
        let mut packed = Vec::with_capacity(count * self.item_bytes);
        for index in 0..count / run.max(1) {
            let mut rest = index;
            let mut place = 0;
            for axis in outer..axes {
                place += rest % self.size(axis) * self.stride(axis);
                rest /= self.size(axis);
            }
            let start = place * self.item_bytes;
            packed.extend_from_slice(self.bytes.get(start..start + run_bytes).unwrap_or_default());
        }
        packed
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod linked {
    use super::{Array, Mlx, Work};

    pub(super) const fn is_here() -> bool {
        false
    }

    pub(super) fn operation(_: &[&Array], _: &[i32], _: Box<Work>) -> Mlx<Array> {
        Err(mlx_rs::error::Exception::custom("there are no operations of ours on this system"))
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod linked {
    #![expect(unsafe_code, reason = "calls across languages")]

    use std::ffi::c_void;
    use std::slice::{from_raw_parts, from_raw_parts_mut};
    use std::sync::OnceLock;

    use mlx_rs::{Device, DeviceType, Stream};
    use mlx_sys::{mlx_array, mlx_stream};

    use super::{Array, Mlx, View, Work};
    use crate::direct::output;

    const MOST_AXES: usize = 5;

    /// As in `cpu_operation.h`.
    #[repr(C)]
    struct RawView {
        data: *const u8,
        item_bytes: usize,
        axes: usize,
        shape: [i64; MOST_AXES],
        strides: [i64; MOST_AXES],
    }

    type Compute = unsafe extern "C" fn(*const c_void, *const RawView, usize, *mut u8, usize);

    unsafe extern "C" {
        fn planaria_cpu_operation(
            result: *mut mlx_array,
            inputs: *const mlx_array,
            count: usize,
            shape: *const i32,
            axes: usize,
            work: *mut c_void,
            compute: Compute,
            release: unsafe extern "C" fn(*mut c_void),
            stream: mlx_stream,
        ) -> i32;
    }

    pub(super) fn is_here() -> bool {
        static IS_CPU: OnceLock<bool> = OnceLock::new();
        *IS_CPU.get_or_init(|| {
            let device = Device::try_default().and_then(|device| device.get_type());
            matches!(device, Ok(DeviceType::Cpu))
        })
    }

    pub(super) fn operation(inputs: &[&Array], shape: &[i32], work: Box<Work>) -> Mlx<Array> {
        let handles: Vec<mlx_array> = inputs.iter().map(|input| input.as_ptr()).collect();
        let stream = Stream::thread_local_or_default();
        // A pointer of one word.
        let work: *mut Box<Work> = Box::into_raw(Box::new(work));
        // SAFETY: handles are those of arrays that outlive the call, and as many as is said, as are the axes; `work` is
        // what both functions expect, and released once; `result` is a place for one array.
        output(|result| unsafe {
            planaria_cpu_operation(
                result,
                handles.as_ptr(),
                handles.len(),
                shape.as_ptr(),
                shape.len(),
                work.cast(),
                compute,
                release,
                stream.as_ptr(),
            )
        })
    }

    /// # Safety
    /// `work` is of [`operation`], and nobody uses it afterwards.
    unsafe extern "C" fn release(work: *mut c_void) {
        // SAFETY: the caller's.
        drop(unsafe { Box::from_raw(work.cast::<Box<Work>>()) });
    }

    /// # Safety
    /// `work` is of [`operation`]; there are `count` inputs whose elements can be read, and nothing else reads or writes
    /// the result meanwhile.
    unsafe extern "C" fn compute(
        work: *const c_void,
        inputs: *const RawView,
        count: usize,
        out: *mut u8,
        out_bytes: usize,
    ) {
        // SAFETY: the caller's.
        let (work, inputs) = unsafe { (&*work.cast::<Box<Work>>(), from_raw_parts(inputs, count)) };
        let view = |input| {
            // SAFETY: the caller's.
            unsafe { RawView::view(input) }
        };
        let views: Vec<View<'_>> = inputs.iter().map(view).collect();
        let out = match out_bytes {
            0 => &mut [][..],
            // SAFETY: the caller's; MLX has given no memory only where there are no bytes.
            _ => unsafe { from_raw_parts_mut(out, out_bytes) },
        };
        work(&views, out);
    }

    impl RawView {
        /// # Safety
        /// Its elements can be read.
        unsafe fn view(&self) -> View<'_> {
            let axes = ..self.axes;
            let shape = self.shape.get(axes).unwrap_or_default();
            let strides = self.strides.get(axes).unwrap_or_default();
            let last: i64 =
                shape.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum();
            let elements = if shape.contains(&0) { 0 } else { last + 1 };
            assert!(strides.iter().all(|stride| *stride >= 0), "an array that runs backwards");
            let bytes = usize::try_from(elements).unwrap_or(0) * self.item_bytes;
            let bytes = match bytes {
                0 => &[][..],
                // SAFETY: the first and the last element are in one piece of memory, as is what lies between.
                _ => unsafe { from_raw_parts(self.data, bytes) },
            };
            View { bytes, shape, strides, item_bytes: self.item_bytes }
        }
    }
}
