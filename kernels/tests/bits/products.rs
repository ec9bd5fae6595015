//! Products have the same bits for any number of rows and threads and on any instruction set, and are right.

#![expect(clippy::cast_possible_truncation, reason = "numbers of a few bits")]

use std::num::NonZeroUsize;

use half::{bf16, f16};
use planaria_kernels::{
    Choice, Isa, LANES, Matrix, Misfit, Number, Packing, Pool, Rows, matmul, matmul_chosen,
};
use proptest::prelude::*;

use crate::support::{Dice, read};

/// A matrix in memory of its own.
struct Stored {
    packing: Packing,
    outputs: usize,
    inputs: usize,
    weights: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl Stored {
    fn new(dice: &mut Dice, packing: Packing, outputs: usize, inputs: usize) -> Self {
        let mut bytes = |count: usize| (0..count).map(|_| dice.byte()).collect::<Vec<u8>>();
        let groups = packing.group().map_or(0, |group| outputs * inputs / group);
        let (weights, scales, biases) = match packing {
            Packing::Dense(number) => (dice.bytes_of(number, outputs * inputs), vec![], vec![]),
            Packing::Affine { bits, scales, .. } => {
                let weights = bytes(outputs * inputs * usize::from(bits) / 8);
                let scale = dice.bytes_of(scales, groups);
                (weights, scale, dice.bytes_of(scales, groups))
            }
            Packing::Mxfp4 | Packing::Nvfp4 => {
                let weights = bytes(outputs * inputs / 2);
                let scales = bytes(groups);
                let scales = match packing {
                    Packing::Mxfp4 => scales.iter().map(|byte| 120 + byte % 8).collect(),
                    // No number that is none.
                    _ => scales.iter().map(|byte| byte % 0x7f).collect(),
                };
                (weights, scales, vec![])
            }
            Packing::Mxfp8 => {
                let weights = bytes(outputs * inputs);
                let is_one = |byte: &u8| byte & 0x7f != 0x7f;
                let weights = weights.into_iter().map(|b| if is_one(&b) { b } else { 1 }).collect();
                (weights, bytes(groups).iter().map(|byte| 110 + byte % 8).collect(), vec![])
            }
        };
        Self { packing, outputs, inputs, weights, scales, biases }
    }

    fn matrix(&self) -> Matrix<'_> {
        let Self { packing, outputs, inputs, .. } = *self;
        let (weights, scales, biases) = (&self.weights, &self.scales, &self.biases);
        Matrix { packing, outputs, inputs, weights, scales, biases }
    }

    /// Every weight, by another way than the crate's.
    fn unpacked(&self) -> Vec<f32> {
        let bits = self.packing.bits();
        let number = |at: usize| -> u64 {
            (0..bits)
                .map(|bit| {
                    let place = at * bits + bit;
                    u64::from(self.weights[place / 8] >> (place % 8) & 1) << bit
                })
                .sum()
        };
        let group = |at: usize| at / self.packing.group().unwrap();
        let e2m1 = |q: u64| {
            let size = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][(q & 7) as usize];
            if q & 8 == 0 { size } else { -size }
        };
        let e4m3 = |q: u64| {
            let (exponent, mantissa) = (q >> 3 & 15, (q & 7) as f32 / 8.0);
            let size = match exponent {
                0 => mantissa * 2_f32.powi(-6),
                _ => (1.0 + mantissa) * 2_f32.powi(exponent as i32 - 7),
            };
            if q & 0x80 == 0 { size } else { -size }
        };
        let e8m0 = |byte: u8| 2_f32.powi(i32::from(byte) - 127);
        let all = 0..self.outputs * self.inputs;
        match self.packing {
            Packing::Dense(number) => read(number, &self.weights),
            Packing::Affine { scales, .. } => {
                let [scales, biases] = [&self.scales, &self.biases].map(|all| read(scales, all));
                all.map(|at| (number(at) as f32).mul_add(scales[group(at)], biases[group(at)]))
                    .collect()
            }
            Packing::Mxfp4 => {
                all.map(|at| e2m1(number(at)) * e8m0(self.scales[group(at)])).collect()
            }
            Packing::Nvfp4 => {
                all.map(|at| e2m1(number(at)) * e4m3(u64::from(self.scales[group(at)]))).collect()
            }
            Packing::Mxfp8 => {
                all.map(|at| e4m3(number(at)) * e8m0(self.scales[group(at)])).collect()
            }
        }
    }
}

/// The dot product as the crate's documentation defines it.
fn dot(x: &[f32], w: &[f32], per_lane: usize) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    for (k, (x, w)) in x.iter().zip(w).enumerate() {
        let lane = &mut lanes[k / per_lane % LANES];
        *lane = x.mul_add(*w, *lane);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

fn product(
    pool: &Pool,
    isa: Isa,
    number: Number,
    x: &[u8],
    rows: usize,
    stored: &Stored,
) -> Vec<u8> {
    let inputs = stored.inputs;
    let rows = Rows { bytes: x, number, rows, inputs, stride: inputs };
    let mut out = vec![0xaa; rows.rows * stored.outputs * number.bytes()];
    matmul(pool, isa, &rows, &stored.matrix(), &mut out).unwrap();
    out
}

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap())
}

fn packings() -> Vec<Packing> {
    let mut all = vec![
        Packing::Dense(Number::F32),
        Packing::Dense(Number::F16),
        Packing::Dense(Number::Bf16),
        Packing::Mxfp4,
        Packing::Nvfp4,
        Packing::Mxfp8,
    ];
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            let scales = [Number::F32, Number::F16, Number::Bf16][all.len() % 3];
            all.push(Packing::Affine { bits, group, scales });
        }
    }
    all
}

/// The least number of inputs that a packing can have.
fn step(packing: Packing) -> usize {
    packing.group().unwrap_or(1)
}

#[test]
fn every_packing_is_computed_as_the_definition_says() {
    let mut dice = Dice::new(1);
    let pool = pool(2);
    for packing in packings() {
        let stored = Stored::new(&mut dice, packing, 21, step(packing) * 5);
        let weights = stored.unpacked();
        for number in [Number::F32, Number::F16, Number::Bf16] {
            let x = dice.bytes_of(number, 13 * stored.inputs);
            let rows = read(number, &x);
            for isa in Isa::all() {
                let found = product(&pool, isa, number, &x, 13, &stored);
                let per_lane = packing.per_lane();
                let expected = rows.chunks(stored.inputs).flat_map(|row| {
                    weights.chunks(stored.inputs).map(move |w| dot(row, w, per_lane))
                });
                let expected: Vec<u8> = expected
                    .flat_map(|value| match number {
                        Number::F32 => value.to_le_bytes().to_vec(),
                        Number::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                        Number::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                    })
                    .collect();
                assert_eq!(found, expected, "{packing:?} {number:?} {isa}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    let mut dice = Dice::new(2);
    let pools = [1, 2, 3, 8].map(pool);
    for packing in packings() {
        let inputs = (600 / step(packing)).max(1) * step(packing);
        let stored = Stored::new(&mut dice, packing, 19, inputs);
        let x = dice.bytes_of(Number::F32, 512 * inputs);
        let row_bytes = 4 * inputs;
        let alone: Vec<u8> = (0..512)
            .flat_map(|row| {
                let x = &x[row * row_bytes..(row + 1) * row_bytes];
                product(&pools[0], Isa::best(), Number::F32, x, 1, &stored)
            })
            .collect();
        for (pool, rows) in pools.iter().cycle().zip((1..=64).chain([97, 128, 300, 511, 512])) {
            for isa in Isa::all().into_iter().take(if rows < 50 { 3 } else { 1 }) {
                let found = product(pool, isa, Number::F32, &x, rows, &stored);
                let expected = &alone[..found.len()];
                assert!(found == expected, "{packing:?}: {rows} rows, {isa}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn odd_shapes_have_the_same_bits_everywhere(
        seed: u64,
        which in 0_usize..24,
        groups in 1_usize..20,
        outputs in 1_usize..70,
        rows in 1_usize..60,
        threads in 1_usize..5,
    ) {
        let mut dice = Dice::new(seed);
        let packing = packings()[which];
        let stored = Stored::new(&mut dice, packing, outputs, groups * step(packing));
        let x = dice.bytes_of(Number::F32, rows * stored.inputs);
        let weights = stored.unpacked();
        let x_rows = read(Number::F32, &x);
        let expected: Vec<f32> = x_rows
            .chunks(stored.inputs)
            .flat_map(|row| {
                weights.chunks(stored.inputs).map(move |w| dot(row, w, packing.per_lane()))
            })
            .collect();
        for isa in Isa::all() {
            let found = product(&pool(threads), isa, Number::F32, &x, rows, &stored);
            prop_assert_eq!(read(Number::F32, &found), expected.clone(), "{:?} {}", packing, isa);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut dice = Dice::new(3);
    let pool = pool(1);
    let affine = Packing::Affine { bits: 4, group: 64, scales: Number::F32 };
    let stored = Stored::new(&mut dice, affine, 4, 128);
    let x = dice.bytes_of(Number::F32, 128);
    let rows = Rows { bytes: &x, number: Number::F32, rows: 1, inputs: 128, stride: 128 };
    let refused = |matrix: Matrix<'_>, rows: Rows<'_>, out: usize| {
        let mut out = vec![0; out];
        matmul(&pool, Isa::best(), &rows, &matrix, &mut out).unwrap_err().to_string()
    };
    let matrix = stored.matrix();
    assert_eq!(refused(matrix, rows, 15), "results take 15 bytes where 16 were expected");
    let shorter = Rows { inputs: 64, ..rows };
    assert_eq!(
        refused(matrix, shorter, 16),
        "rows of 64 numbers do not fit a matrix of 128 inputs"
    );
    assert!(refused(matrix, Rows { rows: 2, ..rows }, 32).starts_with("rows take 512 bytes"));
    let cut = Matrix { weights: &stored.weights[1..], ..matrix };
    assert_eq!(refused(cut, rows, 16), "weights take 255 bytes where 256 were expected");
    let odd = Packing::Affine { bits: 7, group: 64, scales: Number::F32 };
    assert!(refused(Matrix { packing: odd, ..matrix }, rows, 16).contains("cannot be packed"));
    assert!("mmx".parse::<Isa>().unwrap_err().to_string().contains("plain"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn chosen_matrices_give_the_bits_of_single_ones(
        kind in 0..packings().len(),
        outputs in 1..40_usize,
        threads in prop::sample::select(&[1, 3][..]),
        choices in prop::collection::vec((0..9_usize, 0..5_usize), 0..60),
    ) {
        let packing = packings()[kind];
        let inputs = 64 * packing.group().map_or(1, |group| group.div_ceil(64));
        let mut dice = Dice::new(7);
        let stack = Stored::new(&mut dice, packing, 5 * outputs, inputs);
        let x = dice.bytes_of(Number::Bf16, 9 * inputs);
        let rows = |first: usize, rows: usize| Rows {
            bytes: &x[first * inputs * 2..(first + rows) * inputs * 2],
            number: Number::Bf16,
            rows,
            inputs,
            stride: inputs,
        };
        let pool = Pool::new(NonZeroUsize::new(threads).unwrap());
        let choices: Vec<Choice> =
            choices.into_iter().map(|(row, matrix)| Choice { row, matrix }).collect();
        let mut found = vec![0xff; choices.len() * outputs * 2];
        matmul_chosen(&pool, Isa::best(), &rows(0, 9), &stack.matrix(), 5, &choices, &mut found).unwrap();
        for (choice, found) in choices.iter().zip(found.chunks(outputs * 2)) {
            let mut all = vec![0; 5 * outputs * 2];
            matmul(&pool, Isa::best(), &rows(choice.row, 1), &stack.matrix(), &mut all).unwrap();
            assert_eq!(found, &all[choice.matrix * outputs * 2..][..outputs * 2]);
        }
        let beyond = [Choice { row: 0, matrix: 5 }];
        let mut out = vec![0; outputs * 2];
        let refused = matmul_chosen(&pool, Isa::best(), &rows(0, 9), &stack.matrix(), 5, &beyond, &mut out);
        assert!(matches!(refused, Err(Misfit::Count { .. })));
    }
}
