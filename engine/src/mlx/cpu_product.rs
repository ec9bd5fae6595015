//! Products on our own kernels, as operations of MLX's graph, on CPUs of Linux.
//!
//! MLX multiplies packed matrices and numbers of 16 bits on one thread there, number by number. The operation itself is
//! `engine/mlx/cpu_product.cpp`; MLX evaluates it in its place among the others, on the thread of its stream.

use mlx_rs::Array;

use super::Mlx;
use crate::model_dir::QuantParams;

/// A matrix `[outputs, inputs]` for these kernels.
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    expect(dead_code, reason = "nothing is read of it where MLX multiplies")
)]
pub(super) enum Matrix<'a> {
    /// Numbers of 16 or 32 bits.
    Plain(&'a Array),
    Packed {
        weight: &'a Array,
        scales: &'a Array,
        biases: Option<&'a Array>,
        params: QuantParams,
    },
}

impl Matrix<'_> {
    const fn weight(&self) -> &Array {
        match self {
            Self::Plain(weight) | Self::Packed { weight, .. } => weight,
        }
    }
}

/// `x [.., inputs]` times the matrix: `[.., outputs]`. `None` where MLX's own way is to be taken, which may be to refuse
/// it: on other devices, for stacks of matrices, for types that the kernels do not have, and for f32, which BLAS
/// multiplies.
pub(super) fn matmul(x: &Array, matrix: &Matrix<'_>) -> Mlx<Option<Array>> {
    if !fits(x, matrix) {
        return Ok(None);
    }
    linked::matmul(x, matrix)
}

fn fits(x: &Array, matrix: &Matrix<'_>) -> bool {
    let (Some(inputs), [outputs, width]) = (x.shape().last(), matrix.weight().shape()) else {
        return false;
    };
    let Matrix::Packed { scales, biases, params, .. } = matrix else {
        return inputs == width;
    };
    let QuantParams { bits, group_size, .. } = *params;
    let (Ok(bits), Ok(group)) = (i32::try_from(bits), i32::try_from(group_size)) else {
        return false;
    };
    let is_whole =
        group > 0 && inputs % group == 0 && width.checked_mul(32) == inputs.checked_mul(bits);
    let groups = is_whole.then(|| [*outputs, inputs / group]);
    std::iter::once(*scales)
        .chain(*biases)
        .all(|each| groups.is_some_and(|groups| each.shape() == groups))
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod linked {
    use super::{Array, Matrix, Mlx};

    pub(super) fn matmul(_: &Array, _: &Matrix<'_>) -> Mlx<Option<Array>> {
        Ok(None)
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod linked {
    #![expect(unsafe_code, reason = "calls across languages")]

    use std::slice::{from_raw_parts, from_raw_parts_mut};
    use std::sync::OnceLock;

    use mlx_rs::{Device, DeviceType, Dtype, Stream};
    use mlx_sys::{mlx_array, mlx_array_new, mlx_stream};
    use planaria_kernels::{Isa, Number, Packing, Pool, Rows};

    use super::{Array, Matrix, Mlx};
    use crate::mlx::direct::output;
    use crate::model_dir::{QuantMode, QuantParams};
    use crate::processor::Processor;

    /// As in `cpu_product.h`.
    #[repr(C)]
    struct Product {
        x: *const u8,
        weights: *const u8,
        scales: *const u8,
        biases: *const u8,
        out: *mut u8,
        rows: usize,
        inputs: usize,
        outputs: usize,
        weights_bytes: usize,
        scales_bytes: usize,
        biases_bytes: usize,
        x_numbers: u32,
        weights_numbers: u32,
        scales_numbers: u32,
        mode: u32,
        bits: u32,
        group: u32,
    }

    unsafe extern "C" {
        fn planaria_cpu_product(
            result: *mut mlx_array,
            x: mlx_array,
            weights: mlx_array,
            scales: mlx_array,
            biases: mlx_array,
            mode: u32,
            bits: u32,
            group: u32,
            kernel: unsafe extern "C" fn(*const Product),
            stream: mlx_stream,
        ) -> i32;
    }

    const PLAIN: u32 = 0;
    const AFFINE: u32 = 1;
    const MXFP4: u32 = 2;
    const NVFP4: u32 = 3;
    const MXFP8: u32 = 4;

    pub(super) fn matmul(x: &Array, matrix: &Matrix<'_>) -> Mlx<Option<Array>> {
        if !is_number(x) || matches!(Device::try_default()?.get_type()?, DeviceType::Gpu) {
            return Ok(None);
        }
        // SAFETY: an empty handle allocates nothing.
        let none = unsafe { mlx_array_new() };
        let (mode, bits, group, scales, biases) = match matrix {
            // MLX would take the wider of two types for the result.
            Matrix::Plain(weight) if weight.dtype() != x.dtype() => return Ok(None),
            Matrix::Plain(weight) if weight.dtype() == Dtype::Float32 => return Ok(None),
            Matrix::Plain(weight) if !is_number(weight) => return Ok(None),
            Matrix::Plain(_) => (PLAIN, 0, 0, none, none),
            Matrix::Packed { weight, scales, biases, params } => {
                let Some(mode) = mode_of(weight, scales, *biases, *params) else {
                    return Ok(None);
                };
                let biases = biases.map_or(none, Array::as_ptr);
                (mode, params.bits, params.group_size, scales.as_ptr(), biases)
            }
        };
        let weight = matrix.weight();
        let stream = Stream::thread_local_or_default();
        // SAFETY: every handle is that of an array which outlives the call, or empty where that is allowed; `compute`
        // reads what the graph gives it; `result` is a place for one array.
        output(|result| unsafe {
            planaria_cpu_product(
                result,
                x.as_ptr(),
                weight.as_ptr(),
                scales,
                biases,
                mode,
                bits,
                group,
                compute,
                stream.as_ptr(),
            )
        })
        .map(Some)
    }

    /// `None` where the kernels have no such packing.
    fn mode_of(
        weight: &Array,
        scales: &Array,
        biases: Option<&Array>,
        params: QuantParams,
    ) -> Option<u32> {
        let QuantParams { mode, bits, group_size: group } = params;
        let bytes = scales.dtype() == Dtype::Uint8 && biases.is_none();
        let affine = || {
            let is_known = matches!(bits, 2..=6 | 8) && matches!(group, 32 | 64 | 128);
            is_known && is_number(scales) && biases.is_some_and(|b| b.dtype() == scales.dtype())
        };
        let (is_known, mode) = match mode {
            QuantMode::Affine => (affine(), AFFINE),
            QuantMode::Mxfp4 => (bytes && (bits, group) == (4, 32), MXFP4),
            QuantMode::Nvfp4 => (bytes && (bits, group) == (4, 16), NVFP4),
            QuantMode::Mxfp8 => (bytes && (bits, group) == (8, 32), MXFP8),
        };
        (is_known && weight.dtype() == Dtype::Uint32).then_some(mode)
    }

    fn is_number(array: &Array) -> bool {
        matches!(array.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16)
    }

    /// One for all threads of MLX: a product uses all cores.
    fn pool() -> &'static Pool {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| Pool::new(Processor::chosen().threads()))
    }

    fn isa() -> Isa {
        Processor::chosen().isa()
    }

    /// # Safety
    /// The product's pointers are of memory of the sizes that it says, which nothing else writes meanwhile.
    unsafe extern "C" fn compute(product: *const Product) {
        // SAFETY: the caller's.
        let product = unsafe { &*product };
        let bytes = |start: *const u8, count: usize| match count {
            0 => &[][..],
            // SAFETY: the caller's; null only where there are no bytes.
            _ => unsafe { from_raw_parts(start, count) },
        };
        let number = |code: u32| match code {
            0 => Some(Number::F32),
            1 => Some(Number::F16),
            2 => Some(Number::Bf16),
            _ => None,
        };
        let packing = match product.mode {
            PLAIN => number(product.weights_numbers).map(Packing::Dense),
            AFFINE => number(product.scales_numbers).and_then(|scales| {
                let bits = u8::try_from(product.bits).ok()?;
                Some(Packing::Affine { bits, group: product.group as usize, scales })
            }),
            MXFP4 => Some(Packing::Mxfp4),
            NVFP4 => Some(Packing::Nvfp4),
            MXFP8 => Some(Packing::Mxfp8),
            _ => None,
        };
        let computed = packing.zip(number(product.x_numbers)).map(|(packing, number)| {
            let Product { rows, inputs, outputs, .. } = *product;
            let x = bytes(product.x, rows * inputs * number.bytes());
            let rows = Rows { bytes: x, number, rows, inputs, stride: inputs };
            let matrix = planaria_kernels::Matrix {
                packing,
                outputs,
                inputs,
                weights: bytes(product.weights, product.weights_bytes),
                scales: bytes(product.scales, product.scales_bytes),
                biases: bytes(product.biases, product.biases_bytes),
            };
            let count = rows.rows * outputs * number.bytes();
            let out = match count {
                0 => &mut [][..],
                // SAFETY: the caller's.
                _ => unsafe { from_raw_parts_mut(product.out, count) },
            };
            planaria_kernels::matmul(pool(), isa(), &rows, &matrix, out)
        });
        // All of it was looked at before the operation was made. A panic ends the process here: to go on would be to
        // compute with no numbers.
        assert!(matches!(computed, Some(Ok(()))), "a product that does not fit: {computed:?}");
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use mlx_rs::ops::{dequantize, quantize};
    use mlx_rs::random::normal;
    use mlx_rs::{Array, Dtype};

    use super::{Matrix, matmul};
    use crate::model_dir::{QuantMode, QuantParams};

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn numbers(array: &Array) -> Vec<f32> {
        array.as_dtype(Dtype::Float32).unwrap().try_as_slice::<f32>().unwrap().to_vec()
    }

    fn close(found: &Array, expected: &Array, what: &str) {
        assert_eq!(found.shape(), expected.shape());
        let (found, expected) = (numbers(found), numbers(expected));
        let largest = expected.iter().fold(0_f32, |most, number| most.max(number.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 0.01 * largest, "{what}: {found}, not {expected}");
        }
    }

    #[test]
    fn packed_matrices_are_multiplied_as_mlx_unpacks_them() -> Outcome {
        for (bits, group) in
            [(2, 32), (3, 64), (4, 32), (4, 64), (4, 128), (5, 32), (6, 64), (8, 128)]
        {
            for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
                let plain = normal::<f32>(&[48, 256], None, None, None)?.as_dtype(dtype)?;
                let (weight, scales, biases) = quantize(&plain, group, bits)?;
                let plain = dequantize(&weight, &scales, &biases, group, bits)?;
                let params = QuantParams {
                    mode: QuantMode::Affine,
                    group_size: group.try_into()?,
                    bits: bits.try_into()?,
                };
                let biases = Some(&biases);
                let packed = Matrix::Packed { weight: &weight, scales: &scales, biases, params };
                // Not row by row in memory.
                let x = normal::<f32>(&[256, 7], None, None, None)?.as_dtype(dtype)?;
                let x = x.swap_axes(0, 1)?;
                let found = matmul(&x, &packed)?.ok_or("one of ours")?;
                assert_eq!(found.dtype(), dtype);
                let expected = x
                    .as_dtype(Dtype::Float32)?
                    .matmul(plain.as_dtype(Dtype::Float32)?.swap_axes(0, 1)?)?;
                close(&found, &expected, &format!("{bits} bits by {group}, {dtype:?}"));
            }
        }
        Ok(())
    }

    #[test]
    fn numbers_of_sixteen_bits_are_multiplied() -> Outcome {
        for dtype in [Dtype::Float16, Dtype::Bfloat16] {
            let weight = normal::<f32>(&[33, 50], None, None, None)?.as_dtype(dtype)?;
            let x = normal::<f32>(&[2, 3, 50], None, None, None)?.as_dtype(dtype)?;
            let found = matmul(&x, &Matrix::Plain(&weight))?.ok_or("one of ours")?;
            assert_eq!((found.dtype(), found.shape()), (dtype, &[2, 3, 33][..]));
            let expected = x
                .as_dtype(Dtype::Float32)?
                .matmul(weight.as_dtype(Dtype::Float32)?.swap_axes(0, 1)?)?;
            close(&found, &expected, &format!("{dtype:?}"));
        }
        Ok(())
    }

    #[test]
    fn what_the_kernels_do_not_have_is_left_to_mlx() -> Outcome {
        let (weight, scales, biases) = quantize(normal::<f32>(&[8, 64], None, None, None)?, 32, 4)?;
        let params = QuantParams { mode: QuantMode::Affine, group_size: 32, bits: 4 };
        let whole =
            |weight, scales, biases, params| Matrix::Packed { weight, scales, biases, params };
        let x = normal::<f32>(&[1, 64], None, None, None)?;
        let is_ours = |x: &Array, matrix: &Matrix<'_>| matmul(x, matrix).unwrap().is_some();
        assert!(is_ours(&x, &whole(&weight, &scales, Some(&biases), params)));
        let shorter = normal::<f32>(&[1, 32], None, None, None)?;
        assert!(!is_ours(&shorter, &whole(&weight, &scales, Some(&biases), params)));
        assert!(!is_ours(&x, &whole(&weight, &scales, None, params)));
        let bits = QuantParams { bits: 8, ..params };
        assert!(!is_ours(&x, &whole(&weight, &scales, Some(&biases), bits)));
        let mode = QuantParams { mode: QuantMode::Mxfp4, ..params };
        assert!(!is_ours(&x, &whole(&weight, &scales, None, mode)));
        let ids = Array::from_slice(&[1_i32; 64], &[1, 64]);
        assert!(!is_ours(&ids, &whole(&weight, &scales, Some(&biases), params)));
        assert!(!is_ours(&x, &Matrix::Plain(&normal::<f32>(&[8, 64], None, None, None)?)));
        Ok(())
    }
}
