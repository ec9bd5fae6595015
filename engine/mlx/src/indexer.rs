//! What chooses the positions that a query of latent attention looks at.

use mlx_rs::ops::indexing::{Ellipsis, TryIndexOp, put_along_axis};
use mlx_rs::ops::{argpartition_axis, maximum, select, zeros};
use mlx_rs::{Array, Dtype};
use planaria_engine::architecture::Indexer as IndexerParts;

use super::attention::{RopeOf, StepRows, by_head};
use super::error::LoadError;
use super::linear::{Linear, as_dim};
use super::norm::LayerNorm;
use super::weights::Weights;
use super::{Mlx, cpu};

/// The indexer of one layer.
pub(super) struct Indexer {
    query: Linear,
    key: Linear,
    key_norm: LayerNorm,
    weights: Linear,
    rope: usize,
    heads: i32,
    chosen: u32,
}

/// What some rows ask an indexer.
pub(super) struct IndexQueries {
    /// `[1, heads, rows, head_dim]`.
    pub(super) queries: Array,
    /// `f32 [1, heads, rows, 1]`.
    pub(super) weights: Array,
}

impl Indexer {
    pub(super) fn take(
        weights: &mut Weights<'_>,
        parts: &IndexerParts,
        rope_of: RopeOf<'_>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            query: Linear::take(weights, &parts.query)?,
            key: Linear::take(weights, &parts.key)?,
            key_norm: LayerNorm::take(weights, &parts.key_norm)?,
            weights: Linear::take_wide(weights, &parts.weights)?,
            rope: rope_of(&parts.rope)?,
            heads: as_dim(parts.heads)?,
            chosen: parts.chosen,
        })
    }

    /// The keys of `x [rows, hidden]`: `[rows, 1, head_dim]`.
    pub(super) fn keys(&self, x: &Array, rows: &StepRows<'_>) -> Mlx<Array> {
        let keys = self.key_norm.forward(&self.key.forward(x)?)?;
        rows.turn(&keys.expand_dims(1)?, self.rope)
    }

    /// What rows ask, of `x [rows, hidden]` and `compressed [rows, rank]`, which their queries come from.
    pub(super) fn queries(
        &self,
        x: &Array,
        compressed: &Array,
        rows: &StepRows<'_>,
    ) -> Mlx<IndexQueries> {
        let queries = self.query.forward(compressed)?;
        let count = queries.shape().first().copied().unwrap_or(0);
        let queries = rows.turn(&queries.reshape(&[count, self.heads, -1])?, self.rope)?;
        let weights = self.weights.forward_wide(x)?.expand_dims(-1)?;
        Ok(IndexQueries { queries: by_head(&queries)?, weights: by_head(&weights)? })
    }

    /// Whether it leaves any of so many positions out.
    pub(super) fn chooses(&self, positions: i32) -> bool {
        u32::try_from(positions).is_ok_and(|positions| positions > self.chosen)
    }

    /// The same for our kernels, with `keys [1, 1, positions, head_dim]`.
    pub(super) fn for_cpu<'a>(
        &self,
        asked: &'a IndexQueries,
        keys: &'a Array,
    ) -> cpu::AskedIndex<'a> {
        let count = usize::try_from(self.chosen).unwrap_or(usize::MAX);
        let IndexQueries { queries, weights } = asked;
        cpu::AskedIndex { queries, keys, weights, count }
    }

    /// The positions that each query looks at, on other devices: `u32 [1, 1, queries, chosen]`, in any order. Which of
    /// equal scores are among them is for MLX to say. `mask [queries, positions]` says what a query sees.
    pub(super) fn choose_by_mlx(
        &self,
        asked: &IndexQueries,
        keys: &Array,
        mask: Option<&Array>,
    ) -> Mlx<Array> {
        choose_by_mlx(asked, keys, mask, i32::try_from(self.chosen).unwrap_or(i32::MAX))
    }
}

/// The highest `count` scores of each query, of more positions than that.
fn choose_by_mlx(
    asked: &IndexQueries,
    keys: &Array,
    mask: Option<&Array>,
    count: i32,
) -> Mlx<Array> {
    let IndexQueries { queries, weights } = asked;
    let keys = keys.as_dtype(Dtype::Float32)?.swap_axes(-1, -2)?;
    let nothing = Array::from_f32(0.0);
    let part = |queries: &Array, weights: &Array| {
        let products = queries.as_dtype(Dtype::Float32)?.matmul(&keys)?;
        maximum(products, &nothing)?.multiply(weights)
    };
    let (heads, rows) = match queries.shape() {
        [1, heads, rows, _] => (*heads, *rows),
        _ => return Err(mlx_rs::error::Exception::custom("queries of no indexer")),
    };
    let mut scores = if rows == 1 {
        part(queries, weights)?.sum_axis(1, true)?
    } else {
        // One head after the other: all at once would be as many scores for each pair of positions.
        let mut sum = nothing.clone();
        for head in 0..heads {
            let own = |array: &Array| array.try_index((.., head..head + 1));
            sum = sum.add(part(&own(queries)?, &own(weights)?)?)?;
        }
        sum
    };
    if let Some(mask) = mask {
        scores = select(mask, &scores, Array::from_f32(f32::NEG_INFINITY))?;
    }
    argpartition_axis(scores.negative()?, count - 1, -1)?.try_index((Ellipsis, ..count))
}

/// `bool [1, 1, queries, positions]`: whether a position is one of those that were chosen, `u32 [1, 1, queries, chosen]`.
pub(super) fn mask_of(chosen: &Array, positions: i32) -> Mlx<Array> {
    let queries = chosen.shape().get(2).copied().unwrap_or(0);
    let none = zeros::<bool>(&[1, 1, queries, positions])?;
    put_along_axis(none, chosen, Array::from_bool(true), -1)
}

#[cfg(test)]
mod tests {
    use mlx_rs::ops::indexing::TryIndexOp;
    use mlx_rs::random::normal;

    use super::*;

    /// The positions of a row that are marked.
    fn marked(mask: &Array, row: i32) -> Vec<usize> {
        let mask = mask.try_index((0, 0, row)).unwrap().contiguous().unwrap();
        let marks = mask.try_as_slice::<bool>().unwrap();
        marks.iter().enumerate().filter(|(_, mark)| **mark).map(|(place, _)| place).collect()
    }

    #[test]
    fn the_best_of_all_that_a_query_sees_are_chosen() {
        let (heads, rows, positions, count) = (3, 4, 12, 5);
        let queries = normal::<f32>(&[1, heads, rows, 6], None, None, None).unwrap();
        let weights = normal::<f32>(&[1, heads, rows, 1], None, None, None).unwrap();
        let keys = normal::<f32>(&[1, 1, positions, 6], None, None, None).unwrap();
        let products = queries.matmul(keys.swap_axes(-1, -2).unwrap()).unwrap();
        let bent = maximum(products, Array::from_f32(0.0)).unwrap().multiply(&weights).unwrap();
        let scores = bent.sum_axis(1, false).unwrap();
        let asked = IndexQueries { queries, weights };
        let own = mlx_rs::ops::arange::<_, i32>(positions - rows, positions, None).unwrap();
        let others = mlx_rs::ops::arange::<_, i32>(0, positions, None).unwrap();
        let seen = own.expand_dims(1).unwrap().ge(others.expand_dims(0).unwrap()).unwrap();
        let chosen = choose_by_mlx(&asked, &keys, Some(&seen), count).unwrap();
        let mask = mask_of(&chosen, positions).unwrap();
        for row in 0..rows {
            let scores = scores.try_index((0, row)).unwrap().contiguous().unwrap();
            let scores = scores.try_as_slice::<f32>().unwrap();
            let seen = usize::try_from(positions - rows + row + 1).unwrap();
            let mut best: Vec<usize> = (0..seen).collect();
            best.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            best.truncate(5);
            best.sort_unstable();
            assert_eq!(marked(&mask, row), best);
            // One query alone takes another way to the same.
            let one = |array: &Array| array.try_index((.., .., row..row + 1)).unwrap();
            let alone = IndexQueries { queries: one(&asked.queries), weights: one(&asked.weights) };
            let known = keys.try_index((.., .., ..positions - rows + row + 1)).unwrap();
            let chosen = choose_by_mlx(&alone, &known, None, count).unwrap();
            assert_eq!(marked(&mask_of(&chosen, positions).unwrap(), 0), best);
        }
    }
}
