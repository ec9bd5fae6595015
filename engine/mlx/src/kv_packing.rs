//! Keys and values with fewer bits: the setting `kv-bits`.
//!
//! A row of numbers becomes a row of bytes: integers as MLX's affine mode packs them, then the scale of each group of
//! [`KV_GROUP`] numbers, then their biases. So a cache of packed rows is a cache of wider rows of smaller numbers, and is cut,
//! copied and joined like any other.

use mlx_rs::ops::indexing::{Ellipsis, TryIndexOp};
use mlx_rs::ops::{concatenate, dequantize, quantize};
use mlx_rs::{Array, Dtype};
use planaria_config::KvBits;
use planaria_engine::architecture::KV_GROUP;

use super::kv_cache::{KeysValues, Visible};
use super::{Mlx, cpu};

/// [`KV_GROUP`] as MLX counts.
const GROUP: i32 = KV_GROUP as i32;

// What is counted is what kernels read.
const _: () = assert!(KV_GROUP as usize == planaria_kernels::KV_GROUP);

/// Packs `x [.., width]`: `u8 [.., bytes of a row]`.
pub(super) fn pack(x: &Array, bits: KvBits) -> Mlx<Array> {
    let (integers, scales, biases) = quantize(x, GROUP, i32::from(bits.count()))?;
    let bytes = |array: &Array| array.view_dtype(Dtype::Uint8);
    concatenate(&[bytes(&integers)?, bytes(&scales)?, bytes(&biases)?], -1)
}

/// What `packed [.., bytes of a row]` stands for: `dtype [.., width]`.
pub(super) fn unpack(packed: &Array, bits: KvBits, dtype: Dtype) -> Mlx<Array> {
    let row = packed.shape().last().copied().unwrap_or(0);
    let width = width(row, bits, dtype).ok_or_else(|| {
        mlx_rs::error::Exception::custom(format!("rows of {row} bytes are not packed ones"))
    })?;
    let integers = width * i32::from(bits.count()) / 8;
    let scales = (row - integers) / 2;
    let part = |from: i32, to: i32, dtype| {
        packed.try_index((Ellipsis, from..to))?.contiguous()?.view_dtype(dtype)
    };
    dequantize(
        part(0, integers, Dtype::Uint32)?,
        part(integers, integers + scales, dtype)?,
        &part(integers + scales, row, dtype)?,
        GROUP,
        i32::from(bits.count()),
    )
}

/// How many numbers a packed row of so many bytes stands for, with scales of this type.
pub(super) fn width(row_bytes: i32, bits: KvBits, dtype: Dtype) -> Option<i32> {
    let (bits, number) = (of_kernels(bits), cpu::number_of_dtype(dtype)?);
    let row_bytes = usize::try_from(row_bytes).ok()?;
    let width = bits.width(row_bytes, number);
    if bits.row_bytes(width, number) == row_bytes { i32::try_from(width).ok() } else { None }
}

/// What kernels call it.
pub(super) const fn of_kernels(bits: KvBits) -> planaria_kernels::KvBits {
    match bits {
        KvBits::Eight => planaria_kernels::KvBits::Eight,
        KvBits::Four => planaria_kernels::KvBits::Four,
    }
}

impl KeysValues {
    /// The same, packed if `bits` says so.
    pub(super) fn packed(self, bits: Option<KvBits>) -> Mlx<Self> {
        let Some(bits) = bits else { return Ok(self) };
        Ok(Self { keys: pack(&self.keys, bits)?, values: pack(&self.values, bits)? })
    }
}

impl Visible {
    /// As numbers of type `dtype`, for kernels that know no packed ones.
    pub(super) fn unpacked(&self, dtype: Dtype) -> Mlx<KeysValues> {
        let KeysValues { keys, values } = &self.known;
        let plain = |array: &Array| match self.bits {
            None => Ok(array.clone()),
            Some(bits) => unpack(array, bits, dtype),
        };
        Ok(KeysValues { keys: plain(keys)?, values: plain(values)? })
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::random;

    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_within_a_step() {
        for (bits, steps) in [(KvBits::Eight, 255.0), (KvBits::Four, 15.0)] {
            for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
                let x = random::uniform::<_, f32>(-1.0, 1.0, &[1, 3, 5, 96], None).unwrap();
                let x = x.as_dtype(dtype).unwrap();
                let packed = pack(&x, bits).unwrap();
                assert_eq!(packed.dtype(), Dtype::Uint8);
                let row = packed.shape()[3];
                assert_eq!(width(row, bits, dtype), Some(96));
                assert_eq!(width(row + 1, bits, dtype), None);
                // Of one position of several heads, as a cache gives it.
                let some = packed.try_index((.., 1.., 2..4)).unwrap();
                let found = unpack(&some, bits, dtype).unwrap();
                assert_eq!(found.dtype(), dtype);
                let expected = x.try_index((.., 1.., 2..4)).unwrap();
                let off = found.subtract(&expected).unwrap().abs().unwrap().max(None).unwrap();
                let off = off.as_dtype(Dtype::Float32).unwrap().item_cast::<f32>();
                assert!(off > 0.0 && off < 2.0 / steps + 0.01, "{bits:?} {dtype:?}: {off}");
            }
        }
    }
}
