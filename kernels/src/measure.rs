//! What a machine can do at most: what the speed of a product is compared with.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{LANES, Simd, Task};

/// Multiply-adds of `f32` per second of all threads together, from registers.
#[must_use]
pub fn multiply_adds(pool: &Pool, isa: Isa, time: Duration) -> f64 {
    let begun = Instant::now();
    let mut done = 0_u64;
    while begun.elapsed() < time {
        pool.each(pool.threads(), &|_| isa.run(Chains));
        done += Chains::MULTIPLY_ADDS * pool.threads() as u64;
    }
    done as f64 / begun.elapsed().as_secs_f64()
}

/// Bytes per second that all threads together read from memory that no cache holds.
#[must_use]
pub fn bytes_read(pool: &Pool, isa: Isa, bytes: usize, time: Duration) -> f64 {
    let memory = vec![[1.0_f32; LANES]; bytes / size_of::<[f32; LANES]>()];
    let parts = pool.threads() * 8;
    let part = memory.len().div_ceil(parts);
    let begun = Instant::now();
    let mut rounds = 0_u64;
    while rounds == 0 || begun.elapsed() < time {
        pool.each(parts, &|number| {
            let vectors = memory.get(number * part..).unwrap_or_default();
            let vectors = vectors.get(..part).unwrap_or(vectors);
            black_box(isa.run(Sum(vectors)));
        });
        rounds += 1;
    }
    (rounds * size_of_val(memory.as_slice()) as u64) as f64 / begun.elapsed().as_secs_f64()
}

/// As many chains as hide the latency of a multiply-add.
struct Chains;

impl Chains {
    const COUNT: usize = 12;
    const LENGTH: usize = 4096;
    const MULTIPLY_ADDS: u64 = (Self::COUNT * Self::LENGTH * LANES) as u64;
}

impl Task for Chains {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let factor = simd.splat(black_box(0.5));
        let mut chains = [simd.splat(1.0); Self::COUNT];
        for _ in 0..Self::LENGTH {
            for chain in &mut chains {
                *chain = simd.mul_add(*chain, factor, factor);
            }
        }
        for chain in chains {
            black_box(simd.sum(chain));
        }
    }
}

/// Every vector once.
struct Sum<'a>(&'a [[f32; LANES]]);

impl Task for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat(0.0); 4];
        for four in self.0.as_chunks::<4>().0 {
            for (sum, vector) in sums.iter_mut().zip(four) {
                *sum = simd.add(*sum, simd.load(vector));
            }
        }
        let [a, b, c, d] = sums;
        simd.sum(simd.add(simd.add(a, b), simd.add(c, d)))
    }
}
