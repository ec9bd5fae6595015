//! Attention: what all kinds of it share, and grouped queries. Latent attention is in [`latent`].

use std::cell::RefCell;
use std::ops::Range;

use mlx_rs::fast::{ScaledDotProductAttentionMask, scaled_dot_product_attention};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{arange, concatenate, log, select, sigmoid, softmax_axis, tanh};
use mlx_rs::{Array, Dtype};
use planaria_config::KvBits;
use planaria_engine::architecture::{
    Attention as AttentionParts, GroupedQuery as GroupedQueryParts, LayerShare, QueryGrowth,
};

use super::batch::{RowSpan, Rows};
use super::error::LoadError;
use super::kv_cache::{KeysValues, KvCache, Visible};
use super::latent::LatentAttention;
use super::linear::{Linear, Projected, Projection, as_dim};
use super::norm::RmsNorm;
use super::rope::{Rope, Turns};
use super::weights::Weights;
use super::{Mlx, cpu};

/// Some rows of a step, and what all layers need to know of them.
pub(super) struct StepRows<'a> {
    pub(super) rows: &'a Rows,
    ropes: &'a [Rope],
    known: &'a Known,
}

/// What is made once for some rows of a step, for all layers.
pub(super) struct Known {
    /// By rope.
    turns: Vec<Turns>,
    masks: RefCell<Vec<(Sight, Array)>>,
    growths: RefCell<Vec<(QueryGrowth, Array)>>,
}

impl Known {
    pub(super) fn of(rows: &Rows, ropes: &[Rope], dtype: Dtype) -> Mlx<Self> {
        let turns = ropes.iter().map(|rope| rope.turns(&rows.positions, dtype));
        let turns = turns.collect::<Mlx<_>>()?;
        Ok(Self { turns, masks: RefCell::default(), growths: RefCell::default() })
    }
}

/// What decides who sees whom: `queries` stand at the last of `keys` positions, and each sees
/// `window` of them, itself the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sight {
    queries: i32,
    keys: i32,
    window: i32,
}

impl<'a> StepRows<'a> {
    pub(super) const fn new(rows: &'a Rows, ropes: &'a [Rope], known: &'a Known) -> Self {
        Self { rows, ropes, known }
    }

    /// Turns `x [rows, heads, head_dim]` by the rope of that number.
    pub(super) fn turn(&self, x: &Array, rope: usize) -> Mlx<Array> {
        match (self.ropes.get(rope), self.known.turns.get(rope)) {
            (Some(rope), Some(turns)) => rope.forward(x, turns),
            _ => Err(mlx_rs::error::Exception::custom("no such rope")),
        }
    }

    /// Calls `look` for every sequence with its part of each of `queries [1, heads, rows, ..]` and
    /// what it remembers, and joins what it gave, `[its rows, width]`: `[rows, width]`.
    pub(super) fn by_sequence<const N: usize>(
        &self,
        queries: [&Array; N],
        memory: &[Visible],
        look: impl Fn(RowSpan, [Array; N], &Visible) -> Mlx<Array>,
    ) -> Mlx<Array> {
        let mut parts = Vec::with_capacity(N);
        for queries in queries {
            parts.push(self.rows.split(queries)?.into_iter());
        }
        let mut found = Vec::with_capacity(self.rows.spans.len());
        for span in &self.rows.spans {
            let own: Option<Vec<Array>> = parts.iter_mut().map(Iterator::next).collect();
            let own = own.and_then(|own| <[Array; N]>::try_from(own).ok());
            let own = own.zip(memory.get(span.sequence));
            let (own, memory) = own.ok_or_else(|| {
                mlx_rs::error::Exception::custom("a sequence without rows or memory")
            })?;
            found.push(look(*span, own, memory)?);
        }
        match found.as_slice() {
            [one] => Ok(one.clone()),
            many => concatenate(many, 0),
        }
    }

    /// What the queries of each row are multiplied by, `[rows, 1, 1]`. Made once per step for all layers.
    fn growth(&self, growth: QueryGrowth, dtype: Dtype) -> Mlx<Array> {
        if let Some((_, known)) = self.known.growths.borrow().iter().find(|(own, _)| *own == growth)
        {
            return known.as_dtype(dtype);
        }
        let context = i32::try_from(growth.context).unwrap_or(i32::MAX);
        let times = self.rows.positions.floor_divide(Array::from_int(context))?;
        let times = times.as_dtype(Dtype::Float32)?.add(Array::from_f32(1.0))?;
        let factors = log(times)?.multiply(Array::from_f32(growth.rate))?;
        let factors = factors.add(Array::from_f32(1.0))?.reshape(&[-1, 1, 1])?;
        self.known.growths.borrow_mut().push((growth, factors.clone()));
        factors.as_dtype(dtype)
    }

    /// `bool [queries, keys]`: which key each query sees. Made once per step for all layers.
    pub(super) fn mask(&self, queries: i32, keys: i32, window: Option<i32>) -> Mlx<Array> {
        let sight = Sight { queries, keys, window: window.unwrap_or(i32::MAX) };
        if let Some((_, mask)) = self.known.masks.borrow().iter().find(|(own, _)| *own == sight) {
            return Ok(mask.clone());
        }
        let own = arange::<_, i32>(keys - queries, keys, None)?.expand_dims(1)?;
        let others = arange::<_, i32>(0, keys, None)?.expand_dims(0)?;
        let mut mask = own.ge(&others)?;
        if let Some(window) = window {
            mask = mask.logical_and(own.lt(others.add(Array::from_int(window))?)?)?;
        }
        self.known.masks.borrow_mut().push((sight, mask.clone()));
        Ok(mask)
    }
}

/// Gives the number of a rope among those of the model.
pub(super) type RopeOf<'a> =
    &'a mut dyn FnMut(&planaria_engine::architecture::Rope) -> Result<usize, LoadError>;

/// Attention of one layer, of either kind.
pub(super) struct Attention {
    kind: Kind,
    /// What numbers that are remembered are packed into.
    kv_bits: Option<KvBits>,
}

enum Kind {
    Grouped(GroupedQuery),
    Latent(LatentAttention),
}

impl Attention {
    pub(super) fn take(
        weights: &mut Weights<'_>,
        parts: &AttentionParts,
        share: Option<&LayerShare>,
        kv_bits: Option<KvBits>,
        rope_of: RopeOf<'_>,
    ) -> Result<Self, LoadError> {
        let kind = match parts {
            AttentionParts::Grouped(parts) => {
                let rope = parts.rope.as_ref().map(rope_of).transpose()?;
                Kind::Grouped(GroupedQuery::take(weights, parts, share, rope)?)
            }
            AttentionParts::Latent(parts) => {
                Kind::Latent(LatentAttention::take(weights, parts, share, rope_of)?)
            }
        };
        Ok(Self { kind, kv_bits })
    }

    /// The layer at whose keys and values it looks, if these are not its own.
    pub(super) const fn kv_of(&self) -> Option<u32> {
        match &self.kind {
            Kind::Grouped(grouped) => grouped.kv_of,
            Kind::Latent(_) => None,
        }
    }

    /// How many tokens it sees; `None` is all.
    pub(super) fn window(&self) -> Option<u32> {
        match &self.kind {
            Kind::Grouped(grouped) => grouped.window.and_then(|window| window.try_into().ok()),
            Kind::Latent(_) => None,
        }
    }

    /// An empty cache for a new sequence.
    pub(super) const fn new_cache(&self) -> KvCache {
        match &self.kind {
            Kind::Grouped(grouped) if grouped.kv_of.is_some() => KvCache::counting(),
            Kind::Grouped(grouped) => KvCache::new(grouped.window, self.kv_bits),
            Kind::Latent(_) => KvCache::new(None, self.kv_bits),
        }
    }

    /// Puts what is to be remembered of `x [rows, hidden]` into the caches of their sequences, and
    /// gives what each sequence may look at now.
    pub(super) fn remember(
        &self,
        x: &Array,
        rows: &StepRows<'_>,
        caches: &mut [&mut KvCache],
    ) -> Mlx<Vec<Visible>> {
        let (keys, values) = match &self.kind {
            Kind::Grouped(grouped) => grouped.keys_values(x, rows)?,
            Kind::Latent(latent) => latent.keys_values(x, rows)?,
        };
        let keys = rows.rows.split(&by_head(&keys)?)?;
        let values = rows.rows.split(&by_head(&values)?)?;
        keys.into_iter()
            .zip(values)
            .zip(caches)
            .map(|((keys, values), cache)| cache.append(KeysValues { keys, values }))
            .collect()
    }

    /// What the queries of `x [rows, hidden]` find in the memory of their sequences: same shape.
    pub(super) fn attend(
        &self,
        x: &Array,
        rows: &StepRows<'_>,
        memory: &[Visible],
    ) -> Mlx<Projected> {
        match &self.kind {
            Kind::Grouped(grouped) => {
                let found = grouped.gated(grouped.attend(x, rows, memory)?, x)?;
                grouped.output.forward(&found)
            }
            Kind::Latent(latent) => latent.output.forward(&latent.attend(x, rows, memory)?),
        }
    }

    /// Of what partial sums of all units came to.
    pub(super) fn finish(&self, sum: Array, dtype: Dtype) -> Mlx<Array> {
        match &self.kind {
            Kind::Grouped(grouped) => grouped.output.finish(sum, dtype),
            Kind::Latent(latent) => latent.output.finish(sum, dtype),
        }
    }
}

/// Grouped-query attention.
pub(super) struct GroupedQuery {
    query: Linear,
    /// `None`: keys and values are those of the layer [`Self::kv_of`].
    key: Option<Linear>,
    kv_of: Option<u32>,
    /// `None`: values are keys before they are normed and turned.
    value: Option<Linear>,
    output: Projection,
    /// Of every head.
    gate: Option<Linear>,
    query_norm: Option<RmsNorm>,
    key_norm: Option<RmsNorm>,
    value_norm: Option<RmsNorm>,
    norms_turned: bool,
    rope: Option<usize>,
    growth: Option<QueryGrowth>,
    head_dim: i32,
    /// Where key heads have different numbers of them: runs of key heads, and the query heads of each.
    uneven: Vec<Run>,
    scale: f32,
    window: Option<i32>,
    softcap: Option<f32>,
    sinks: Option<Array>,
}

impl GroupedQuery {
    fn take(
        weights: &mut Weights<'_>,
        parts: &GroupedQueryParts,
        share: Option<&LayerShare>,
        rope: Option<usize>,
    ) -> Result<Self, LoadError> {
        let widths = share.map(|share| share.attention.as_slice());
        let queries_of = share.map(|share| share.queries_of.as_slice()).unwrap_or_default();
        let is_even = queries_of.windows(2).all(|pair| pair.first() == pair.last());
        let [first, count] = parts.sinks.as_ref().map_or([0, 0], |sinks| [sinks.first, sinks.of]);
        let own = parts.kv_of.is_none();
        let norms = [parts.query_norm.as_ref(), parts.key_norm.as_ref().filter(|_| own)];
        let [query_norm, key_norm] =
            norms.map(|norm| norm.map(|norm| RmsNorm::take(weights, norm)).transpose());
        let head_dim = as_dim(parts.head_dim)?;
        let value_norm = parts.value_eps.map(|eps| RmsNorm::unweighted(head_dim, eps));
        let key = own.then_some(&parts.key);
        let [key, value, gate] = [key, parts.value.as_ref().filter(|_| own), parts.gate.as_ref()]
            .map(|linear| linear.map(|linear| Linear::take(weights, linear)).transpose());
        Ok(Self {
            gate: gate?,
            query_norm: query_norm?,
            key_norm: key_norm?,
            value_norm: value_norm.transpose()?,
            norms_turned: parts.norms_turned,
            query: Linear::take(weights, &parts.query)?,
            key: key?,
            kv_of: parts.kv_of,
            value: value?,
            output: Projection::take(weights, &parts.output, widths)?,
            rope,
            growth: parts.growth,
            head_dim,
            uneven: if is_even { Vec::new() } else { runs(queries_of)? },
            scale: parts.scale,
            window: parts.window.map(as_dim).transpose()?,
            softcap: parts.softcap,
            sinks: match &parts.sinks {
                None => None,
                Some(sinks) if parts.heads == count => Some(weights.take(&sinks.name)?),
                Some(sinks) => {
                    let own = as_dim(first)?..as_dim(first + parts.heads)?;
                    Some(weights.take(&sinks.name)?.try_index(own)?.contiguous()?)
                }
            },
        })
    }

    fn keys_values(&self, x: &Array, rows: &StepRows<'_>) -> Mlx<(Array, Array)> {
        let key = self.key.as_ref();
        let key = key.ok_or_else(|| mlx_rs::error::Exception::custom("a layer without keys"))?;
        let keys = key.forward(x)?;
        let values = match &self.value {
            Some(value) => self.in_heads(&value.forward(x)?)?,
            None => self.in_heads(&keys)?,
        };
        let values = match &self.value_norm {
            Some(norm) => norm.forward_as(&values)?,
            None => values,
        };
        Ok((self.placed(self.key_norm.as_ref(), &keys, rows)?, values))
    }

    fn attend(&self, x: &Array, rows: &StepRows<'_>, memory: &[Visible]) -> Mlx<Array> {
        let queries = self.query.forward(x)?;
        let mut queries = self.placed(self.query_norm.as_ref(), &queries, rows)?;
        if let Some(growth) = self.growth {
            queries = queries.multiply(rows.growth(growth, queries.dtype())?)?;
        }
        let queries = by_head(&queries)?;
        rows.by_sequence([&queries], memory, |span, [queries], memory| {
            if self.uneven.is_empty() {
                return self.look(&queries, span.count, memory, self.sinks.as_ref(), rows);
            }
            let mut found = Vec::with_capacity(self.uneven.len());
            for (keys, own) in &self.uneven {
                let queries = queries.try_index((.., own.clone()))?;
                let sinks = self.sinks.as_ref().map(|sinks| sinks.try_index(own.clone()));
                let part = |all: &Array| all.try_index((.., keys.clone()));
                let KeysValues { keys, values } = &memory.known;
                let known = KeysValues { keys: part(keys)?, values: part(values)? };
                let memory = Visible { known, ..*memory };
                let sinks = sinks.transpose()?;
                found.push(self.look(&queries, span.count, &memory, sinks.as_ref(), rows)?);
            }
            concatenate(&found, -1)
        })
    }

    /// What heads found for `x [rows, hidden]`, `[rows, heads * head_dim]`, as far as their gates let it through.
    fn gated(&self, found: Array, x: &Array) -> Mlx<Array> {
        let Some(gate) = &self.gate else { return Ok(found) };
        let open = sigmoid(gate.forward(x)?)?.expand_dims(-1)?;
        self.in_heads(&found)?.multiply(open)?.reshape(found.shape())
    }

    /// What `queries [1, heads, count, head_dim]`, which stand at the last positions of `memory`,
    /// find there: `[count, heads * head_dim]`.
    fn look(
        &self,
        queries: &Array,
        count: i32,
        memory: &Visible,
        sinks: Option<&Array>,
        rows: &StepRows<'_>,
    ) -> Mlx<Array> {
        let Visible { known, bits, first } = memory;
        let asked = cpu::Asked {
            queries,
            keys: &known.keys,
            beside: None,
            values: &known.values,
            kv_bits: *bits,
            first: *first,
            scale: self.scale,
            window: self.window,
            softcap: self.softcap,
            sinks,
            index: None,
        };
        match cpu::attend(&asked)? {
            Some(found) => Ok(found),
            None => {
                let known = memory.unpacked(queries.dtype())?;
                in_rows(&self.look_by_mlx(queries, count, &known, sinks, rows)?)
            }
        }
    }

    /// The same on other devices: shaped as the queries.
    fn look_by_mlx(
        &self,
        queries: &Array,
        count: i32,
        memory: &KeysValues,
        sinks: Option<&Array>,
        rows: &StepRows<'_>,
    ) -> Mlx<Array> {
        let positions = memory.positions();
        let nearer;
        let memory = match self.window {
            Some(window) if count == 1 && positions > window => {
                nearer = memory.last(window)?;
                &nearer
            }
            _ => memory,
        };
        let is_cut = self.window.is_some_and(|window| count > 1 && positions > window);
        if let Some(cap) = self.softcap {
            let mask = (count > 1)
                .then(|| rows.mask(count, memory.positions(), self.window.filter(|_| is_cut)))
                .transpose()?;
            return self.look_with_bent_scores(queries, count, memory, mask.as_ref(), cap);
        }
        let cut = is_cut.then(|| rows.mask(count, positions, self.window)).transpose()?;
        let mask = match &cut {
            Some(mask) => Some(ScaledDotProductAttentionMask::Array(mask)),
            None => (count > 1).then_some(ScaledDotProductAttentionMask::Causal),
        };
        let KeysValues { keys, values } = memory;
        scaled_dot_product_attention(queries, keys, values, self.scale, mask, sinks)
    }

    /// MLX has no kernel for this, so it is put together.
    fn look_with_bent_scores(
        &self,
        queries: &Array,
        count: i32,
        memory: &KeysValues,
        mask: Option<&Array>,
        cap: f32,
    ) -> Mlx<Array> {
        let dtype = queries.dtype();
        let number = |value: f32| Array::from_f32(value).as_dtype(dtype);
        // As many queries to each key head, whatever part of the heads this is.
        let heads = |array: &Array| array.shape().get(1).copied().unwrap_or(1).max(1);
        let sharing = heads(queries) / heads(&memory.keys);
        let shape = [1, -1, sharing, count, self.head_dim];
        let queries = queries.multiply(number(self.scale)?)?.reshape(&shape)?;
        let keys = memory.keys.expand_dims(2)?.swap_axes(-1, -2)?;
        let scores = queries.matmul(&keys)?;
        let mut scores = tanh(scores.divide(number(cap)?)?)?.multiply(number(cap)?)?;
        if let Some(mask) = mask {
            scores = select(mask, &scores, number(lowest(dtype))?)?;
        }
        let shares = softmax_axis(&scores, -1, true)?;
        let found = shares.matmul(memory.values.expand_dims(2)?)?;
        found.reshape(&[1, -1, count, self.head_dim])
    }

    /// `x [rows, heads * head_dim]`, normed and turned in the order of the layer: `[rows, heads, head_dim]`.
    fn placed(&self, norm: Option<&RmsNorm>, x: &Array, rows: &StepRows<'_>) -> Mlx<Array> {
        if !self.norms_turned {
            return self.turned(self.normed(norm, x)?, rows);
        }
        let turned = self.turned(self.in_heads(x)?, rows)?;
        norm.map_or_else(|| Ok(turned.clone()), |norm| norm.forward(&turned))
    }

    /// `x [rows, heads, head_dim]` turned, if the layer knows positions.
    fn turned(&self, x: Array, rows: &StepRows<'_>) -> Mlx<Array> {
        match self.rope {
            None => Ok(x),
            Some(rope) => rows.turn(&x, rope),
        }
    }

    /// `x [rows, heads * head_dim]`, normed head by head or all heads together: `[rows, heads, head_dim]`.
    fn normed(&self, norm: Option<&RmsNorm>, x: &Array) -> Mlx<Array> {
        match norm {
            None => self.in_heads(x),
            Some(norm) if norm.width() == self.head_dim => norm.forward(&self.in_heads(x)?),
            Some(norm) => self.in_heads(&norm.forward(x)?),
        }
    }

    /// `[rows, heads * head_dim]` as `[rows, heads, head_dim]`.
    fn in_heads(&self, x: &Array) -> Mlx<Array> {
        x.reshape(&[x.shape().first().copied().unwrap_or(0), -1, self.head_dim])
    }
}

/// Key heads in a row with as many query heads each, and those.
type Run = (Range<i32>, Range<i32>);

/// The runs of key heads that have any query heads.
fn runs(queries_of: &[u32]) -> Result<Vec<Run>, LoadError> {
    let mut runs = Vec::new();
    let (mut key, mut query) = (0, 0);
    for same in queries_of.chunk_by(|a, b| a == b) {
        let keys = key..key + i32::try_from(same.len()).unwrap_or(i32::MAX);
        let queries = query..query + as_dim(same.iter().sum())?;
        (key, query) = (keys.end, queries.end);
        if !queries.is_empty() {
            runs.push((keys, queries));
        }
    }
    Ok(runs)
}

/// `[rows, heads, head_dim]` as `[1, heads, rows, head_dim]`.
pub(super) fn by_head(x: &Array) -> Mlx<Array> {
    x.expand_dims(0)?.transpose_axes(&[0, 2, 1, 3])
}

/// `[1, heads, rows, width]` as `[rows, heads * width]`.
pub(super) fn in_rows(x: &Array) -> Mlx<Array> {
    let rows = x.shape().get(2).copied().unwrap_or(0);
    x.transpose_axes(&[0, 2, 1, 3])?.reshape(&[rows, -1])
}

/// The score of a key that is not seen: the least number of a type of floats.
pub(super) const fn lowest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Float16 => -65_504.0,
        // The largest of BF16: as F32's, with 8 bits of mantissa.
        Dtype::Bfloat16 => f32::from_bits(0xff7f_0000),
        _ => f32::MIN,
    }
}
