//! Products with packed matrices, in every mode that MLX has.
//!
//! mlx-rs 0.33 wraps these for the affine mode only, so they are called here as it calls them.

use std::ffi::CStr;

use mlx_rs::{Array, Dtype, Stream};
use mlx_sys::{mlx_array, mlx_array_new, mlx_optional_dtype, mlx_optional_int};
use planaria_engine::model_dir::{QuantMode, QuantParams};

use super::direct::output;
use super::linear::rows_of;
use super::{Mlx, cpu};

/// A packed matrix, or a stack of them; it may lie as a plain one may (`linear.rs`).
pub(super) struct Packed {
    /// `u32 [.., out, in * bits / 32]`.
    pub(super) weight: Array,
    /// `[.., out, in / group_size]`: floats in the affine mode, bytes in the others.
    pub(super) scales: Array,
    /// As `scales`; in the affine mode only.
    pub(super) biases: Option<Array>,
    /// What all products are multiplied by: `f32 [1]`, or `f32 [matrices]` of a stack.
    pub(super) whole: Option<Array>,
    pub(super) params: QuantParams,
}

impl Packed {
    /// `x [.., rows, in]` times the matrix: `[.., rows, out]`.
    pub(super) fn matmul(&self, x: &Array) -> Mlx<Array> {
        self.multiplied(
            x,
            |whole| Ok(whole.clone()),
            |x| match cpu::matmul(x, &self.for_kernels())? {
                Some(product) => Ok(product),
                None => self.quantized_matmul(x, true),
            },
        )
    }

    /// Every matrix of a stack applied to its own `x [1, count or 1, rows, in]`: `[1, count, rows, out]`.
    pub(super) fn matmul_each(&self, x: &Array) -> Mlx<Array> {
        self.multiplied(x, of_each, |x| match cpu::matmul_each(x, &self.for_kernels())? {
            Some(products) => Ok(products),
            None => self.quantized_matmul(x, true),
        })
    }

    /// [`Self::matmul`] from the other side: `x [.., rows, out]` to `[.., rows, in]`.
    pub(super) fn matmul_backwards(&self, x: &Array) -> Mlx<Array> {
        self.multiplied(x, of_each, |x| self.quantized_matmul(x, false))
    }

    /// What `product` makes of `x`, multiplied by what all of it is multiplied by, in 32 bits: where that is needed,
    /// products before are far larger than after, too large for 16 bits. `factors` says which number is for which product.
    fn multiplied(
        &self,
        x: &Array,
        factors: impl FnOnce(&Array) -> Mlx<Array>,
        product: impl FnOnce(&Array) -> Mlx<Array>,
    ) -> Mlx<Array> {
        let Some(whole) = &self.whole else { return product(x) };
        let wide = product(&x.as_dtype(Dtype::Float32)?)?;
        wide.multiply(factors(whole)?)?.as_dtype(x.dtype())
    }

    const fn for_kernels(&self) -> cpu::Matrix<'_> {
        let Self { weight, scales, biases, params, .. } = self;
        cpu::Matrix::Packed { weight, scales, biases: biases.as_ref(), params: *params }
    }

    fn quantized_matmul(&self, x: &Array, transposed: bool) -> Mlx<Array> {
        let stream = Stream::thread_local_or_default();
        let here = self.copied()?;
        let Call { biases, group_size, bits, mode } = here.call();
        #[expect(unsafe_code, reason = "mlx-rs fixes the mode")]
        // SAFETY: every handle is that of an array which outlives the call, or empty where MLX
        // allows that; the mode is a C string; `result` is a place for one array.
        output(|result| unsafe {
            mlx_sys::mlx_quantized_matmul(
                result,
                x.as_ptr(),
                here.weight.as_ptr(),
                here.scales.as_ptr(),
                biases,
                transposed,
                group_size,
                bits,
                mode.as_ptr(),
                stream.as_ptr(),
            )
        })
    }

    /// For each of `indices`, the matrix of that number applied to its `x`.
    pub(super) fn gather_matmul(&self, x: &Array, indices: &Array, sorted: bool) -> Mlx<Array> {
        let factors = |whole: &Array| whole.take_axis(indices, 0)?.expand_dims_axes(&[-1, -2]);
        self.multiplied(x, factors, |x| self.gathered(x, indices, sorted))
    }

    fn gathered(&self, x: &Array, indices: &Array, sorted: bool) -> Mlx<Array> {
        if let Some(products) = cpu::matmul_chosen(x, indices, &self.for_kernels())? {
            return Ok(products);
        }
        let stream = Stream::thread_local_or_default();
        let here = self.copied()?;
        let Call { biases, group_size, bits, mode } = here.call();
        #[expect(unsafe_code, reason = "mlx-rs fixes the mode")]
        // SAFETY: as in `quantized_matmul`; no indices on the left means all of `x` in order.
        output(|result| unsafe {
            mlx_sys::mlx_gather_qmm(
                result,
                x.as_ptr(),
                here.weight.as_ptr(),
                here.scales.as_ptr(),
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

    /// The rows that `ids` name, unpacked: `[ids, in]`.
    pub(super) fn rows(&self, ids: &Array) -> Mlx<Array> {
        let rows = Self {
            weight: rows_of(&self.weight, ids)?,
            scales: rows_of(&self.scales, ids)?,
            biases: self.biases.as_ref().map(|biases| rows_of(biases, ids)).transpose()?,
            whole: None,
            params: self.params,
        };
        let Call { biases, group_size, bits, mode } = rows.call();
        let stream = Stream::thread_local_or_default();
        let same_type = mlx_optional_dtype { value: 0, has_value: false };
        #[expect(unsafe_code, reason = "mlx-rs fixes the mode")]
        // SAFETY: as in `quantized_matmul`; there is no scale of the whole matrix, and no type is asked for.
        let rows = output(|result| unsafe {
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
        })?;
        match &self.whole {
            None => Ok(rows),
            Some(whole) => rows.as_dtype(Dtype::Float32)?.multiply(whole)?.as_dtype(rows.dtype()),
        }
    }

    /// The same where MLX's own operations can read it.
    fn copied(&self) -> Mlx<Self> {
        Ok(Self {
            weight: cpu::copied(&self.weight)?,
            scales: cpu::copied(&self.scales)?,
            biases: self.biases.as_ref().map(cpu::copied).transpose()?,
            whole: self.whole.clone(),
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

/// The numbers of a stack, for `[1, count, rows, out]`.
fn of_each(whole: &Array) -> Mlx<Array> {
    whole.expand_dims_axes(&[1, 2])
}
