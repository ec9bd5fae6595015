//! What is done row by row has the same bits everywhere, and is what MLX's operations compose.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use planaria_kernels::{
    Gate, Isa, LayerNorm, Misfit, Number, Pool, Rotary, Rows, add, gated, layer_norm, rms_norm,
    rotate,
};

use crate::support::{Dice, NUMBERS, read};

const WIDTHS: [usize; 5] = [2, 16, 30, 96, 1026];

type Combined<'a> = dyn Fn(f32, f32) -> f32 + 'a;

fn rows(bytes: &[u8], number: Number, inputs: usize) -> Rows<'_> {
    let rows = bytes.len() / number.bytes() / inputs;
    Rows { bytes, number, rows, inputs, stride: inputs }
}

/// Rounds as the type does.
fn round(number: Number, value: f32) -> f32 {
    match number {
        Number::F32 => value,
        Number::F16 => f16::from_f32(value).to_f32(),
        Number::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

/// What `compute` gives for some threads and every instruction set: one and the same.
fn same_everywhere(bytes: usize, compute: impl Fn(&Pool, Isa, &mut [u8])) -> Vec<u8> {
    let mut first = None;
    for threads in [1, 3] {
        let pool = Pool::new(NonZeroUsize::new(threads).unwrap());
        for isa in Isa::all() {
            let mut out = vec![0xff; bytes];
            compute(&pool, isa, &mut out);
            assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "{isa}, {threads} threads");
        }
    }
    first.unwrap()
}

/// Numbers that differ by no more than a unit or two in the last place.
fn assert_near(number: Number, found: f32, expected: f32) {
    let unit = match number {
        Number::F32 => 3e-6,
        Number::F16 => 2e-3,
        Number::Bf16 => 1.6e-2,
    };
    let off = (found - expected).abs();
    assert!(off <= unit * expected.abs().max(1e-3), "{number:?}: {found} in place of {expected}");
}

#[test]
fn norms() {
    for number in NUMBERS {
        for width in WIDTHS {
            let mut dice = Dice::new(width as u64);
            let (x, weight) = (dice.bytes_of(number, 37 * width), dice.bytes_of(number, width));
            let (all, factors) = (rows(&x, number, width), rows(&weight, number, width));
            let out = same_everywhere(x.len(), |pool, isa, out| {
                rms_norm(pool, isa, &all, &factors, 1e-5, out).unwrap();
            });
            let (x, weight, out) = (read(number, &x), read(number, &weight), read(number, &out));
            for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                let mean = squares / width as f64 + 1e-5;
                for ((x, weight), out) in x.iter().zip(&weight).zip(out) {
                    let scaled = f64::from(*x) / mean.sqrt();
                    #[expect(clippy::cast_possible_truncation, reason = "as the kernel does")]
                    let expected = round(number, scaled as f32) * weight;
                    assert_near(number, *out, expected);
                }
            }
        }
    }
}

#[test]
fn norms_around_the_mean() {
    for number in NUMBERS {
        for width in WIDTHS {
            let mut dice = Dice::new(width as u64);
            let x = dice.bytes_of(number, 37 * width);
            let mut some = || (0..width).map(|_| dice.number()).collect::<Vec<f32>>();
            let (weight, bias) = (some(), some());
            let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-2 };
            let all = rows(&x, number, width);
            let out = same_everywhere(x.len(), |pool, isa, out| {
                layer_norm(pool, isa, &all, &norm, out).unwrap();
            });
            let (x, out) = (read(number, &x), read(number, &out));
            for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                let mean = x.iter().sum::<f64>() / width as f64;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                for (((x, weight), bias), out) in x.iter().zip(&weight).zip(&bias).zip(out) {
                    let normed = (x - mean) / (variance + 1e-2).sqrt();
                    let expected = normed * f64::from(*weight) + f64::from(*bias);
                    let unit = if number == Number::F32 { 1e-5 } else { 2e-2 };
                    assert!((f64::from(*out) - expected).abs() < unit, "{out}, not {expected}");
                }
            }
        }
    }
    let norm = LayerNorm { weight: &[1.0], bias: &[0.0; 2], eps: 1e-2 };
    let pool = Pool::new(NonZeroUsize::MIN);
    let x = rows(&[0; 16], Number::F32, 2);
    assert!(layer_norm(&pool, Isa::best(), &x, &norm, &mut [0; 16]).is_err());
}

#[test]
fn sums() {
    for number in NUMBERS {
        for width in WIDTHS {
            let mut dice = Dice::new(1);
            let (a, b) = (dice.bytes_of(number, 600 * width), dice.bytes_of(number, 600 * width));
            let (a_rows, b_rows) = (rows(&a, number, width), rows(&b, number, width));
            let out = same_everywhere(a.len(), |pool, isa, out| {
                add(pool, isa, &a_rows, &b_rows, out).unwrap();
            });
            let first = Rows { rows: 1, ..b_rows };
            let to_all = same_everywhere(a.len(), |pool, isa, out| {
                add(pool, isa, &a_rows, &first, out).unwrap();
            });
            let (a, b) = (read(number, &a), read(number, &b));
            let (out, to_all) = (read(number, &out), read(number, &to_all));
            for (place, a) in a.iter().enumerate() {
                assert_eq!(out[place].to_bits(), round(number, a + b[place]).to_bits());
                let expected = round(number, a + b[place % width]);
                assert_eq!(to_all[place].to_bits(), expected.to_bits());
            }
        }
    }
}

#[test]
fn gates() {
    for number in NUMBERS {
        let round = |value| round(number, value);
        let sigmoid = |x: f32| {
            let small = 1.0 / (1.0 + round(x.abs().exp()));
            round(if x < 0.0 { small } else { 1.0 - small })
        };
        let silu = |gate: f32, value: f32| round(gate * sigmoid(gate)) * value;
        let gelu = |gate: f32, value: f32| {
            let cube = round(round(gate * gate) * gate);
            let inner = round(gate + round(round(0.044_715) * cube));
            let bent = round(round(round((2.0 / std::f32::consts::PI).sqrt()) * inner).tanh());
            round(round(0.5 * gate) * round(1.0 + bent)) * value
        };
        let clamped = |gate: f32, value: f32| {
            let (gate, value) = (gate.min(0.75), value.clamp(-0.75, 0.75));
            round(value + 1.0) * round(gate * sigmoid(round(round(1.702) * gate)))
        };
        let mut dice = Dice::new(3);
        let (gates, values) = (dice.bytes_of(number, 700 * 30), dice.bytes_of(number, 700 * 30));
        let clamped_silu = |gate: f32, value: f32| {
            round(gate * sigmoid(gate)).min(0.75) * value.clamp(-0.75, 0.75)
        };
        let expected: [(Gate, &Combined<'_>); 4] = [
            (Gate::Silu, &silu),
            (Gate::GeluTanh, &gelu),
            (Gate::ClampedSwish { limit: 0.75 }, &clamped),
            (Gate::ClampedSilu { limit: 0.75 }, &clamped_silu),
        ];
        for (gate, expected) in expected {
            let (all, others) = (rows(&gates, number, 30), rows(&values, number, 30));
            let out = same_everywhere(gates.len(), |pool, isa, out| {
                gated(pool, isa, gate, &all, &others, out).unwrap();
            });
            let pairs = read(number, &gates).into_iter().zip(read(number, &values));
            for ((gate, value), out) in pairs.zip(read(number, &out)) {
                assert_near(number, out, round(expected(gate, value)));
            }
        }
    }
}

#[test]
fn rotary_positions() {
    for number in NUMBERS {
        for (dims, width) in [(30, 30), (16, 40), (64, 96)] {
            for (traditional, amplitude) in [(false, 1.0), (true, 1.0), (false, 1.3)] {
                let mut dice = Dice::new(5);
                let x = dice.bytes_of(number, 50 * 3 * width);
                let own = dice.bytes_of(number, 50 * dims);
                let partner = dice.bytes_of(number, 50 * dims);
                let rotary = Rotary {
                    own: rows(&own, number, dims),
                    partner: rows(&partner, number, dims),
                    heads: 3,
                    traditional,
                    amplitude,
                };
                let all = rows(&x, number, width);
                let out = same_everywhere(x.len(), |pool, isa, out| {
                    rotate(pool, isa, &all, &rotary, out).unwrap();
                });
                let (x, out) = (read(number, &x), read(number, &out));
                let (own, partner) = (read(number, &own), read(number, &partner));
                let round = |value| round(number, value);
                for (row, (x, out)) in x.chunks(width).zip(out.chunks(width)).enumerate() {
                    let louder = |place: usize| {
                        if amplitude == 1.0 { x[place] } else { round(x[place] * round(amplitude)) }
                    };
                    for place in 0..width {
                        let expected = if place < dims {
                            let half = dims / 2;
                            let other = if traditional { place ^ 1 } else { (place + half) % dims };
                            let factor = row / 3 * dims + place;
                            let a = round(louder(place) * own[factor]);
                            round(a + round(louder(other) * partner[factor]))
                        } else {
                            x[place]
                        };
                        assert_eq!(out[place].to_bits(), expected.to_bits());
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let bytes = [0; 96];
    let pool = Pool::new(NonZeroUsize::MIN);
    let isa = Isa::best();
    let (six, four) = (rows(&bytes, Number::F32, 6), rows(&bytes, Number::F32, 4));
    let halves = rows(&bytes, Number::F16, 6);
    let mut out = [0; 96];
    assert_eq!(add(&pool, isa, &six, &six, &mut out), Ok(()));
    for wrong in [four, halves, Rows { rows: 3, ..six }, Rows { stride: 7, ..six }] {
        assert!(add(&pool, isa, &six, &wrong, &mut out).is_err(), "{wrong:?}");
    }
    assert!(rms_norm(&pool, isa, &six, &four, 0.0, &mut out).is_err());
    assert!(gated(&pool, isa, Gate::Silu, &six, &four, &mut out).is_err());
    let short = add(&pool, isa, &six, &six, &mut out[1..]);
    assert!(matches!(short, Err(Misfit::Size { what: "results", .. })));
    let factors = Rows { rows: 2, ..four };
    let rotary =
        Rotary { own: factors, partner: factors, heads: 2, traditional: false, amplitude: 1.0 };
    assert_eq!(rotate(&pool, isa, &six, &rotary, &mut out), Ok(()));
    for heads in [0, 1, 3] {
        assert!(rotate(&pool, isa, &six, &Rotary { heads, ..rotary }, &mut out).is_err());
    }
}
