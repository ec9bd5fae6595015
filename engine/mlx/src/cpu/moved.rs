//! Numbers moved as they are, from where they need not lie as MLX's own operations want them.

use mlx_rs::{Array, Dtype};

use super::is_here;
use super::operation::operation;
use crate::Mlx;

/// The rows of `matrix [count, ..]` that `ids [n]` name: `[n, ..]`.
pub(crate) fn rows_of(matrix: &Array, ids: &Array) -> Mlx<Option<Array>> {
    let ([count, row @ ..], [chosen]) = (matrix.shape(), ids.shape()) else { return Ok(None) };
    if !is_here() || !matches!(ids.dtype(), Dtype::Uint32 | Dtype::Int32) || *count == 0 {
        return Ok(None);
    }
    let shape = [&[*chosen], row].concat();
    operation(&[matrix, ids], &shape, |inputs, out| {
        let [matrix, ids] = inputs else { unreachable!("two inputs") };
        let mut copies = [const { Vec::new() }; 2];
        let [matrix_copy, ids_copy] = &mut copies;
        let rows = matrix.contiguous(matrix_copy);
        let length = rows.len() / matrix.size(matrix.shape.len() - 1);
        let ids = ids.contiguous(ids_copy).as_chunks().0.iter().map(|id| u32::from_le_bytes(*id));
        for (to, id) in out.chunks_exact_mut(length.max(1)).zip(ids) {
            let start = id as usize * length;
            let from = rows.get(start..start + length);
            assert!(from.is_some(), "row {id} of a matrix of {:?}", matrix.shape);
            to.copy_from_slice(from.unwrap_or_default());
        }
    })
    .map(Some)
}

/// The same array in memory of its own, where operations here may read from anywhere.
pub(crate) fn copied(array: &Array) -> Mlx<Array> {
    if !is_here() {
        return Ok(array.clone());
    }
    operation(&[array], array.shape(), |inputs, out| {
        let [array] = inputs else { unreachable!("one input") };
        out.copy_from_slice(array.contiguous(&mut Vec::new()));
    })
}
