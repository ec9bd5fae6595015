//! Grouped-query attention where MLX has no kernel for it, in f32.
//!
//! MLX's own way on CPUs spends most of its time in the exponential of the softmax, at about 20 ns for
//! each pair of positions. Powers of two take half of that, and `exp(x)` is `2^(x * log2(e))`, so the
//! factor goes into the queries. The heads that share keys are rows of one product.
//! (`tests/bench/README.md` has the figures.)

use std::f32::consts::LOG2_E;

use mlx_rs::Array;
use mlx_rs::ops::{maximum, select};

use super::Mlx;
use super::kv_cache::KeysValues;

/// What `queries [1, heads, count, head_dim]` find in `memory`: same shape.
///
/// `sharing` query heads have each key head in common. `mask [count, positions]` says whom each query
/// sees, `sinks [heads]` are scores that take a share and give nothing.
pub(super) fn look(
    queries: &Array,
    memory: &KeysValues,
    sharing: i32,
    scale: f32,
    mask: Option<&Array>,
    sinks: Option<&Array>,
) -> Mlx<Array> {
    let shape = queries.shape().to_vec();
    let count = shape.get(2).copied().unwrap_or(1);
    let rows = |width: i32| [1, -1, sharing * count, width];
    let heads = |width: i32| [1, -1, sharing, count, width];
    let (head_dim, positions) = (shape.last().copied().unwrap_or(1), memory.positions());

    let queries = queries.multiply(Array::from_f32(scale * LOG2_E))?.reshape(&rows(head_dim))?;
    let mut scores = queries.matmul(&memory.keys.swap_axes(-1, -2)?)?;
    if let Some(mask) = mask {
        let unseen = Array::from_f32(f32::MIN);
        scores = select(mask, scores.reshape(&heads(positions))?, unseen)?;
        scores = scores.reshape(&rows(positions))?;
    }
    let sinks = match sinks {
        Some(sinks) => {
            let each = sinks.multiply(Array::from_f32(LOG2_E))?.reshape(&[1, -1, sharing, 1, 1])?;
            let zeros = Array::from_f32(0.0);
            let all = each.add(mlx_rs::ops::broadcast_to(&zeros, &[count, 1])?)?;
            Some(all.reshape(&rows(1))?)
        }
        None => None,
    };
    let mut most = scores.max_axis(-1, true)?;
    if let Some(sinks) = &sinks {
        most = maximum(&most, sinks)?;
    }
    let two = Array::from_f32(2.0);
    let weights = two.power(scores.subtract(&most)?)?;
    let mut sum = weights.sum_axis(-1, true)?;
    if let Some(sinks) = &sinks {
        sum = sum.add(two.power(sinks.subtract(&most)?)?)?;
    }
    weights.matmul(&memory.values)?.divide(&sum)?.reshape(&shape)
}
