//! Latent attention: one compressed vector per token stands for the keys and values of all heads.

use mlx_rs::Array;
use mlx_rs::fast::{ScaledDotProductAttentionMask, scaled_dot_product_attention};
use mlx_rs::ops::indexing::{Ellipsis, TryIndexOp};
use mlx_rs::ops::{concatenate, select};
use planaria_engine::architecture::{Latent, LatentQuery, LayerShare};

use super::attention::{RopeOf, StepRows, by_head, in_rows, lowest};
use super::error::LoadError;
use super::indexer::{IndexQueries, Indexer, mask_of};
use super::kv_cache::{KeysValues, Visible};
use super::linear::{Linear, Projection, Stack, as_dim};
use super::norm::RmsNorm;
use super::weights::Weights;
use super::{Mlx, cpu};

/// Latent attention of one layer. Its cache holds compressed vectors as keys and the turned parts
/// of keys, one for all heads, as values; behind these, if there is an indexer, its keys.
pub(super) struct LatentAttention {
    query: Query,
    compress: Linear,
    compress_norm: RmsNorm,
    key: Stack,
    value: Stack,
    pub(super) output: Projection,
    rope: usize,
    heads: i32,
    plain_dim: i32,
    turned_dim: i32,
    rank: i32,
    scale: f32,
    indexer: Option<Box<Indexer>>,
}

enum Query {
    Direct(Linear),
    Compressed { down: Linear, norm: RmsNorm, up: Linear },
}

impl LatentAttention {
    pub(super) fn take(
        weights: &mut Weights<'_>,
        parts: &Latent,
        share: Option<&LayerShare>,
        rope_of: RopeOf<'_>,
    ) -> Result<Self, LoadError> {
        let query = match &parts.query {
            LatentQuery::Direct(linear) => Query::Direct(Linear::take(weights, linear)?),
            LatentQuery::Compressed { down, norm, up } => Query::Compressed {
                down: Linear::take(weights, down)?,
                norm: RmsNorm::take(weights, norm)?,
                up: Linear::take(weights, up)?,
            },
        };
        Ok(Self {
            query,
            compress: Linear::take(weights, &parts.compress)?,
            compress_norm: RmsNorm::take(weights, &parts.compress_norm)?,
            key: Stack::take(weights, &parts.key)?,
            value: Stack::take(weights, &parts.value)?,
            output: Projection::take(
                weights,
                &parts.output,
                share.map(|share| share.attention.as_slice()),
            )?,
            rope: rope_of(&parts.rope)?,
            heads: as_dim(parts.heads)?,
            plain_dim: as_dim(parts.plain_dim)?,
            turned_dim: as_dim(parts.turned_dim)?,
            rank: as_dim(parts.rank)?,
            scale: parts.scale,
            indexer: match &parts.indexer {
                None => None,
                Some(indexer) => Some(Box::new(Indexer::take(weights, indexer, rope_of)?)),
            },
        })
    }

    /// Of `x [rows, hidden]`: compressed vectors `[rows, 1, rank]` and turned parts of keys
    /// `[rows, 1, turned_dim]`, with the indexer's keys behind them.
    pub(super) fn keys_values(&self, x: &Array, rows: &StepRows<'_>) -> Mlx<(Array, Array)> {
        let both = self.compress.forward(x)?;
        let compressed = self.compress_norm.forward(&both.try_index((.., ..self.rank))?)?;
        let turned = both.try_index((.., self.rank..))?.expand_dims(1)?;
        let turned = rows.turn(&turned, self.rope)?;
        let beside = match &self.indexer {
            None => turned,
            Some(indexer) => concatenate(&[turned, indexer.keys(x, rows)?], -1)?,
        };
        Ok((compressed.expand_dims(1)?, beside))
    }

    pub(super) fn attend(&self, x: &Array, rows: &StepRows<'_>, memory: &[Visible]) -> Mlx<Array> {
        let (queries, index) = match &self.query {
            Query::Direct(linear) => (linear.forward(x)?, None),
            Query::Compressed { down, norm, up } => {
                let compressed = norm.forward(&down.forward(x)?)?;
                let indexer = self.indexer.as_ref();
                let index = indexer.map(|indexer| indexer.queries(x, &compressed, rows));
                (up.forward(&compressed)?, index.transpose()?)
            }
        };
        let count = queries.shape().first().copied().unwrap_or(0);
        let queries = queries.reshape(&[count, self.heads, -1])?;
        let plain = queries.try_index((Ellipsis, ..self.plain_dim))?;
        let turned = rows.turn(&queries.try_index((Ellipsis, self.plain_dim..))?, self.rope)?;
        let (plain, turned) = (by_head(&plain)?, by_head(&turned)?);
        let Some(IndexQueries { queries, weights }) = &index else {
            return rows.by_sequence([&plain, &turned], memory, |span, [plain, turned], memory| {
                self.look(&plain, &turned, None, span.count, memory, rows)
            });
        };
        let parts = [&plain, &turned, queries, weights];
        rows.by_sequence(parts, memory, |span, [plain, turned, queries, weights], memory| {
            let index = IndexQueries { queries, weights };
            self.look(&plain, &turned, Some(&index), span.count, memory, rows)
        })
    }

    /// What queries, `plain [1, heads, count, plain_dim]` and `turned [1, heads, count,
    /// turned_dim]`, which stand at the last positions of `memory`, find there: `[count, heads * value_dim]`.
    fn look(
        &self,
        plain: &Array,
        turned: &Array,
        index: Option<&IndexQueries>,
        count: i32,
        memory: &Visible,
        rows: &StepRows<'_>,
    ) -> Mlx<Array> {
        let Visible { known: KeysValues { keys: compressed, values: beside }, bits, first } =
            memory;
        let positions = memory.known.positions();
        let indexer = self.indexer.as_ref().zip(index);
        let turned_keys = match &self.indexer {
            None => beside.clone(),
            Some(_) => beside.try_index((Ellipsis, ..self.turned_dim))?,
        };
        // A query that sees no more than are chosen looks at all of it, whatever other queries do.
        let indexer = indexer.filter(|(indexer, _)| indexer.chooses(positions));
        let index_keys =
            indexer.map(|_| beside.try_index((Ellipsis, self.turned_dim..))).transpose()?;
        let indexer = indexer.zip(index_keys.as_ref());
        // In the language of compressed vectors whatever the number of queries, so that it gives them the same bits.
        let asked = self.key.each(plain)?;
        let found = cpu::attend(&cpu::Asked {
            queries: &asked,
            keys: compressed,
            beside: Some((turned, &turned_keys)),
            values: compressed,
            kv_bits: *bits,
            first: *first,
            scale: self.scale,
            window: None,
            softcap: None,
            sinks: None,
            index: indexer.map(|((indexer, index), keys)| indexer.for_cpu(index, keys)),
        })?;
        match found {
            Some(found) => {
                let found = found.reshape(&[1, count, self.heads, self.rank])?;
                in_rows(&self.value.each(&found.transpose_axes(&[0, 2, 1, 3])?)?)
            }
            None => {
                let mut mask =
                    (count > 1).then(|| rows.mask(count, positions, None)).transpose()?;
                let mut known = memory.unpacked(plain.dtype())?;
                if self.indexer.is_some() {
                    // Without the indexer's own. Never packed.
                    known.values = turned_keys;
                }
                if let Some(((indexer, index), keys)) = indexer {
                    let chosen = indexer.choose_by_mlx(index, keys, mask.as_ref())?;
                    if let Some(seen) = mask {
                        mask = Some(mask_of(&chosen, positions)?.logical_and(seen)?);
                    } else {
                        let chosen = chosen.flatten(None, None)?;
                        known.keys = known.keys.take_axis(&chosen, 2)?;
                        known.values = known.values.take_axis(&chosen, 2)?;
                    }
                }
                in_rows(&self.look_by_mlx(plain, turned, &known, mask.as_ref())?)
            }
        }
    }

    /// The same on other devices: `[1, heads, count, value_dim]`. `mask [.., count, positions]` says which position each of
    /// several queries looks at.
    fn look_by_mlx(
        &self,
        plain: &Array,
        turned: &Array,
        memory: &KeysValues,
        mask: Option<&Array>,
    ) -> Mlx<Array> {
        let KeysValues { keys: compressed, values: turned_keys } = memory;
        let dtype = turned.dtype();
        let number = |value: f32| Array::from_f32(value).as_dtype(dtype);
        let scaled = turned.multiply(number(self.scale)?)?;
        let mut scores = scaled.matmul(turned_keys.swap_axes(-1, -2)?)?;
        if let Some(mask) = mask {
            scores = select(mask, &scores, number(lowest(dtype))?)?;
        }
        let scores = Some(ScaledDotProductAttentionMask::Array(&scores));
        if mask.is_some() {
            // Many queries: cheaper to make every head's keys and values once.
            let keys = self.key.each_backwards(compressed)?;
            let values = self.value.each(compressed)?;
            scaled_dot_product_attention(plain, &keys, &values, self.scale, scores, None)
        } else {
            // One query: cheaper to ask in the language of compressed vectors.
            let asked = self.key.each(plain)?;
            let found = scaled_dot_product_attention(
                asked, compressed, compressed, self.scale, scores, None,
            )?;
            self.value.each(&found)
        }
    }
}
