//! Attention has the same bits for any number of queries and threads, on any instruction set, and whatever a cache has
//! forgotten; and it is right.

use std::num::NonZeroUsize;

use planaria_kernels::{Attention, Heads, Isa, Misfit, Number, Pairs, Pool, attend};
use proptest::prelude::*;

use crate::support::{Dice, NUMBERS, read};

/// Memory of a whole sequence, from which parts are asked.
struct Memory {
    number: Number,
    heads: usize,
    sharing: usize,
    positions: usize,
    width: usize,
    value_width: usize,
    queries: Vec<u8>,
    keys: Vec<u8>,
    values: Vec<u8>,
    more_queries: Vec<u8>,
    more_keys: Vec<u8>,
    sinks: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
struct Kind {
    window: Option<usize>,
    softcap: Option<f32>,
    has_sinks: bool,
    has_beside: bool,
}

const PLAIN: Kind = Kind { window: None, softcap: None, has_sinks: false, has_beside: false };
const SCALE: f32 = 0.3;

impl Memory {
    fn new(
        number: Number,
        heads: usize,
        sharing: usize,
        positions: usize,
        (width, value_width): (usize, usize),
    ) -> Self {
        let mut dice = Dice::new(positions as u64);
        let mut some = |count: usize| dice.bytes_of(number, count * positions);
        Self {
            number,
            heads,
            sharing,
            positions,
            width,
            value_width,
            queries: some(heads * sharing * width),
            keys: some(heads * width),
            values: some(heads * value_width),
            more_queries: some(heads * sharing * 8),
            more_keys: some(heads * 8),
            sinks: read(number, &some(heads * sharing))[..heads * sharing].to_vec(),
        }
    }

    /// Positions `from..to` of memory that is laid out `[positions, heads, width]`.
    fn part<'a>(
        &self,
        bytes: &'a [u8],
        heads: usize,
        width: usize,
        (from, to): (usize, usize),
    ) -> Heads<'a> {
        let stride = heads * width;
        let size = self.number.bytes() * stride;
        Heads {
            bytes: &bytes[from * size..to * size],
            number: self.number,
            packed: None,
            heads,
            positions: to - from,
            width,
            head_stride: width,
            position_stride: stride,
        }
    }

    /// What queries `asked` find in the positions from `first` on.
    fn look(
        &self,
        pool: &Pool,
        isa: Isa,
        kind: Kind,
        first: usize,
        asked: (usize, usize),
    ) -> Vec<u8> {
        let Self { heads, sharing, width, value_width, .. } = *self;
        let known = (first, asked.1);
        let attention = Attention {
            pairs: Pairs {
                queries: self.part(&self.queries, heads * sharing, width, asked),
                keys: self.part(&self.keys, heads, width, known),
            },
            beside: kind.has_beside.then(|| Pairs {
                queries: self.part(&self.more_queries, heads * sharing, 8, asked),
                keys: self.part(&self.more_keys, heads, 8, known),
            }),
            values: self.part(&self.values, heads, value_width, known),
            first,
            scale: SCALE,
            window: kind.window,
            softcap: kind.softcap,
            sinks: kind.has_sinks.then_some(&self.sinks),
            chosen: None,
        };
        let results = (asked.1 - asked.0) * heads * sharing * value_width;
        let mut out = vec![0xff; results * self.number.bytes()];
        attend(pool, isa, &attention, &mut out).unwrap();
        out
    }

    /// The same for one query, in `f64`.
    fn expected(&self, kind: Kind, query: usize) -> Vec<f64> {
        let Self { heads, sharing, width, value_width, number, .. } = *self;
        let wide =
            |bytes: &[u8]| -> Vec<f64> { read(number, bytes).into_iter().map(f64::from).collect() };
        let (queries, keys, values) = (wide(&self.queries), wide(&self.keys), wide(&self.values));
        let (more_queries, more_keys) = (wide(&self.more_queries), wide(&self.more_keys));
        let start = kind.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let mut out = Vec::new();
        for head in 0..heads * sharing {
            let own = head / sharing;
            let product = |a: &[f64], b: &[f64], width: usize, key: usize| -> f64 {
                let a = &a[(query * heads * sharing + head) * width..][..width];
                let b = &b[(key * heads + own) * width..][..width];
                a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() * f64::from(SCALE)
            };
            let score = |key: usize| {
                let mut score = product(&queries, &keys, width, key);
                if kind.has_beside {
                    score += product(&more_queries, &more_keys, 8, key);
                }
                kind.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let powers: Vec<f64> = (start..=query).map(|key| score(key).exp()).collect();
            let sink = if kind.has_sinks { f64::from(self.sinks[head]).exp() } else { 0.0 };
            let sum = powers.iter().sum::<f64>() + sink;
            for column in 0..value_width {
                let each = (start..).zip(&powers);
                let weighted = each
                    .map(|(key, power)| power * values[(key * heads + own) * value_width + column]);
                out.push(weighted.sum::<f64>() / sum);
            }
        }
        out
    }
}

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap())
}

fn kinds() -> impl Iterator<Item = Kind> {
    let softcap = Some(2.0);
    [
        PLAIN,
        Kind { window: Some(70), ..PLAIN },
        Kind { softcap, ..PLAIN },
        Kind { has_sinks: true, window: Some(5), ..PLAIN },
        Kind { has_beside: true, ..PLAIN },
        Kind { has_beside: true, has_sinks: true, softcap, window: Some(128) },
    ]
    .into_iter()
}

#[test]
fn results_are_right() {
    let pool = pool(2);
    for number in NUMBERS {
        let bound = if number == Number::F32 { 1e-5 } else { 0.04 };
        for (heads, sharing, widths) in [(2, 3, (24, 40)), (1, 1, (64, 16)), (3, 5, (16, 80))] {
            let memory = Memory::new(number, heads, sharing, 150, widths);
            for kind in kinds() {
                for query in [0, 1, 15, 63, 64, 65, 149] {
                    let found = memory.look(&pool, Isa::best(), kind, 0, (query, query + 1));
                    let found = read(number, &found);
                    for (found, expected) in found.into_iter().zip(memory.expected(kind, query)) {
                        let off = (f64::from(found) - expected).abs();
                        assert!(off < bound, "{kind:?} {number:?} {query}: {found} {expected}");
                    }
                }
            }
        }
    }
}

/// Every way to come by the results of a sequence gives the bits of asking for one position at a time.
fn check(memory: &Memory, kind: Kind, threads: usize, steps: &[usize]) {
    let (one, pool) = (pool(1), pool(threads));
    let plain = "plain".parse::<Isa>().unwrap();
    let alone: Vec<Vec<u8>> = (0..memory.positions)
        .map(|query| memory.look(&one, plain, kind, 0, (query, query + 1)))
        .collect();
    for isa in Isa::all() {
        let mut first = 0;
        let mut steps = steps.iter().copied().chain(std::iter::repeat(memory.positions));
        while first < memory.positions {
            let end = memory.positions.min(first + steps.next().unwrap().max(1));
            // What the first of them does not see may be forgotten.
            let forgotten = kind.window.map_or(0, |window| (first + 1).saturating_sub(window));
            for from in [0, forgotten] {
                let found = memory.look(&pool, isa, kind, from, (first, end));
                let same = found == alone[first..end].concat();
                assert!(same, "{isa} {kind:?}: {first} to {end}, from {from}");
            }
            first = end;
        }
    }
}

#[test]
fn a_whole_prompt_gives_the_bits_of_single_tokens() {
    for number in NUMBERS {
        let memory = Memory::new(number, 2, 3, 140, (40, 72));
        for kind in kinds() {
            check(&memory, kind, 2, &[]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn bits_depend_on_nothing_else(
        number in prop::sample::select(&NUMBERS[..]),
        heads in 1..4_usize,
        sharing in 1..9_usize,
        positions in 1..140_usize,
        width in 1..70_usize,
        value_width in 1..100_usize,
        threads in prop::sample::select(&[1, 2, 3, 8][..]),
        steps in prop::collection::vec(1..40_usize, 0..6),
        window in prop::option::of(1..150_usize),
        kind in prop::sample::select(kinds().collect::<Vec<_>>()),
    ) {
        let memory = Memory::new(number, heads, sharing, positions, (width, value_width));
        check(&memory, Kind { window, ..kind }, threads, &steps);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let memory = Memory::new(Number::F32, 2, 2, 10, (16, 16));
    let good = Attention {
        pairs: Pairs {
            queries: memory.part(&memory.queries, 4, 16, (8, 10)),
            keys: memory.part(&memory.keys, 2, 16, (0, 10)),
        },
        beside: None,
        values: memory.part(&memory.values, 2, 16, (0, 10)),
        first: 0,
        scale: SCALE,
        window: None,
        softcap: None,
        sinks: None,
        chosen: None,
    };
    let attempt = |attention: &Attention<'_>, results: usize| {
        attend(&pool(1), Isa::best(), attention, &mut vec![0; results * 4])
    };
    assert_eq!(attempt(&good, 128), Ok(()));
    assert!(matches!(attempt(&good, 127), Err(Misfit::Size { what: "results", .. })));
    let mut shorter = good;
    shorter.values.positions = 9;
    assert!(matches!(attempt(&shorter, 128), Err(Misfit::Count { .. })));
    let mut longer = good;
    longer.values.head_stride = 1000;
    assert!(matches!(attempt(&longer, 128), Err(Misfit::Size { what: "values", .. })));
    let mut ahead = good;
    ahead.pairs.queries.positions = 11;
    ahead.pairs.queries.position_stride = 0;
    assert!(matches!(attempt(&ahead, 704), Err(Misfit::Count { .. })));
    assert!(matches!(
        attempt(&Attention { sinks: Some(&[0.0]), ..good }, 128),
        Err(Misfit::Count { .. })
    ));
    let mut odd = good;
    odd.pairs.keys.heads = 0;
    odd.values.heads = 0;
    assert!(matches!(attempt(&odd, 128), Err(Misfit::Count { .. })));
}
