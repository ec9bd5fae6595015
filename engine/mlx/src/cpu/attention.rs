//! Attention.

use mlx_rs::Array;
use planaria_config::KvBits;
use planaria_kernels::{Attention, Heads, Index, Number, Pairs, choose};

use super::operation::{View, operation};
use super::{isa, number_of, number_of_all, pool};
use crate::{Mlx, kv_packing};

/// Queries, what they look at, and how.
pub(crate) struct Asked<'a> {
    /// `[1, heads, queries, width]`, at the last positions.
    pub(crate) queries: &'a Array,
    /// `[1, key heads, positions, width]`.
    pub(crate) keys: &'a Array,
    /// Of the same shapes, but of another width: queries and keys whose scores are added.
    pub(crate) beside: Option<(&'a Array, &'a Array)>,
    /// `[1, key heads, positions, any width]`.
    pub(crate) values: &'a Array,
    /// What numbers of keys and values are packed into: then their widths are bytes of rows.
    pub(crate) kv_bits: Option<KvBits>,
    /// The first position in its sequence.
    pub(crate) first: i32,
    pub(crate) scale: f32,
    pub(crate) window: Option<i32>,
    pub(crate) softcap: Option<f32>,
    /// `[heads]`.
    pub(crate) sinks: Option<&'a Array>,
    /// What chooses the positions that each query looks at, if it does not look at all.
    pub(crate) index: Option<AskedIndex<'a>>,
}

/// What positions are chosen by.
pub(crate) struct AskedIndex<'a> {
    /// `[1, index heads, queries, width]`.
    pub(crate) queries: &'a Array,
    /// `[1, 1, positions, width]`.
    pub(crate) keys: &'a Array,
    /// `f32 [1, index heads, queries, 1]`.
    pub(crate) weights: &'a Array,
    /// How many.
    pub(crate) count: usize,
}

/// What the queries find: `[queries, heads * width of a value]`.
pub(crate) fn attend(asked: &Asked<'_>) -> Mlx<Option<Array>> {
    let Asked { queries, keys, beside, values, kv_bits, sinks, scale, softcap, .. } = *asked;
    let mut inputs = vec![queries, keys, values];
    inputs.extend(beside.into_iter().flat_map(|(queries, keys)| [queries, keys]));
    inputs.extend(sinks);
    inputs.extend(asked.index.iter().flat_map(|index| [index.queries, index.keys]));
    // Those that are never packed.
    let mut plain = vec![queries];
    plain.extend(beside.map(|(queries, _)| queries));
    plain.extend(sinks);
    plain.extend(asked.index.iter().flat_map(|index| [index.queries, index.keys]));
    let remembered = [Some(keys), Some(values), beside.map(|(_, keys)| keys)];
    if kv_bits.is_none() {
        plain.extend(remembered.into_iter().flatten());
    }
    let Some(number) = number_of_all(&plain) else { return Ok(None) };
    if asked.index.as_ref().is_some_and(|index| number_of(index.weights) != Some(Number::F32)) {
        return Ok(None);
    }
    inputs.extend(asked.index.iter().map(|index| index.weights));
    let index_count = asked.index.as_ref().map(|index| index.count);
    let ([1, heads, count, _], [1, key_heads, ..], [1, _, _, width]) =
        (queries.shape(), keys.shape(), values.shape())
    else {
        return Ok(None);
    };
    let width = match kv_bits {
        None => Some(*width),
        Some(bits) => kv_packing::width(*width, bits, queries.dtype()),
    };
    let Some(width) = width else { return Ok(None) };
    if *key_heads == 0 || heads % key_heads != 0 {
        return Ok(None);
    }
    let first = usize::try_from(asked.first).unwrap_or(0);
    let window = asked.window.and_then(|window| usize::try_from(window).ok());
    let (has_beside, has_sinks) = (beside.is_some(), sinks.is_some());
    operation(&inputs, &[*count, heads * width], move |inputs, out| {
        let mut copies = [const { Vec::new() }; 8];
        let mut inputs = inputs.iter().zip(&mut copies);
        let mut next =
            |bits| inputs.next().map(|(view, copy)| heads_of(view, (number, bits), copy));
        let bits = kv_bits.map(kv_packing::of_kernels);
        let (Some(queries), Some(keys), Some(values)) = (next(None), next(bits), next(bits)) else {
            unreachable!("three inputs at least");
        };
        let beside = if has_beside { next(None).zip(next(bits)) } else { None };
        let beside = beside.map(|(queries, keys)| Pairs { queries, keys });
        let sinks: Option<Vec<f32>> = has_sinks.then(|| {
            let mut copy = Vec::new();
            let last = inputs.next().map(|(view, _)| view.rows(number, &mut copy).numbers());
            last.unwrap_or_default()
        });
        let chosen = index_count.map(|count| {
            let mut next =
                |number| inputs.next().map(|(view, copy)| heads_of(view, (number, None), copy));
            let (Some(queries), Some(keys), Some(weights)) =
                (next(number), next(number), next(Number::F32))
            else {
                unreachable!("three inputs of an index");
            };
            let chosen = choose(pool(), isa(), &Index { queries, keys, weights, count });
            assert!(chosen.is_ok(), "an index that does not fit: {chosen:?}");
            chosen
        });
        let chosen = chosen.and_then(Result::ok);
        let attention = Attention {
            pairs: Pairs { queries, keys },
            beside,
            values,
            first,
            scale,
            window,
            softcap,
            sinks: sinks.as_deref(),
            chosen: chosen.as_ref(),
        };
        let done = planaria_kernels::attend(pool(), isa(), &attention, out);
        assert!(done.is_ok(), "attention that does not fit: {done:?}");
    })
    .map(Some)
}

/// `[1, heads, positions, width]`, in place if the numbers of a head lie side by side.
fn heads_of<'a>(
    view: &View<'a>,
    (number, packed): (Number, Option<planaria_kernels::KvBits>),
    copy: &'a mut Vec<u8>,
) -> Heads<'a> {
    let (heads, positions, row) = (view.size(2), view.size(1), view.size(0));
    let apart = |axis: usize| view.size(axis) <= 1 || view.stride(axis) >= row;
    let is_in_place = (row <= 1 || view.stride(0) == 1) && apart(1) && apart(2);
    let (bytes, head_stride, position_stride) = if is_in_place {
        (view.bytes, view.stride(2), view.stride(1))
    } else {
        (view.contiguous(copy), positions * row, row)
    };
    let width = packed.map_or(row, |bits| bits.width(row, number));
    Heads { bytes, number, packed, heads, positions, width, head_stride, position_stride }
}
