//! Products with matrices.

use mlx_rs::{Array, Dtype};
use planaria_engine::model_dir::{QuantMode, QuantParams};
use planaria_kernels::{Choice, Packing};

use super::operation::{View, operation};
use super::{is_here, isa, number_of, pool};
use crate::Mlx;

/// A matrix `[outputs, inputs]` for the kernels, or a stack of them.
pub(crate) enum Matrix<'a> {
    /// Numbers of 16 or 32 bits.
    Plain(&'a Array),
    Packed {
        weight: &'a Array,
        scales: &'a Array,
        biases: Option<&'a Array>,
        params: QuantParams,
    },
}

/// `x [.., inputs]` times the matrix: `[.., outputs]`.
pub(crate) fn matmul(x: &Array, matrix: &Matrix<'_>) -> Mlx<Option<Array>> {
    // The wider of two types is that of the result.
    if matches!(matrix, Matrix::Plain(weight) if weight.dtype() == Dtype::Float32)
        && matches!(x.dtype(), Dtype::Float16 | Dtype::Bfloat16)
    {
        return matmul(&x.as_dtype(Dtype::Float32)?, matrix);
    }
    whole(x, matrix, false)
}

/// [`matmul`] of `x f32` with weights that may be narrower, to `f32`, which is rounded to nothing less.
pub(crate) fn matmul_wide(x: &Array, matrix: &Matrix<'_>) -> Mlx<Option<Array>> {
    if x.dtype() == Dtype::Float32 { whole(x, matrix, true) } else { Ok(None) }
}

fn whole(x: &Array, matrix: &Matrix<'_>, is_wide: bool) -> Mlx<Option<Array>> {
    let [outputs, _] = matrix.weight().shape() else { return Ok(None) };
    let Some((_, leading)) = x.shape().split_last() else { return Ok(None) };
    let Some(packing) = matrix.packing(x, is_wide) else { return Ok(None) };
    let shape = [leading, &[*outputs]].concat();
    let rows = |x: &View<'_>, _: Option<&View<'_>>| {
        let rows: usize = (1..x.shape.len()).map(|axis| x.size(axis)).product();
        (0..rows).map(|row| Choice { row, matrix: 0 }).collect()
    };
    product(x, None, matrix, packing, &shape, rows).map(Some)
}

/// Each of a stack of matrices times its own `x [1, count or 1, rows, inputs]`: `[1, count, rows, outputs]`.
pub(crate) fn matmul_each(x: &Array, stack: &Matrix<'_>) -> Mlx<Option<Array>> {
    each(x, stack, false)
}

/// [`matmul_each`] of `x f32` with weights that may be narrower, to `f32`, which is rounded to nothing less.
pub(crate) fn matmul_each_wide(x: &Array, stack: &Matrix<'_>) -> Mlx<Option<Array>> {
    if x.dtype() == Dtype::Float32 { each(x, stack, true) } else { Ok(None) }
}

fn each(x: &Array, stack: &Matrix<'_>, is_wide: bool) -> Mlx<Option<Array>> {
    let ([count, outputs, _], [1, own, rows, _]) = (stack.weight().shape(), x.shape()) else {
        return Ok(None);
    };
    let Some(packing) = stack.packing(x, is_wide) else { return Ok(None) };
    if own != count && *own != 1 {
        return Ok(None);
    }
    let (matrices, is_shared) = (usize::try_from(*count).unwrap_or(0), *own == 1);
    let shape = [1, *count, *rows, *outputs];
    product(x, None, stack, packing, &shape, move |x, _| {
        let rows = x.size(1);
        let each = |matrix| {
            let before = if is_shared { 0 } else { matrix * rows };
            (before..before + rows).map(move |row| Choice { row, matrix })
        };
        (0..matrices).flat_map(each).collect()
    })
    .map(Some)
}

/// For every one of `indices [.., n]` the matrix of that number times `x [.., 1 or n, 1, inputs]`: `[.., n, 1, outputs]`.
pub(crate) fn matmul_chosen(x: &Array, indices: &Array, stack: &Matrix<'_>) -> Mlx<Option<Array>> {
    let ([_, outputs, _], [leading @ .., own, 1, _]) = (stack.weight().shape(), x.shape()) else {
        return Ok(None);
    };
    let Some(packing) = stack.packing(x, false) else { return Ok(None) };
    let Some((chosen, others)) = indices.shape().split_last() else { return Ok(None) };
    let is_number = matches!(indices.dtype(), Dtype::Uint32 | Dtype::Int32);
    if !is_number || leading != others || (own != chosen && *own != 1) {
        return Ok(None);
    }
    let each_has = if own == chosen { 1 } else { usize::try_from(*chosen).unwrap_or(1) };
    let shape = [leading, &[*chosen, 1, *outputs]].concat();
    product(x, Some(indices), stack, packing, &shape, move |_, indices| {
        let mut copy = Vec::new();
        let indices = indices.map(|indices| indices.contiguous(&mut copy)).unwrap_or_default();
        let numbers = indices.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let choice =
            |(pair, matrix): (usize, u32)| Choice { row: pair / each_has, matrix: matrix as usize };
        numbers.enumerate().map(choice).collect()
    })
    .map(Some)
}

/// The operation for all three. `choices` says which rows are multiplied with which matrices.
fn product(
    x: &Array,
    indices: Option<&Array>,
    matrix: &Matrix<'_>,
    packing: Packing,
    shape: &[i32],
    choices: impl Fn(&View<'_>, Option<&View<'_>>) -> Vec<Choice> + Send + Sync + 'static,
) -> Mlx<Array> {
    let number = number_of(x).ok_or_else(|| mlx_rs::error::Exception::custom("no numbers"))?;
    let mut inputs = vec![x, matrix.weight()];
    if let Matrix::Packed { scales, biases, .. } = matrix {
        inputs.push(scales);
        inputs.extend(*biases);
    }
    inputs.extend(indices);
    let has_indices = indices.is_some();
    operation(&inputs, shape, move |inputs, out| {
        let (indices, inputs) = match inputs.split_last() {
            Some((last, others)) if has_indices => (Some(last), others),
            _ => (None, inputs),
        };
        let [x, weight, packed @ ..] = inputs else { unreachable!("two inputs at least") };
        let mut copies = [const { Vec::new() }; 4];
        let [x_copy, weight_copy, scales_copy, biases_copy] = &mut copies;
        let choices = choices(x, indices);
        let rows = x.rows(number, x_copy);
        let matrices = if weight.shape.len() > 2 { weight.size(2) } else { 1 };
        let all = planaria_kernels::Matrix {
            packing,
            outputs: matrices * weight.size(1),
            inputs: rows.inputs,
            weights: weight.contiguous(weight_copy),
            scales: packed.first().map(|s| s.contiguous(scales_copy)).unwrap_or_default(),
            biases: packed.get(1).map(|b| b.contiguous(biases_copy)).unwrap_or_default(),
        };
        let done =
            planaria_kernels::matmul_chosen(pool(), isa(), &rows, &all, matrices, &choices, out);
        assert!(done.is_ok(), "a product that does not fit: {done:?}");
    })
}

impl Matrix<'_> {
    const fn weight(&self) -> &Array {
        match self {
            Self::Plain(weight) | Self::Packed { weight, .. } => weight,
        }
    }

    /// How the kernels read it, for rows `x [.., inputs]`; `None` if they are not here, or it does not fit.
    /// `is_wide` says that weights may be narrower than rows.
    fn packing(&self, x: &Array, is_wide: bool) -> Option<Packing> {
        number_of(x)?;
        let (packing, groups) = match self {
            // MLX would take the wider of two types for the result.
            Self::Plain(weight) if weight.dtype() != x.dtype() && !is_wide => return None,
            Self::Plain(weight) => (Packing::Dense(number_of(weight)?), None),
            Self::Packed { weight, scales, biases, params } => {
                let QuantParams { mode, bits, group_size: group } = *params;
                let known = |packing: Packing, bits_of: u32, group_of: u32| {
                    let bytes = scales.dtype() == Dtype::Uint8 && biases.is_none();
                    (bytes && (bits, group) == (bits_of, group_of)).then_some(packing)
                };
                let packing = match mode {
                    QuantMode::Affine => {
                        biases.filter(|biases| biases.dtype() == scales.dtype())?;
                        let (bits, group) = (u8::try_from(bits).ok()?, group as usize);
                        Packing::Affine { bits, group, scales: number_of(scales)? }
                    }
                    QuantMode::Mxfp4 => known(Packing::Mxfp4, 4, 32)?,
                    QuantMode::Nvfp4 => known(Packing::Nvfp4, 4, 16)?,
                    QuantMode::Mxfp8 => known(Packing::Mxfp8, 8, 32)?,
                };
                (weight.dtype() == Dtype::Uint32).then_some(())?;
                (packing, Some([Some(*scales), *biases]))
            }
        };
        let count = usize::try_from(*x.shape().last()?).ok()?;
        let (width, leading) = self.weight().shape().split_last()?;
        let item_bits = self.weight().item_size() * 8;
        let is_whole = usize::try_from(*width).ok()? * item_bits == count * packing.bits();
        let has_groups = groups.into_iter().flatten().flatten().all(|each| {
            each.shape().split_last().is_some_and(|(groups, others)| {
                let all = packing.group().zip(usize::try_from(*groups).ok());
                others == leading && all.is_some_and(|(group, groups)| group * groups == count)
            })
        });
        (is_here() && is_whole && has_groups && packing.fits(count)).then_some(packing)
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use mlx_rs::ops::{dequantize, quantize};
    use mlx_rs::random::normal;
    use mlx_rs::{Array, Dtype};

    use super::{Matrix, matmul, matmul_wide};
    use planaria_engine::model_dir::{QuantMode, QuantParams};

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
    fn wide_rows_are_multiplied_with_narrow_weights_and_not_rounded() -> Outcome {
        let weight = normal::<f32>(&[9, 40], None, None, None)?.as_dtype(Dtype::Bfloat16)?;
        let x = normal::<f32>(&[3, 40], None, None, None)?;
        let found = matmul_wide(&x, &Matrix::Plain(&weight))?.ok_or("one of ours")?;
        let expected = x.matmul(weight.as_dtype(Dtype::Float32)?.swap_axes(0, 1)?)?;
        assert_eq!((found.dtype(), found.shape()), (Dtype::Float32, &[3, 9][..]));
        for (found, expected) in numbers(&found).iter().zip(numbers(&expected)) {
            assert!((found - expected).abs() < 1e-4, "{found}, not {expected}");
        }
        assert!(matmul_wide(&x.as_dtype(Dtype::Bfloat16)?, &Matrix::Plain(&weight))?.is_none());
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
        Ok(())
    }
}
