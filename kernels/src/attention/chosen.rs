//! Positions that are chosen for each query, and attention to these alone (DeepSeek Sparse Attention, DeepSeek-V3.2).
//!
//! **The definition of a score**, of a query and a position that it sees: from 0 on, one head after the other adds
//! `fma(weight, max(query * key, 0), sum)`, where the product is a dot product as in [`crate`]. Nothing is rounded to fewer
//! bits than those of `f32`. The highest scores are chosen, of equal ones those of lower positions. So the choice of a query
//! depends neither on others in its step, nor on threads, nor on the instruction set.

use super::{Attention, BLOCK, Heads, Pairs, ROWS, all_products, weighted};
use crate::isa::Isa;
use crate::number::Number;
use crate::out::Out;
use crate::pool::Pool;
use crate::product::Misfit;
use crate::simd::{LANES, Simd, Task};
use crate::vector::{Vector, Vectors, exp, map, zip};

/// Queries whose scores are in memory at once.
const QUERIES: usize = 16;

/// Positions whose scores a thread makes at once.
const PIECE: usize = 4 * BLOCK;

/// What positions are chosen by.
#[derive(Debug, Clone, Copy)]
pub struct Index<'a> {
    /// `[heads, queries, width]`, which stand at the last positions.
    pub queries: Heads<'a>,
    /// `[1, positions, width]`.
    pub keys: Heads<'a>,
    /// What the products of each head weigh, `[heads, queries, 1]`.
    pub weights: Heads<'a>,
    /// How many positions are chosen for a query; all that it sees if those are no more.
    pub count: usize,
}

impl Index<'_> {
    fn check(&self) -> Result<(), Misfit> {
        let Self { queries, keys, weights, count } = self;
        let same = |what, rows, matrix| {
            if rows == matrix { Ok(()) } else { Err(Misfit::Count { what, rows, matrix }) }
        };
        queries.check("queries of an index")?;
        keys.check("keys of an index")?;
        weights.check("weights of an index")?;
        same("numbers of a query and a key of an index", queries.width, keys.width)?;
        same("key heads of an index", keys.heads, 1)?;
        same("weights of a head of an index", weights.width, 1)?;
        same("heads of an index and weights", queries.heads, weights.heads)?;
        same("queries of an index and weights", queries.positions, weights.positions)?;
        let behind = queries.positions.saturating_sub(keys.positions);
        same("queries of an index at no position", behind, 0)?;
        same("chosen positions that are none", usize::from(*count == 0), 0)?;
        let is_countable = u32::try_from(keys.positions).is_ok();
        same("positions beyond all numbers", usize::from(!is_countable), 0)
    }

    /// How many positions query `query` sees.
    const fn seen(&self, query: usize) -> usize {
        self.keys.positions - self.queries.positions + query + 1
    }
}

/// For each query the positions that were chosen for it, counted from the first key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Each in order, and none of them empty.
    lists: Vec<Vec<u32>>,
}

impl Chosen {
    /// Those of a query, in order.
    #[must_use]
    pub fn of(&self, query: usize) -> &[u32] {
        self.lists.get(query).map_or(&[], Vec::as_slice)
    }

    pub(super) const fn queries(&self) -> usize {
        self.lists.len()
    }

    /// Whether there are some for that query, all below `end`.
    pub(super) fn is_within(&self, query: usize, end: usize) -> bool {
        self.of(query).last().is_some_and(|last| (*last as usize) < end)
    }
}

/// The positions that each query looks at.
///
/// # Errors
/// When sizes do not fit.
pub fn choose(pool: &Pool, isa: Isa, index: &Index<'_>) -> Result<Chosen, Misfit> {
    index.check()?;
    let count = index.queries.positions;
    let mut lists = vec![Vec::new(); count];
    let pieces = index.keys.positions.div_ceil(PIECE);
    let mut scores = vec![0.0; QUERIES.min(count) * PIECE * pieces];
    for (group, lists) in lists.chunks_mut(QUERIES).enumerate() {
        let first = group * QUERIES;
        let queries = first..first + lists.len();
        let of_piece = lists.len() * PIECE;
        // What the last of these queries sees.
        let pieces = index.seen(queries.end - 1).div_ceil(PIECE);
        let scores = &mut scores[..pieces * of_piece];
        if index.seen(queries.end - 1) > index.count {
            pool.each_part(scores, of_piece, &|piece, scores| {
                isa.run(Scores { index, queries: queries.clone(), first: piece * PIECE, scores });
            });
        }
        let scores = &*scores;
        pool.each_part(lists, 1, &|query, list| {
            let score = |position: u32| {
                let position = position as usize;
                scores[position / PIECE * of_piece + query * PIECE + position % PIECE]
            };
            list[0] = best(index.seen(first + query), index.count, score);
        });
    }
    Ok(Chosen { lists })
}

/// The `count` positions below `seen` with the highest scores, in order; of equal ones the lower.
#[expect(clippy::cast_possible_truncation, reason = "positions are counted by `u32`")]
fn best(seen: usize, count: usize, score: impl Fn(u32) -> f32) -> Vec<u32> {
    let mut all: Vec<u32> = (0..seen as u32).collect();
    if seen > count {
        let order = |a: &u32, b: &u32| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
        all.select_nth_unstable_by(count - 1, order);
        all.truncate(count);
        all.sort_unstable();
    }
    all
}

/// Scores of some queries and the positions from `first` on, `[queries, PIECE]`.
struct Scores<'a> {
    index: &'a Index<'a>,
    queries: std::ops::Range<usize>,
    first: usize,
    scores: &'a mut [f32],
}

impl Task for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { index: Index { queries, keys, weights, .. }, first, .. } = self;
        let vectors = keys.width.div_ceil(LANES);
        let mut piece = Vectors::new(PIECE * vectors);
        let end = keys.positions.min(first + PIECE);
        for (key, to) in (first..end).zip(piece.chunks_mut(vectors)) {
            keys.load(simd, 0, key, to);
        }
        let mut x = Vectors::new(queries.heads * vectors);
        let mut products = vec![0.0; queries.heads * BLOCK];
        for (query, scores) in self.queries.zip(self.scores.chunks_mut(PIECE)) {
            for (head, to) in x.chunks_mut(vectors).enumerate() {
                queries.load(simd, head, query, to);
            }
            for (block, scores) in piece.chunks(BLOCK * vectors).zip(scores.chunks_mut(BLOCK)) {
                all_products(simd, Number::F32, &x, block, vectors, &mut products, BLOCK);
                let (sums, _) = scores.as_chunks_mut::<LANES>();
                sums.fill([0.0; LANES]);
                for (head, products) in products.chunks(BLOCK).enumerate() {
                    let mut weight = [[0.0; LANES]];
                    weights.load(simd, head, query, &mut weight);
                    let weight = [weight[0][0]; LANES];
                    for (sum, product) in sums.iter_mut().zip(products.as_chunks::<LANES>().0) {
                        let bent =
                            map(*product, |product| if product < 0.0 { 0.0 } else { product });
                        *sum = fma(weight, bent, *sum);
                    }
                }
                // Of zeros there is one kind.
                sums.iter_mut().for_each(|sum| *sum = map(*sum, |sum| sum + 0.0));
            }
        }
    }
}

/// `a * b + c`, each rounded once.
#[inline(always)]
fn fma(a: Vector, b: Vector, c: Vector) -> Vector {
    let mut result = c;
    for lane in 0..LANES {
        result[lane] = a[lane].mul_add(b[lane], c[lane]);
    }
    result
}

/// What the queries find at the positions that are chosen for them.
pub(super) fn attend(
    pool: &Pool,
    isa: Isa,
    attention: &Attention<'_>,
    chosen: &Chosen,
    out: &Out<'_>,
) {
    let Pairs { queries, keys } = &attention.pairs;
    let sharing = queries.heads / keys.heads;
    let parts = sharing.div_ceil(ROWS);
    pool.each(queries.positions * keys.heads * parts, &|part| {
        let (query, part) = (part / (keys.heads * parts), part % (keys.heads * parts));
        let (head, part) = (part / parts, part % parts);
        let heads = head * sharing + part * ROWS..head * sharing + sharing.min((part + 1) * ROWS);
        isa.run(Part { attention, positions: chosen.of(query), query, key_head: head, heads, out });
    });
}

/// One query of some heads that share a key head.
struct Part<'a> {
    attention: &'a Attention<'a>,
    /// That it looks at.
    positions: &'a [u32],
    query: usize,
    key_head: usize,
    heads: std::ops::Range<usize>,
    out: &'a Out<'a>,
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "see `Out`")]
    fn run<S: Simd>(self, simd: S) {
        let Attention { pairs, beside, values, first, .. } = self.attention;
        let number = pairs.queries.number;
        let rows = self.heads.len();
        let width = self.positions.len().next_multiple_of(BLOCK);
        let mut scores = vec![0.0; rows * width];
        self.scores(simd, pairs, &mut scores, width);
        if let Some(beside) = beside {
            let mut more = vec![0.0; scores.len()];
            self.scores(simd, beside, &mut more, width);
            let pairs = scores.as_chunks_mut::<LANES>().0.iter_mut().zip(more.as_chunks().0);
            for (to, from) in pairs {
                *to = number.round(simd, zip(*to, *from, |a, b| a + b));
            }
        }
        for scores in scores.chunks_mut(width) {
            self.shares(simd, scores);
        }

        let vectors = values.width.div_ceil(LANES);
        let mut sums = Vectors::new(rows * vectors);
        let mut block = Vectors::new(BLOCK * vectors);
        let mut done = 0;
        for positions in self
            .positions
            .chunk_by(|a, b| (first + *a as usize) / BLOCK == (first + *b as usize) / BLOCK)
        {
            for (position, to) in positions.iter().zip(block.chunks_mut(vectors)) {
                values.load(simd, self.key_head, *position as usize, to);
            }
            let shares = |row: usize| {
                let start = row * width + done;
                &scores[start..start + positions.len()]
            };
            weighted(simd, &block, vectors, shares, &mut sums);
            done += positions.len();
        }
        for (head, sums) in self.heads.clone().zip(sums.chunks(vectors)) {
            let values = &sums.as_flattened()[..values.width];
            // SAFETY: each pair of query and head is one row of one part.
            unsafe { self.out.write_some(simd, self.query, head * values.len(), values) }
        }
    }
}

impl Part<'_> {
    /// `scores [heads, width]` of the chosen positions, side by side.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, pairs: &Pairs<'_>, scores: &mut [f32], width: usize) {
        let Pairs { queries, keys } = pairs;
        let vectors = queries.width.div_ceil(LANES);
        let mut x = Vectors::new(self.heads.len() * vectors);
        for (head, to) in self.heads.clone().zip(x.chunks_mut(vectors)) {
            queries.load_scaled(simd, head, self.query, self.attention.scale, to);
        }
        let mut block = Vectors::new(BLOCK * vectors);
        for (number, positions) in self.positions.chunks(BLOCK).enumerate() {
            for (position, to) in positions.iter().zip(block.chunks_mut(vectors)) {
                keys.load(simd, self.key_head, *position as usize, to);
            }
            let to = &mut scores[number * BLOCK..];
            all_products(simd, queries.number, &x, &block, vectors, to, width);
        }
    }

    /// What each chosen position has of the whole, in place of its score; 0 behind them.
    #[inline(always)]
    fn shares<S: Simd>(&self, simd: S, scores: &mut [f32]) {
        let number = self.attention.pairs.queries.number;
        let (own, others) = scores.split_at_mut(self.positions.len());
        others.fill(f32::NEG_INFINITY);
        let most = own.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (vectors, _) = scores.as_chunks_mut::<LANES>();
        for scores in vectors.iter_mut() {
            *scores = map(*scores, |score| exp(score - most));
        }
        let mut lanes = [0.0; LANES];
        for (position, power) in self.positions.iter().zip(vectors.as_flattened()) {
            lanes[(self.attention.first + *position as usize) % LANES] += power;
        }
        let part = 1.0 / simd.sum(simd.load(&lanes));
        for scores in vectors.iter_mut() {
            *scores = number.round(simd, map(*scores, |each| each * part));
        }
    }
}
