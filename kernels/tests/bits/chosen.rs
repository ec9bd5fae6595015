//! The choice of positions is what its definition says, whatever else is in the step; and attention to chosen positions is that
//! to all of them without the others.

use std::num::NonZeroUsize;

use planaria_kernels::{
    Attention, Chosen, Heads, Index, Isa, Misfit, Number, Pairs, Pool, attend, choose,
};
use proptest::prelude::*;

use crate::support::{Dice, NUMBERS, read};

/// An index over a sequence, and attention beside it: `[positions, heads, width]` of each.
struct Memory {
    number: Number,
    heads: usize,
    width: usize,
    queries: Vec<u8>,
    keys: Vec<u8>,
    weights: Vec<u8>,
    asked: Vec<u8>,
    known: Vec<u8>,
}

/// Heads, and width of queries, keys and values, of the attention.
const HEADS: usize = 19;
const WIDTH: usize = 20;

impl Memory {
    fn new(number: Number, positions: usize, heads: usize, width: usize) -> Self {
        let mut dice = Dice::new(positions as u64);
        Self {
            number,
            heads,
            width,
            queries: dice.bytes_of(number, positions * heads * width),
            keys: dice.bytes_of(number, positions * width),
            weights: dice.bytes_of(Number::F32, positions * heads),
            asked: dice.bytes_of(number, positions * HEADS * WIDTH),
            known: dice.bytes_of(number, positions * WIDTH),
        }
    }

    /// What queries `from..to` choose among the positions before them.
    fn choose(&self, pool: &Pool, isa: Isa, (from, to): (usize, usize), count: usize) -> Chosen {
        let (heads, width) = (self.heads, self.width);
        let index = Index {
            queries: part(&self.queries, self.number, heads, width, (from, to)),
            keys: part(&self.keys, self.number, 1, width, (0, to)),
            weights: part(&self.weights, Number::F32, heads, 1, (from, to)),
            count,
        };
        choose(pool, isa, &index).unwrap()
    }

    /// The same by the definition, number by number.
    fn expected(&self, query: usize, count: usize) -> Vec<u32> {
        let [queries, keys] = [&self.queries, &self.keys].map(|bytes| read(self.number, bytes));
        let weights = read(Number::F32, &self.weights);
        let score = |key: usize| {
            (0..self.heads).fold(0.0_f32, |sum, head| {
                let place = query * self.heads + head;
                let product =
                    dot(&queries[place * self.width..][..self.width], &keys[key * self.width..]);
                weights[place].mul_add(product.max(0.0), sum)
            })
        };
        let scores: Vec<f32> = (0..=query).map(score).collect();
        let mut order: Vec<usize> = (0..=query).collect();
        // A stable sort: of equal ones the lower stays first.
        order.sort_by(|a, b| scores[*b].partial_cmp(&scores[*a]).unwrap());
        let mut chosen: Vec<u32> =
            order.into_iter().take(count).map(|key| u32::try_from(key).unwrap()).collect();
        chosen.sort_unstable();
        chosen
    }

    fn attention<'a>(
        &'a self,
        asked: (usize, usize),
        first: usize,
        chosen: Option<&'a Chosen>,
    ) -> Attention<'a> {
        let keys = part(&self.known, self.number, 1, WIDTH, (0, asked.1));
        let queries = part(&self.asked, self.number, HEADS, WIDTH, asked);
        Attention {
            pairs: Pairs { queries, keys },
            beside: Some(Pairs { queries, keys }),
            values: keys,
            first,
            scale: 0.3,
            window: None,
            softcap: None,
            sinks: None,
            chosen,
        }
    }

    fn look(&self, pool: &Pool, isa: Isa, attention: &Attention<'_>) -> Vec<u8> {
        let queries = attention.pairs.queries.positions;
        let mut out = vec![0xff; queries * HEADS * WIDTH * self.number.bytes()];
        attend(pool, isa, attention, &mut out).unwrap();
        out
    }
}

/// A dot product as the crate defines it.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for (k, (a, b)) in a.iter().zip(b).enumerate() {
        lanes[k % 16] = a.mul_add(*b, lanes[k % 16]);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

fn part(
    bytes: &[u8],
    number: Number,
    heads: usize,
    width: usize,
    (from, to): (usize, usize),
) -> Heads<'_> {
    let size = number.bytes() * heads * width;
    Heads {
        bytes: &bytes[from * size..to * size],
        number,
        packed: None,
        heads,
        positions: to - from,
        width,
        head_stride: width,
        position_stride: heads * width,
    }
}

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn the_best_are_chosen_whatever_else_is_asked(
        number in prop::sample::select(&NUMBERS[..]),
        positions in 1..400_usize,
        heads in 1..7_usize,
        width in 1..40_usize,
        count in 1..90_usize,
        from in 0..400_usize,
        threads in 1..4_usize,
    ) {
        let memory = Memory::new(number, positions, heads, width);
        let pool = pool(threads);
        let from = from % positions;
        for isa in Isa::all() {
            let all = memory.choose(&pool, isa, (0, positions), count);
            let some = memory.choose(&pool, isa, (from, positions), count);
            for query in (0..positions).step_by(13).chain([positions - 1]) {
                prop_assert_eq!(all.of(query), memory.expected(query, count), "{}", isa);
                if query >= from {
                    prop_assert_eq!(all.of(query), some.of(query - from));
                }
            }
        }
    }
}

#[test]
fn of_equal_scores_the_lower_position_is_chosen() {
    let mut memory = Memory::new(Number::F32, 600, 3, 8);
    memory.keys = memory.keys[..32].repeat(600);
    let chosen = memory.choose(&pool(2), Isa::best(), (598, 600), 5);
    assert_eq!([chosen.of(0), chosen.of(1)], [[0, 1, 2, 3, 4]; 2]);
}

#[test]
fn all_positions_chosen_give_the_bits_of_attention_to_all() {
    for number in NUMBERS {
        let memory = Memory::new(number, 150, 2, 8);
        for isa in Isa::all() {
            let chosen = memory.choose(&pool(2), isa, (0, 150), 150);
            for first in [0, 37] {
                let found =
                    memory.look(&pool(2), isa, &memory.attention((0, 150), first, Some(&chosen)));
                let all = memory.look(&pool(2), isa, &memory.attention((0, 150), first, None));
                assert_eq!(found, all, "{number:?} {isa} {first}");
            }
        }
    }
}

#[test]
fn chosen_positions_are_looked_at_and_no_others() {
    for number in NUMBERS {
        let memory = Memory::new(number, 300, 3, 8);
        let [asked, known] = [&memory.asked, &memory.known].map(|bytes| read(number, bytes));
        let row = HEADS * WIDTH * number.bytes();
        for isa in Isa::all() {
            let chosen = memory.choose(&pool(3), isa, (0, 300), 40);
            let found = memory.look(&pool(3), isa, &memory.attention((0, 300), 0, Some(&chosen)));
            for query in [0, 39, 40, 123, 299] {
                let alone = memory.choose(&pool(1), isa, (query, query + 1), 40);
                let attention = memory.attention((query, query + 1), 0, Some(&alone));
                let own = &found[query * row..(query + 1) * row];
                assert_eq!(own, memory.look(&pool(1), isa, &attention), "{number:?} {isa} {query}");
                let expected = (0..HEADS).flat_map(|head| {
                    let asked = &asked[(query * HEADS + head) * WIDTH..][..WIDTH];
                    let power = |key: &u32| {
                        let key = &known[*key as usize * WIDTH..][..WIDTH];
                        let product = asked.iter().zip(key).map(|(a, b)| f64::from(a * b));
                        (product.sum::<f64>() * 0.6).exp()
                    };
                    let powers: Vec<f64> = chosen.of(query).iter().map(power).collect();
                    let sum: f64 = powers.iter().sum();
                    let value = |column: usize| {
                        let each = chosen.of(query).iter().zip(&powers).map(|(key, power)| {
                            power * f64::from(known[*key as usize * WIDTH + column])
                        });
                        each.sum::<f64>() / sum
                    };
                    (0..WIDTH).map(value).collect::<Vec<_>>()
                });
                for (found, expected) in read(number, own).into_iter().zip(expected) {
                    let unit = if number == Number::F32 { 1e-5 } else { 3e-2 };
                    assert!((f64::from(found) - expected).abs() < unit, "{found}, not {expected}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let memory = Memory::new(Number::F32, 10, 2, 8);
    let good = Index {
        queries: part(&memory.queries, Number::F32, 2, 8, (8, 10)),
        keys: part(&memory.keys, Number::F32, 1, 8, (0, 10)),
        weights: part(&memory.weights, Number::F32, 2, 1, (8, 10)),
        count: 3,
    };
    let attempt = |index: &Index<'_>| choose(&pool(1), Isa::best(), index);
    let chosen = attempt(&good).unwrap();
    assert_eq!((chosen.of(0).len(), chosen.of(2).len()), (3, 0));
    assert!(attempt(&Index { count: 0, ..good }).is_err());
    assert!(attempt(&Index { weights: Heads { positions: 1, ..good.weights }, ..good }).is_err());
    assert!(attempt(&Index { keys: Heads { positions: 11, ..good.keys }, ..good }).is_err());
    assert!(attempt(&Index { keys: Heads { positions: 1, ..good.keys }, ..good }).is_err());
    let refused = |attention: &Attention<'_>| {
        let mut out = vec![0; attention.pairs.queries.positions * HEADS * WIDTH * 4];
        matches!(attend(&pool(1), Isa::best(), attention, &mut out), Err(Misfit::Count { .. }))
    };
    // Queries that are not those of the choice, positions that come after them, and other rules beside it.
    assert!(refused(&memory.attention((7, 10), 0, Some(&chosen))));
    let all = attempt(&Index { count: 10, ..good }).unwrap();
    assert!(refused(&memory.attention((7, 9), 0, Some(&all))));
    let windowed = Attention { window: Some(4), ..memory.attention((8, 10), 0, Some(&chosen)) };
    assert!(refused(&windowed));
}
