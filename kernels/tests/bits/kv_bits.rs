//! Packed keys and values give the bits of the numbers that they stand for.

use std::num::NonZeroUsize;

use planaria_kernels::{
    Attention, Heads, Isa, KV_GROUP, KvBits, Misfit, Number, Pairs, Pool, attend,
};

use crate::support::{Dice, NUMBERS, read};

const HEADS: usize = 2;
const SHARING: usize = 3;
const POSITIONS: usize = 150;

/// Rows of heads at positions, packed, and the numbers that they stand for.
struct Packed {
    bits: KvBits,
    number: Number,
    width: usize,
    rows: Vec<u8>,
    plain: Vec<u8>,
}

impl Packed {
    fn new(bits: KvBits, number: Number, width: usize) -> Self {
        let mut dice = Dice::new(width as u64);
        let (mut rows, mut plain) = (Vec::new(), Vec::new());
        let groups = width / KV_GROUP;
        for _ in 0..HEADS * POSITIONS {
            let count = if bits == KvBits::Four { width / 2 } else { width };
            let integers: Vec<u8> = (0..count).map(|_| dice.byte()).collect();
            // Of products as large as those of plain numbers.
            let small = |bytes: Vec<u8>| -> Vec<u8> {
                let halved = read(number, &bytes).into_iter().map(|value| value / 256.0);
                halved.flat_map(|value| stored(number, value)).collect()
            };
            let scales = small(dice.bytes_of(number, groups));
            let biases = dice.bytes_of(number, groups);
            let both = (read(number, &scales), read(number, &biases));
            for at in 0..width {
                let q = match bits {
                    KvBits::Eight => integers[at],
                    KvBits::Four => integers[at / 2] >> (4 * (at % 2)) & 15,
                };
                let group = at / KV_GROUP;
                let value = f32::from(q).mul_add(both.0[group], both.1[group]);
                plain.extend(value.to_le_bytes());
            }
            rows.extend([integers, scales, biases].concat());
        }
        Self { bits, number, width, rows, plain }
    }

    /// Positions from `first` on, `[heads, positions, width]`.
    fn packed(&self, first: usize) -> Heads<'_> {
        let row = self.bits.row_bytes(self.width, self.number);
        Heads {
            bytes: &self.rows[first * row..],
            number: self.number,
            packed: Some(self.bits),
            heads: HEADS,
            positions: POSITIONS - first,
            width: self.width,
            head_stride: POSITIONS * row,
            position_stride: row,
        }
    }

    fn plain(&self, first: usize) -> Heads<'_> {
        Heads {
            bytes: &self.plain[first * self.width * 4..],
            number: Number::F32,
            packed: None,
            head_stride: POSITIONS * self.width,
            position_stride: self.width,
            ..self.packed(first)
        }
    }
}

fn stored(number: Number, value: f32) -> Vec<u8> {
    match number {
        Number::F32 => value.to_le_bytes().to_vec(),
        Number::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Number::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

fn found(isa: Isa, queries: Heads<'_>, [keys, beside, values]: [Heads<'_>; 3]) -> Vec<u8> {
    let attention = Attention {
        pairs: Pairs { queries, keys },
        beside: Some(Pairs { queries, keys: beside }),
        values,
        first: 70 - 64,
        scale: 0.3,
        window: None,
        softcap: None,
        sinks: None,
        chosen: None,
    };
    let numbers = queries.heads * queries.positions * values.width;
    let mut out = vec![0; numbers * queries.number.bytes()];
    let pool = Pool::new(NonZeroUsize::new(2).unwrap());
    attend(&pool, isa, &attention, &mut out).unwrap();
    out
}

#[test]
fn packed_numbers_give_the_bits_of_what_they_stand_for() {
    for number in NUMBERS {
        for (bits, width, value_width) in [(KvBits::Eight, 96, 544), (KvBits::Four, 64, 32)] {
            let mut dice = Dice::new(1);
            let queries = dice.bytes_of(number, HEADS * SHARING * 5 * width);
            let queries = Heads {
                bytes: &queries,
                number,
                packed: None,
                heads: HEADS * SHARING,
                positions: 5,
                width,
                head_stride: width * 5,
                position_stride: width,
            };
            let keys = Packed::new(bits, number, width);
            let values = Packed::new(bits, number, value_width);
            for isa in Isa::all() {
                for first in [0, 17] {
                    let packed = [&keys, &keys, &values].map(|heads| heads.packed(first));
                    let plain = [&keys, &keys, &values].map(|heads| heads.plain(first));
                    let (packed, plain) = (found(isa, queries, packed), found(isa, queries, plain));
                    assert!(packed.iter().any(|byte| *byte != 0));
                    assert!(packed == plain, "{isa} {number:?} {bits:?} from {first}");
                }
            }
        }
    }
}

#[test]
fn packed_rows_that_do_not_fit_are_refused() {
    let keys = Packed::new(KvBits::Eight, Number::F32, 32);
    let queries = Heads { positions: 1, ..keys.plain(0) };
    let attempt = |heads: Heads<'_>| {
        let attention = Attention {
            pairs: Pairs { queries, keys: heads },
            beside: None,
            values: heads,
            first: 0,
            scale: 1.0,
            window: None,
            softcap: None,
            sinks: None,
            chosen: None,
        };
        let pool = Pool::new(NonZeroUsize::MIN);
        attend(&pool, Isa::best(), &attention, &mut vec![0; HEADS * heads.width * 4])
    };
    assert_eq!(attempt(keys.packed(0)), Ok(()));
    let overlapping = Heads { position_stride: 32, ..keys.packed(0) };
    assert!(matches!(attempt(overlapping), Err(Misfit::Count { .. })));
    let short = Heads { bytes: &keys.rows[1..], ..keys.packed(0) };
    assert!(matches!(attempt(short), Err(Misfit::Size { what: "keys", .. })));
    let broken = Heads { width: 31, ..keys.packed(0) };
    assert!(matches!(attempt(broken), Err(Misfit::Count { .. })));
}
