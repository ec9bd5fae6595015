//! Attention: softmax of the scores of keys, and the sum of values that are weighted with it.
//!
//! **The definition**, for a query and the positions that it sees. A score is a dot product as in [`crate`], of the query
//! times the scale. Powers of e of the scores, less the highest, are added up in sixteen lanes, lane `position % 16`, in
//! the order of positions; then as in a dot product. Weighted values are added up one position after the other, within
//! blocks of [`BLOCK`] positions, and these sums one block after the other. Lanes and blocks are counted from position 0
//! of the sequence. So the bits depend neither on how many queries share a step, nor on what a cache has forgotten
//! that none of them sees, nor on threads.
//!
//! Scores, softmax and result are rounded to the type of the queries where MLX rounds them.
//!
//! Keys and values may be packed ([`KvBits`]). Each number of them is then `q * scale + bias`, rounded once to an `f32`.
//!
//! A query may look at some of these positions only ([`Chosen`]). They keep their lanes and blocks, and the others are left
//! out, which gives the bits that shares of 0 would.
#![expect(clippy::indexing_slicing, reason = "of arrays, and of slices of the very length")]
#![expect(clippy::needless_range_loop, reason = "several arrays are gone through at once")]

mod chosen;

use std::ops::Range;

pub use self::chosen::{Chosen, Index, choose};

use crate::isa::Isa;
use crate::kv_bits::{KV_GROUP, KvBits};
use crate::number::Number;
use crate::out::Out;
use crate::pool::Pool;
use crate::product::Misfit;
use crate::simd::{LANES, Simd, Task};
use crate::vector::{Vector, Vectors, exp, map, tanh, zip};

/// Positions whose values are added up by themselves.
pub const BLOCK: usize = 64;

/// Queries that a thread takes at once: keys and values are read once for all of them.
const ROWS: usize = 16;

/// `[heads, positions, width]` of numbers.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// The bytes, little endian.
    pub bytes: &'a [u8],
    /// How each number is stored; of packed ones, each scale and bias.
    pub number: Number,
    /// How numbers are packed, if they are.
    pub packed: Option<KvBits>,
    /// How many heads.
    pub heads: usize,
    /// How many positions.
    pub positions: usize,
    /// Numbers of each head at each position.
    pub width: usize,
    /// Numbers from one head to the next; bytes, if they are packed.
    pub head_stride: usize,
    /// Numbers from one position to the next; bytes, if they are packed.
    pub position_stride: usize,
}

impl<'a> Heads<'a> {
    fn check(&self, what: &'static str) -> Result<(), Misfit> {
        if self.packed.is_some() && !self.width.is_multiple_of(KV_GROUP) {
            return Err(Misfit::Count {
                what: "packed numbers of a head and of a group",
                rows: self.width,
                matrix: KV_GROUP,
            });
        }
        let (item, row) = (self.item_bytes(), self.row_items());
        let last = |count: usize, stride: usize| count.saturating_sub(1).saturating_mul(stride);
        let wanted = last(self.heads, self.head_stride)
            .saturating_add(last(self.positions, self.position_stride))
            .saturating_add(row)
            .saturating_mul(item);
        let bytes = self.bytes.len();
        let is_empty = self.heads == 0 || self.positions == 0;
        let overlap = |count: usize, stride: usize| count > 1 && stride < row.max(1);
        if self.width == 0
            || overlap(self.heads, self.head_stride)
            || overlap(self.positions, self.position_stride)
        {
            let (rows, matrix) = (row, self.head_stride.min(self.position_stride));
            return Err(Misfit::Count {
                what: "numbers of a head and from one to the next",
                rows,
                matrix,
            });
        }
        if is_empty || wanted <= bytes { Ok(()) } else { Err(Misfit::Size { what, bytes, wanted }) }
    }

    #[inline(always)]
    fn at(&self, head: usize, position: usize) -> &'a [u8] {
        let size = self.item_bytes();
        let start = (head * self.head_stride + position * self.position_stride) * size;
        self.bytes.get(start..start + self.row_items() * size).unwrap_or_default()
    }

    /// Bytes of what strides count.
    #[inline(always)]
    const fn item_bytes(&self) -> usize {
        if self.packed.is_some() { 1 } else { self.number.bytes() }
    }

    /// How many of these a row has.
    #[inline(always)]
    const fn row_items(&self) -> usize {
        match self.packed {
            None => self.width,
            Some(bits) => bits.row_bytes(self.width, self.number),
        }
    }

    /// Numbers of one position of one head, in vectors filled up with zeros.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, head: usize, position: usize, to: &mut [Vector]) {
        let to = &mut to.as_flattened_mut()[..self.width];
        let row = self.at(head, position);
        match self.packed {
            None => self.number.load(simd, row, to),
            Some(bits) => bits.unpack(simd, row, self.number, to),
        }
    }

    /// The same of a query, times the scale.
    #[inline(always)]
    fn load_scaled<S: Simd>(
        &self,
        simd: S,
        head: usize,
        position: usize,
        scale: f32,
        to: &mut [Vector],
    ) {
        let scale = self.number.round(simd, [scale; LANES]);
        self.load(simd, head, position, to);
        for vector in to {
            *vector = self.number.round(simd, zip(*vector, scale, |x, scale| x * scale));
        }
    }
}

/// Queries with keys.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// `[heads, queries, width]`.
    pub queries: Heads<'a>,
    /// `[key heads, positions, width]`; as many query heads have each in common.
    pub keys: Heads<'a>,
}

/// What is asked, and of what.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Their products are the scores. The queries stand at the last positions.
    pub pairs: Pairs<'a>,
    /// Whose scores are added to these, if there are any.
    pub beside: Option<Pairs<'a>>,
    /// `[key heads, positions, any width]`.
    pub values: Heads<'a>,
    /// Position of the first key in its sequence.
    pub first: usize,
    /// What queries are multiplied by.
    pub scale: f32,
    /// How many positions a query sees, its own the last; all if `None`.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A score for each head that takes a share and gives nothing.
    pub sinks: Option<&'a [f32]>,
    /// The positions that each query looks at, in place of all that it sees; without windows, softcaps and sinks.
    pub chosen: Option<&'a Chosen>,
}

impl Attention<'_> {
    fn check(&self) -> Result<(), Misfit> {
        let Self { pairs: Pairs { queries, keys }, beside, values, sinks, .. } = self;
        let same = |what, rows, matrix| {
            if rows == matrix { Ok(()) } else { Err(Misfit::Count { what, rows, matrix }) }
        };
        for pairs in [Some(self.pairs), *beside].into_iter().flatten() {
            let Pairs { queries: own, keys: own_keys } = pairs;
            own.check("queries")?;
            own_keys.check("keys")?;
            same("numbers of a query and a key", own.width, own_keys.width)?;
            same("query heads", own.heads, queries.heads)?;
            same("queries", own.positions, queries.positions)?;
            same("positions of keys", own_keys.positions, keys.positions)?;
            same("key heads", own_keys.heads, keys.heads)?;
        }
        values.check("values")?;
        same("positions of keys and values", keys.positions, values.positions)?;
        same("heads of keys and values", keys.heads, values.heads)?;
        let alone = queries.heads.checked_rem(keys.heads).unwrap_or(queries.heads);
        same("query heads without a key head", alone, 0)?;
        same("sinks", sinks.map_or(queries.heads, <[f32]>::len), queries.heads)?;
        let behind = queries.positions.saturating_sub(keys.positions);
        same("queries at no position", behind, 0)?;
        same("positions of a window that sees nothing", usize::from(self.window == Some(0)), 0)?;
        if let Some(chosen) = self.chosen {
            let has_others = self.window.is_some() || self.softcap.is_some() || sinks.is_some();
            same("other rules beside chosen positions", usize::from(has_others), 0)?;
            same("queries with chosen positions", chosen.queries(), queries.positions)?;
            let is_beyond = |query: &usize| !chosen.is_within(*query, self.seen(*query).end);
            let beyond = (0..queries.positions).filter(is_beyond).count();
            same("queries with chosen positions that they do not see", beyond, 0)?;
        }
        // Positions are counted from the beginning of a block.
        let end = self.first.checked_add(keys.positions).and_then(|end| end.checked_add(BLOCK));
        same("positions beyond all numbers", usize::from(end.is_none()), 0)
    }

    /// Which of the keys query `query` sees.
    fn seen(&self, query: usize) -> Range<usize> {
        let end = self.pairs.keys.positions - self.pairs.queries.positions + query + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// What the queries find, `out [queries, heads, width of a value]`, numbers of the queries' type.
///
/// # Errors
/// When sizes do not fit.
pub fn attend(
    pool: &Pool,
    isa: Isa,
    attention: &Attention<'_>,
    out: &mut [u8],
) -> Result<(), Misfit> {
    attention.check()?;
    let Attention { pairs: Pairs { queries, keys }, values, .. } = attention;
    let results = queries.heads.saturating_mul(values.width);
    let wanted = queries.positions.saturating_mul(results).saturating_mul(queries.number.bytes());
    if out.len() != wanted {
        return Err(Misfit::Size { what: "results", bytes: out.len(), wanted });
    }
    if out.is_empty() {
        return Ok(());
    }
    let out = Out::new(out, queries.number, results);
    let sharing = queries.heads / keys.heads;
    if let Some(chosen) = attention.chosen {
        chosen::attend(pool, isa, attention, chosen, &out);
        return Ok(());
    }
    let rows = queries.positions * sharing;
    let parts = rows.div_ceil(ROWS);
    pool.each(keys.heads * parts, &|part| {
        // The last queries see most: they come first.
        let (head, part) = (part % keys.heads, parts - 1 - part / keys.heads);
        let rows = part * ROWS..rows.min((part + 1) * ROWS);
        isa.run(Part { attention, head, sharing, rows, out: &out });
    });
    Ok(())
}

/// Some queries of the heads that share a key head. Row `r` is query `r / sharing` of head `r % sharing` of them.
struct Part<'a> {
    attention: &'a Attention<'a>,
    head: usize,
    sharing: usize,
    rows: Range<usize>,
    out: &'a Out<'a>,
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Attention { values, first, .. } = *self.attention;
        let number = self.number();
        let (lowest, highest) = (self.seen(self.rows.start), self.seen(self.rows.end - 1));
        let seen = lowest.start..highest.end;
        // Keys from the beginning of a block of the sequence on.
        let before = (first + seen.start) % BLOCK;
        let width = (before + seen.len()).next_multiple_of(BLOCK);
        let blocks = Blocks { seen, before, count: width / BLOCK };

        let mut scores = vec![0.0; self.rows.len() * width];
        self.scores(simd, &self.attention.pairs, &blocks, &mut scores);
        if let Some(beside) = &self.attention.beside {
            let mut more = vec![0.0; scores.len()];
            self.scores(simd, beside, &blocks, &mut more);
            let pairs = scores.as_chunks_mut::<LANES>().0.iter_mut().zip(more.as_chunks().0);
            for (to, from) in pairs {
                *to = number.round(simd, zip(*to, *from, |a, b| a + b));
            }
        }
        for (row, scores) in self.rows.clone().zip(scores.chunks_mut(width)) {
            self.shares(simd, row, &blocks, scores);
        }

        let vectors = values.width.div_ceil(LANES);
        let mut sums = Vectors::new(self.rows.len() * vectors);
        let mut block = Vectors::new(BLOCK * vectors);
        for number in 0..blocks.count {
            let keys = blocks.keys(number);
            for (key, to) in keys.clone().zip(block.chunks_mut(vectors)) {
                values.load(simd, self.head, key, to);
            }
            let shares = |row: usize| {
                let start = row * width + number * BLOCK + blocks.skipped(number);
                &scores[start..start + keys.len()]
            };
            weighted(simd, &block, vectors, shares, &mut sums);
        }
        for (row, sums) in self.rows.clone().zip(sums.chunks(vectors)) {
            let head = self.head * self.sharing + row % self.sharing;
            self.write(simd, row / self.sharing, head, &sums.as_flattened()[..values.width]);
        }
    }
}

/// The keys that any of some queries sees, in blocks of the sequence.
struct Blocks {
    seen: Range<usize>,
    /// Positions of the first block that come before them.
    before: usize,
    count: usize,
}

impl Blocks {
    /// Those of block `number`.
    #[inline(always)]
    fn keys(&self, number: usize) -> Range<usize> {
        let at = |place: usize| self.seen.start + place.saturating_sub(self.before);
        at(number * BLOCK)..at((number + 1) * BLOCK).min(self.seen.end)
    }

    /// How many positions of it come before these.
    #[inline(always)]
    const fn skipped(&self, number: usize) -> usize {
        if number == 0 { self.before } else { 0 }
    }
}

impl Part<'_> {
    #[inline(always)]
    const fn number(&self) -> Number {
        self.attention.pairs.queries.number
    }

    /// Which of the keys row `row` sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> Range<usize> {
        self.attention.seen(row / self.sharing)
    }

    /// `scores [rows, width]`: every row's of every key that any of them sees.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, pairs: &Pairs<'_>, blocks: &Blocks, scores: &mut [f32]) {
        let Pairs { queries, keys } = pairs;
        let number = queries.number;
        let vectors = queries.width.div_ceil(LANES);
        let mut x = Vectors::new(self.rows.len() * vectors);
        for (row, to) in self.rows.clone().zip(x.chunks_mut(vectors)) {
            let head = self.head * self.sharing + row % self.sharing;
            queries.load_scaled(simd, head, row / self.sharing, self.attention.scale, to);
        }
        let width = blocks.count * BLOCK;
        let mut block = Vectors::new(BLOCK * vectors);
        for each in 0..blocks.count {
            let skipped = blocks.skipped(each);
            for (key, to) in blocks.keys(each).zip(block.chunks_mut(vectors).skip(skipped)) {
                keys.load(simd, self.head, key, to);
            }
            all_products(simd, number, &x, &block, vectors, &mut scores[each * BLOCK..], width);
        }
    }

    /// What each position that row `row` sees has of the whole, in place of its score; 0 for the others.
    #[inline(always)]
    fn shares<S: Simd>(&self, simd: S, row: usize, blocks: &Blocks, scores: &mut [f32]) {
        let number = self.number();
        let seen = self.seen(row);
        let at = |key: usize| key - blocks.seen.start + blocks.before;
        let (start, end) = (at(seen.start), at(seen.end));
        let (vectors, _) = scores.as_chunks_mut::<LANES>();
        if let Some(cap) = self.attention.softcap {
            let cap = number.round(simd, [cap; LANES]);
            for scores in vectors.iter_mut() {
                let bent = number.round(simd, zip(*scores, cap, |score, cap| score / cap));
                let bent = number.round(simd, map(bent, tanh));
                *scores = number.round(simd, zip(bent, cap, |score, cap| score * cap));
            }
        }
        // What is not seen has no weight.
        let scores = vectors.as_flattened_mut();
        scores[..start].fill(f32::NEG_INFINITY);
        scores[end..].fill(f32::NEG_INFINITY);
        let vectors = scores.as_chunks_mut::<LANES>().0;
        let sink = self.attention.sinks.map(|sinks| {
            let own = sinks[self.head * self.sharing + row % self.sharing];
            number.round(simd, [own; LANES])[0]
        });
        let highest = |a: Vector, b: Vector| zip(a, b, |a, b| if a < b { b } else { a });
        let most =
            vectors.iter().fold([f32::NEG_INFINITY; LANES], |most, each| highest(most, *each));
        let most = most.into_iter().chain(sink).fold(f32::NEG_INFINITY, f32::max);
        let mut lanes = [0.0; LANES];
        for scores in vectors.iter_mut() {
            *scores = map(*scores, |score| exp(score - most));
            lanes = zip(lanes, *scores, |sum, each| sum + each);
        }
        let mut sum = simd.sum(simd.load(&lanes));
        if let Some(sink) = sink {
            sum += exp(sink - most);
        }
        let part = 1.0 / sum;
        for scores in vectors.iter_mut() {
            *scores = number.round(simd, map(*scores, |each| each * part));
        }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "see `Out`")]
    fn write<S: Simd>(&self, simd: S, query: usize, head: usize, values: &[f32]) {
        // SAFETY: each pair of query and head is one row of one part.
        unsafe { self.out.write_some(simd, query, head * values.len(), values) }
    }
}

/// Products of all rows `x`, each of `vectors`, with a block of keys, to `scores`, whose rows are `width` long.
#[inline(always)]
fn all_products<S: Simd>(
    simd: S,
    number: Number,
    x: &[Vector],
    block: &[Vector],
    vectors: usize,
    scores: &mut [f32],
    width: usize,
) {
    let rows = x.len() / vectors;
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        let x = |more: usize| &x[(row + more) * vectors..(row + more + 1) * vectors];
        let to = &mut scores[row * width..];
        if S::MANY_REGISTERS && left >= 4 {
            let x = [x(0), x(1), x(2), x(3)];
            products::<S, 4, 4>(simd, number, &x, block, vectors, to, width);
            row += 4;
        } else if left >= 2 {
            products::<S, 2, 2>(simd, number, &[x(0), x(1)], block, vectors, to, width);
            row += 2;
        } else {
            products::<S, 1, 4>(simd, number, &[x(0)], block, vectors, to, width);
            row += 1;
        }
    }
}

/// Products of `M` rows with a block of keys, to `scores`, whose rows are `width` long.
#[inline(always)]
fn products<S: Simd, const M: usize, const R: usize>(
    simd: S,
    number: Number,
    x: &[&[Vector]; M],
    block: &[Vector],
    vectors: usize,
    scores: &mut [f32],
    width: usize,
) {
    for group in 0..BLOCK / LANES {
        let mut lanes = [[simd.splat(0.0); LANES]; M];
        for first in (0..LANES).step_by(R) {
            let mut keys: [&[Vector]; R] = [&[]; R];
            for r in 0..R {
                let key = group * LANES + first + r;
                keys[r] = &block[key * vectors..(key + 1) * vectors];
            }
            let mut sums = [[simd.splat(0.0); R]; M];
            for v in 0..vectors {
                for r in 0..R {
                    let key = simd.load(&keys[r][v]);
                    for m in 0..M {
                        sums[m][r] = simd.mul_add(simd.load(&x[m][v]), key, sums[m][r]);
                    }
                }
            }
            for m in 0..M {
                for r in 0..R {
                    lanes[m][first + r] = sums[m][r];
                }
            }
        }
        for m in 0..M {
            let mut found = [0.0; LANES];
            simd.store(&mut found, simd.sums(&lanes[m]));
            let start = m * width + group * LANES;
            scores[start..start + LANES].copy_from_slice(&number.round(simd, found));
        }
    }
}

/// Adds a block's weighted values to the `sums` of every row, each `vectors` long. `shares` gives a row's weights.
#[inline(always)]
fn weighted<'a, S: Simd>(
    simd: S,
    block: &[Vector],
    vectors: usize,
    shares: impl Fn(usize) -> &'a [f32],
    sums: &mut [Vector],
) {
    let rows = sums.len() / vectors;
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        let own = &mut sums[row * vectors..];
        if S::MANY_REGISTERS && left >= 4 {
            let shares = [shares(row), shares(row + 1), shares(row + 2), shares(row + 3)];
            columns::<S, 4, 4>(simd, block, vectors, &shares, own);
            row += 4;
        } else if left >= 2 {
            columns::<S, 2, 2>(simd, block, vectors, &[shares(row), shares(row + 1)], own);
            row += 2;
        } else {
            columns::<S, 1, 4>(simd, block, vectors, &[shares(row)], own);
            row += 1;
        }
    }
}

#[inline(always)]
fn columns<S: Simd, const M: usize, const R: usize>(
    simd: S,
    block: &[Vector],
    vectors: usize,
    shares: &[&[f32]; M],
    sums: &mut [Vector],
) {
    let mut first = 0;
    while first + R <= vectors {
        tile::<S, M, R>(simd, block, vectors, first, shares, sums);
        first += R;
    }
    for column in first..vectors {
        tile::<S, M, 1>(simd, block, vectors, column, shares, sums);
    }
}

#[inline(always)]
fn tile<S: Simd, const M: usize, const R: usize>(
    simd: S,
    block: &[Vector],
    vectors: usize,
    first: usize,
    shares: &[&[f32]; M],
    sums: &mut [Vector],
) {
    let mut own = [[simd.splat(0.0); R]; M];
    for key in 0..shares[0].len() {
        let values = &block[key * vectors + first..key * vectors + first + R];
        for m in 0..M {
            let share = simd.splat(shares[m][key]);
            for r in 0..R {
                own[m][r] = simd.mul_add(share, simd.load(&values[r]), own[m][r]);
            }
        }
    }
    for m in 0..M {
        for r in 0..R {
            let sum = &mut sums[m * vectors + first + r];
            simd.store(sum, simd.add(simd.load(sum), own[m][r]));
        }
    }
}
