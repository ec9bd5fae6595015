//! Products with packed matrices, in every mode that MLX has.
//!
//! mlx-rs 0.33 wraps these for the affine mode only, so they are called here as it calls them.

use std::ffi::CStr;

use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::{Ellipsis, TryIndexOp};
use mlx_rs::{Array, Stream};
use mlx_sys::{mlx_array, mlx_array_new, mlx_optional_dtype, mlx_optional_int};

use super::direct::output;
use super::{Mlx, cpu_product, lanes};
use crate::model_dir::{QuantMode, QuantParams};

/// A packed matrix, or a stack of them.
pub(super) struct Packed {
    whole: Part,
    /// The same memory cut along its rows, `out`, for a lane each; empty where one computes it all.
    parts: Vec<(Stream, Part)>,
}

/// A packed matrix, or a stack of them, or some of the rows.
pub(super) struct Part {
    /// `u32 [.., out, in * bits / 32]`.
    pub(super) weight: Array,
    /// `[.., out, in / group_size]`: floats in the affine mode, bytes in the others.
    pub(super) scales: Array,
    /// As `scales`; in the affine mode only.
    pub(super) biases: Option<Array>,
    pub(super) params: QuantParams,
}

impl Packed {
    pub(super) fn new(whole: Part) -> Mlx<Self> {
        // Single matrices are multiplied by kernels that use all cores anyway.
        let is_stack = whole.weight.ndim() > 2;
        let lanes = if is_stack { lanes::for_weights(whole.weights())? } else { Vec::new() };
        Self::on_lanes(whole, lanes)
    }

    fn on_lanes(whole: Part, lanes: Vec<Stream>) -> Mlx<Self> {
        let count = i32::try_from(lanes.len()).unwrap_or(i32::MAX);
        let parts = lanes.into_iter().zip(0..);
        let parts = parts.map(|(lane, number)| Ok((lane, whole.cut(number, count)?)));
        Ok(Self { parts: parts.collect::<Mlx<_>>()?, whole })
    }

    /// `x [.., rows, in]` times the matrix: `[.., rows, out]`.
    pub(super) fn matmul(&self, x: &Array) -> Mlx<Array> {
        let Part { weight, scales, biases, params } = &self.whole;
        let (biases, params) = (biases.as_ref(), *params);
        let whole = cpu_product::Matrix::Packed { weight, scales, biases, params };
        if let Some(product) = cpu_product::matmul(x, &whole)? {
            return Ok(product);
        }
        self.by_lane(|part, stream| part.matmul(x, true, stream))
    }

    /// The same from the other side: `x [.., rows, out]` to `[.., rows, in]`.
    pub(super) fn matmul_backwards(&self, x: &Array) -> Mlx<Array> {
        self.whole.matmul(x, false, &Stream::thread_local_or_default())
    }

    /// For each of `indices`, the matrix of that number applied to its `x`.
    pub(super) fn gather_matmul(&self, x: &Array, indices: &Array, sorted: bool) -> Mlx<Array> {
        self.by_lane(|part, stream| part.gather_matmul(x, indices, sorted, stream))
    }

    /// The rows that `ids` name, unpacked: `[ids, in]`.
    pub(super) fn rows(&self, ids: &Array) -> Mlx<Array> {
        self.whole.rows(ids)
    }

    /// Joins what `product` gives for the rows of each lane.
    fn by_lane(&self, product: impl Fn(&Part, &Stream) -> Mlx<Array>) -> Mlx<Array> {
        if self.parts.is_empty() {
            return product(&self.whole, &Stream::thread_local_or_default());
        }
        let products = self.parts.iter().map(|(stream, part)| product(part, stream));
        concatenate(&products.collect::<Mlx<Vec<_>>>()?, -1)
    }
}

impl Part {
    fn matmul(&self, x: &Array, transposed: bool, stream: &Stream) -> Mlx<Array> {
        let Call { biases, group_size, bits, mode } = self.call();
        #[expect(unsafe_code, reason = "mlx-rs fixes the mode")]
        // SAFETY: every handle is that of an array which outlives the call, or empty where MLX
        // allows that; the mode is a C string; `result` is a place for one array.
        output(|result| unsafe {
            mlx_sys::mlx_quantized_matmul(
                result,
                x.as_ptr(),
                self.weight.as_ptr(),
                self.scales.as_ptr(),
                biases,
                transposed,
                group_size,
                bits,
                mode.as_ptr(),
                stream.as_ptr(),
            )
        })
    }

    fn gather_matmul(
        &self,
        x: &Array,
        indices: &Array,
        sorted: bool,
        stream: &Stream,
    ) -> Mlx<Array> {
        let Call { biases, group_size, bits, mode } = self.call();
        #[expect(unsafe_code, reason = "mlx-rs fixes the mode")]
        // SAFETY: as in `matmul`; no indices on the left means all of `x` in order.
        output(|result| unsafe {
            mlx_sys::mlx_gather_qmm(
                result,
                x.as_ptr(),
                self.weight.as_ptr(),
                self.scales.as_ptr(),
                biases,
                mlx_array_new(),
                indices.as_ptr(),
                true,
                group_size,
                bits,
                mode.as_ptr(),
                sorted,
                stream.as_ptr(),
            )
        })
    }

    fn rows(&self, ids: &Array) -> Mlx<Array> {
        let rows = Self {
            weight: self.weight.take_axis(ids, 0)?,
            scales: self.scales.take_axis(ids, 0)?,
            biases: self.biases.as_ref().map(|biases| biases.take_axis(ids, 0)).transpose()?,
            params: self.params,
        };
        let Call { biases, group_size, bits, mode } = rows.call();
        let stream = Stream::thread_local_or_default();
        let same_type = mlx_optional_dtype { value: 0, has_value: false };
        #[expect(unsafe_code, reason = "mlx-rs fixes the mode")]
        // SAFETY: as in `matmul`; there is no scale of the whole matrix, and no type is asked for.
        output(|result| unsafe {
            mlx_sys::mlx_dequantize(
                result,
                rows.weight.as_ptr(),
                rows.scales.as_ptr(),
                biases,
                group_size,
                bits,
                mode.as_ptr(),
                mlx_array_new(),
                same_type,
                stream.as_ptr(),
            )
        })
    }

    /// How many weights there are in one matrix.
    fn weights(&self) -> usize {
        let sizes = self.weight.shape().iter().rev().take(2);
        let words: usize = sizes.map(|size| size.unsigned_abs() as usize).product();
        words * u32::BITS as usize / self.params.bits as usize
    }

    /// Part `number` of `count` nearly equal ones of the rows, as a view.
    fn cut(&self, number: i32, count: i32) -> Mlx<Self> {
        let cut = |array: &Array| -> Mlx<Array> {
            let rows = array.shape().iter().rev().nth(1).copied().unwrap_or(0);
            let bounds = rows * number / count..rows * (number + 1) / count;
            let part = array.try_index((Ellipsis, bounds, ..))?;
            part.eval()?;
            Ok(part)
        };
        Ok(Self {
            weight: cut(&self.weight)?,
            scales: cut(&self.scales)?,
            biases: self.biases.as_ref().map(cut).transpose()?,
            params: self.params,
        })
    }

    fn call(&self) -> Call {
        let some = |value: u32| mlx_optional_int {
            value: i32::try_from(value).unwrap_or(i32::MAX),
            has_value: true,
        };
        #[expect(unsafe_code, reason = "the empty handle has no safe constructor")]
        // SAFETY: it allocates nothing and may be dropped.
        let biases = self.biases.as_ref().map_or_else(|| unsafe { mlx_array_new() }, Array::as_ptr);
        Call {
            biases,
            group_size: some(self.params.group_size),
            bits: some(self.params.bits),
            mode: match self.params.mode {
                QuantMode::Affine => c"affine",
                QuantMode::Mxfp4 => c"mxfp4",
                QuantMode::Nvfp4 => c"nvfp4",
                QuantMode::Mxfp8 => c"mxfp8",
            },
        }
    }
}

/// What the three calls have in common. The handles are those of `self`'s arrays.
struct Call {
    biases: mlx_array,
    group_size: mlx_optional_int,
    bits: mlx_optional_int,
    mode: &'static CStr,
}

#[cfg(test)]
mod tests {
    use mlx_rs::ops::quantize;
    use mlx_rs::random::normal;

    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    /// `shape` weights of 4 bits, in groups of 32.
    fn weights(shape: &[i32]) -> Mlx<Part> {
        let (weight, scales, biases) = quantize(normal::<f32>(shape, None, None, None)?, 32, 4)?;
        let params = QuantParams { mode: QuantMode::Affine, group_size: 32, bits: 4 };
        Ok(Part { weight, scales, biases: Some(biases), params })
    }

    /// What `product` gives on one stream and on three.
    fn on_one_and_three(
        weights: &Part,
        product: impl Fn(&Packed) -> Mlx<Array>,
    ) -> Result<[Vec<f32>; 2], Box<dyn std::error::Error>> {
        let new = || Stream::new_with_device(&mlx_rs::Device::cpu());
        let numbers = |lanes| -> Result<_, Box<dyn std::error::Error>> {
            // All of the rows, as a view.
            let whole = weights.cut(0, 1)?;
            Ok(product(&Packed::on_lanes(whole, lanes)?)?.try_as_slice::<f32>()?.to_vec())
        };
        Ok([numbers(Vec::new())?, numbers(vec![Stream::default(), new(), new()])?])
    }

    #[test]
    fn lanes_give_the_very_numbers_of_one_stream() -> Outcome {
        let x = normal::<f32>(&[5, 64], None, None, None)?;
        let [one, three] = on_one_and_three(&weights(&[10, 64])?, |packed| packed.matmul(&x))?;
        assert_eq!(one.len(), 5 * 10);
        assert_eq!(three, one);
        Ok(())
    }

    #[test]
    fn lanes_give_the_very_numbers_of_one_stream_for_experts() -> Outcome {
        let x = normal::<f32>(&[3, 1, 1, 64], None, None, None)?;
        let indices = Array::from_slice(&[3_u32, 0, 1, 1, 2, 3], &[3, 2]);
        let product = |packed: &Packed| packed.gather_matmul(&x, &indices, false);
        let [one, three] = on_one_and_three(&weights(&[4, 10, 64])?, product)?;
        assert_eq!(one.len(), 3 * 2 * 10);
        assert_eq!(three, one);
        Ok(())
    }

    #[test]
    fn weights_are_counted_by_matrix() -> Outcome {
        assert_eq!(weights(&[4, 10, 64])?.weights(), 640);
        Ok(())
    }
}
