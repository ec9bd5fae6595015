//! Calls of MLX that mlx-rs 0.33 does not offer, or only with more around them.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Stream};
use mlx_sys::{mlx_array, mlx_array_free, mlx_array_new};

use super::Mlx;

/// `array` with `new` in place of what is at `start..` along `axis`; the other axes are alike. In
/// place, if nobody else holds `array`.
///
/// mlx-rs reshapes and broadcasts what is to be written first, whether that is needed or not; in a
/// step there are two of these for each layer and sequence.
pub(super) fn write_at(array: &Array, new: &Array, axis: usize, start: i32) -> Mlx<Array> {
    let axes = array.shape().len();
    let written = new.shape().get(axis).copied().unwrap_or(0);
    let mut starts = vec![0; axes];
    let mut stops = array.shape().to_vec();
    let strides = vec![1; axes];
    if let (Some(first), Some(stop)) = (starts.get_mut(axis), stops.get_mut(axis)) {
        *first = start;
        *stop = start + written;
    }
    let stream = Stream::thread_local_or_default();
    #[expect(unsafe_code, reason = "mlx-rs keeps this call to itself")]
    // SAFETY: both handles are those of arrays that outlive the call; the three lists have as many
    // numbers as is said; `result` is a place for one array.
    output(|result| unsafe {
        mlx_sys::mlx_slice_update(
            result,
            array.as_ptr(),
            new.as_ptr(),
            starts.as_ptr(),
            axes,
            stops.as_ptr(),
            axes,
            strides.as_ptr(),
            axes,
            stream.as_ptr(),
        )
    })
}

/// The array that `call` puts into the place it is given; it returns 0 if it did.
pub(super) fn output(call: impl FnOnce(*mut mlx_array) -> i32) -> Mlx<Array> {
    #[expect(unsafe_code, reason = "mlx-rs keeps its own version of this to itself")]
    // SAFETY: a new handle is empty. After a success it holds one array, which `Array` frees;
    // otherwise it is freed here.
    unsafe {
        let mut result = mlx_array_new();
        if call(&raw mut result) == 0 {
            Ok(Array::from_ptr(result))
        } else {
            mlx_array_free(result);
            Err(Exception::custom("MLX refused an operation"))
        }
    }
}
