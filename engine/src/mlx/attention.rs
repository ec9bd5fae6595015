//! Grouped-query attention with rotary positions.

use mlx_rs::fast::{ScaledDotProductAttentionMask, scaled_dot_product_attention};
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, Dtype};

use super::Mlx;
use super::batch::Rows;
use super::kv_cache::{KeysValues, KvCache};
use super::linear::Linear;
use super::rope::{Rope, Turns};

/// Some rows of a step, and by what their queries and keys are turned.
pub(super) struct TurnedRows<'a> {
    pub(super) rows: &'a Rows,
    pub(super) rope: &'a Rope,
    pub(super) turns: Turns,
}

impl<'a> TurnedRows<'a> {
    pub(super) fn new(rows: &'a Rows, rope: &'a Rope, dtype: Dtype) -> Mlx<Self> {
        Ok(Self { rows, rope, turns: rope.turns(&rows.positions, dtype)? })
    }

    /// Turns `x [rows, heads, head_dim]` and cuts it at the ends of sequences.
    fn turn_and_split(&self, x: &Array) -> Mlx<Vec<Array>> {
        self.rows.split(&self.rope.forward(x, &self.turns)?)
    }
}

/// Attention of one layer.
pub(super) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) head_dim: i32,
    /// Multiplies the products of queries and keys.
    pub(super) scale: f32,
}

impl Attention {
    /// Puts keys and values of `x [rows, hidden]` into the caches of their sequences, and gives
    /// what each sequence remembers now.
    pub(super) fn remember(
        &self,
        x: &Array,
        rows: &TurnedRows<'_>,
        caches: &mut [&mut KvCache],
    ) -> Mlx<Vec<KeysValues>> {
        let keys = rows.turn_and_split(&self.in_heads(&self.key.forward(x)?)?)?;
        let values = rows.rows.split(&self.in_heads(&self.value.forward(x)?)?)?;
        keys.iter()
            .zip(&values)
            .zip(caches)
            .map(|((keys, values), cache)| {
                cache.append(&KeysValues { keys: by_head(keys)?, values: by_head(values)? })
            })
            .collect()
    }

    /// What the queries of `x [rows, hidden]` find in the memory of their sequences: same shape.
    pub(super) fn attend(
        &self,
        x: &Array,
        rows: &TurnedRows<'_>,
        memory: &[KeysValues],
    ) -> Mlx<Array> {
        let queries = rows.turn_and_split(&self.in_heads(&self.query.forward(x)?)?)?;
        let found = rows
            .rows
            .spans
            .iter()
            .zip(&queries)
            .filter_map(|(span, queries)| Some((span, queries, memory.get(span.sequence)?)))
            .map(|(span, queries, memory)| {
                // The last query stands at the last key, whatever came before the first.
                let mask = (span.count > 1).then_some(ScaledDotProductAttentionMask::Causal);
                let queries = by_head(queries)?;
                let KeysValues { keys, values } = memory;
                scaled_dot_product_attention(queries, keys, values, self.scale, mask, None)?
                    .transpose_axes(&[0, 2, 1, 3])?
                    .reshape(&[span.count, -1])
            })
            .collect::<Mlx<Vec<Array>>>()?;
        match found.as_slice() {
            [one] => self.output.forward(one),
            many => self.output.forward(&concatenate(many, 0)?),
        }
    }

    /// `[rows, heads * head_dim]` as `[rows, heads, head_dim]`.
    fn in_heads(&self, x: &Array) -> Mlx<Array> {
        x.reshape(&[x.shape().first().copied().unwrap_or(0), -1, self.head_dim])
    }
}

/// `[rows, heads, head_dim]` of one sequence as `[1, heads, rows, head_dim]`.
fn by_head(x: &Array) -> Mlx<Array> {
    x.expand_dims(0)?.transpose_axes(&[0, 2, 1, 3])
}
