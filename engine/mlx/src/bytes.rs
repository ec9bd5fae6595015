//! Arrays from bytes and back: weights from files, hidden states from and to other stages.

use bytes::Bytes;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use planaria_engine::model_dir::Dtype;

use super::Mlx;
use super::error::StepError;

/// An array of `shape` over a copy of `bytes`, which hold numbers of `dtype` in row-major order,
/// little-endian.
///
/// # Errors
/// When `bytes` are too many or too few, or MLX has no such type.
pub(super) fn array_from_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Mlx<Array> {
    typed(bytes.len(), shape, dtype, |byte_shape| {
        #[expect(unsafe_code, reason = "the safe `from_slice` panics from 2 GiB on")]
        // SAFETY: MLX copies as many bytes as the shape says, which was compared with what there is.
        let raw = unsafe {
            Array::from_raw_data(bytes.as_ptr().cast(), byte_shape, mlx_rs::Dtype::Uint8)
        };
        Ok(raw)
    })
}

/// An array of `shape`, of numbers of `dtype`, over what `make` gives for its shape in bytes, of which there are `length`.
///
/// A typed pointer would have to be aligned, which bytes out of a frame are not. So MLX gets bytes, and is told their type
/// afterwards, which copies nothing.
///
/// # Errors
/// When `length` is another than the shape's, or MLX has no such type, or `make` fails.
pub(super) fn typed(
    length: usize,
    shape: &[i32],
    dtype: Dtype,
    make: impl FnOnce(&[i32]) -> Mlx<Array>,
) -> Mlx<Array> {
    let misfit = || Exception::custom(format!("{length} bytes are no {dtype} of shape {shape:?}"));
    let (columns, rows) = shape.split_last().ok_or_else(misfit)?;
    let row_bytes = i64::from(*columns) * i64::try_from(dtype.bitsize() / 8).unwrap_or(0);
    let mut byte_shape = rows.to_vec();
    byte_shape.push(i32::try_from(row_bytes).map_err(|_| misfit())?);
    let wanted = byte_shape
        .iter()
        .try_fold(1_usize, |size, dim| size.checked_mul(usize::try_from(*dim).ok()?));
    if wanted != Some(length) {
        return Err(misfit());
    }
    make(&byte_shape)?.view_dtype(mlx_dtype(dtype)?)
}

/// The numbers of `array`, one row after the other, little-endian.
pub(super) fn bytes_of(array: &Array) -> Result<Bytes, StepError> {
    let raw = array.contiguous()?.view::<u8>()?;
    Ok(Bytes::copy_from_slice(raw.try_as_slice::<u8>()?))
}

/// MLX's name for a type that models are stored in.
pub(super) fn mlx_dtype(dtype: Dtype) -> Mlx<mlx_rs::Dtype> {
    match dtype {
        Dtype::F32 => Ok(mlx_rs::Dtype::Float32),
        Dtype::F16 => Ok(mlx_rs::Dtype::Float16),
        Dtype::BF16 => Ok(mlx_rs::Dtype::Bfloat16),
        Dtype::U32 => Ok(mlx_rs::Dtype::Uint32),
        Dtype::U8 => Ok(mlx_rs::Dtype::Uint8),
        other => Err(Exception::custom(format!("no tensor has the type {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive() {
        let numbers: Vec<u8> = (0..24).collect();
        // Off by one, so that no number is aligned.
        let frame: Vec<u8> = [0xff].into_iter().chain(0..24).collect();
        for (dtype, columns) in [(Dtype::F32, 3), (Dtype::BF16, 6), (Dtype::F16, 6)] {
            let array = array_from_bytes(&frame[1..], &[2, columns], dtype).unwrap();
            assert_eq!(array.shape(), [2, columns]);
            assert_eq!(bytes_of(&array).unwrap(), numbers);
        }
        let wrong = array_from_bytes(&frame, &[2, 3], Dtype::F32).unwrap_err();
        assert!(wrong.what().contains("25 bytes are no F32 of shape [2, 3]"), "{wrong}");
    }
}
