//! Products of the shapes of a model of 350M parameters and of one of 8B, as shares of what the machine can do.
//!
//! `cargo bench -p planaria-kernels [-- [ISA] [PART OF A PACKING'S NAME]]`; `PLANARIA_THREADS` threads, as many as
//! there are processors otherwise.

#![expect(clippy::print_stdout, reason = "a benchmark's figures")]
#![expect(clippy::indexing_slicing, clippy::expect_used, reason = "what it makes itself")]

use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use planaria_kernels::{Isa, Matrix, Number, Packing, Pool, Rows, matmul, measure};
use rustix::time::{ClockId, clock_gettime};

/// Each figure is the median of so many turns.
const TURNS: usize = 15;

/// Together more than caches hold: matrices of one shape that take turns.
const BYTES: usize = 400 << 20;

fn main() {
    let words = std::env::args().skip(1).filter(|word| !word.starts_with("--"));
    let (isas, wanted): (Vec<_>, Vec<_>) = words.partition(|word| word.parse::<Isa>().is_ok());
    let isa = isas.first().and_then(|name| name.parse().ok()).unwrap_or_else(Isa::best);
    let threads = std::env::var("PLANARIA_THREADS").ok().and_then(|text| text.parse().ok());
    let threads = threads.or_else(|| std::thread::available_parallelism().ok());
    let pool = Pool::new(threads.unwrap_or(NonZeroUsize::MIN));
    let second = Duration::from_secs(1);
    let rate = measure::multiply_adds(&pool, isa, second);
    let memory = measure::bytes_read(&pool, isa, BYTES, second);
    println!(
        "{isa}, {} threads: {:.1} G multiply-adds/s, {:.1} GB/s read",
        pool.threads(),
        rate / 1e9,
        memory / 1e9
    );
    println!("{:<34} {:>12} {:>8} {:>8} {:>8}", "", "shape", "GB/s", "1 row", "512 rows");
    let affine = |bits| Packing::Affine { bits, group: 64, scales: Number::Bf16 };
    for packing in [
        affine(4),
        affine(8),
        affine(3),
        Packing::Mxfp4,
        Packing::Nvfp4,
        Packing::Mxfp8,
        Packing::Dense(Number::F32),
        Packing::Dense(Number::Bf16),
        Packing::Dense(Number::F16),
    ] {
        let name = format!("{packing:?}");
        if !wanted.iter().all(|wanted| name.contains(wanted)) {
            continue;
        }
        for (outputs, inputs) in [(1024, 1024), (4096, 1024), (1024, 4096), (4096, 4096)] {
            row(&pool, isa, packing, (outputs, inputs), (rate, memory));
        }
    }
}

/// Seconds: on the processor if there is one thread, so that what else the machine does counts for less.
fn now(pool: &Pool) -> f64 {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let on_processor = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let alone = (pool.threads() == 1).then(on_processor);
    alone.unwrap_or_else(|| BEGUN.elapsed().as_secs_f64())
}

fn row(
    pool: &Pool,
    isa: Isa,
    packing: Packing,
    (outputs, inputs): (usize, usize),
    (rate, memory): (f64, f64),
) {
    let weights = outputs * inputs * packing.bits() / 8;
    let scales =
        packing.group().map_or(0, |group| outputs * inputs / group * packing.scale_bytes());
    let biases = if packing.has_biases() { scales } else { 0 };
    let bytes = weights + scales + biases;
    let count = BYTES.div_ceil(bytes).min(64);
    let stored: Vec<[Vec<u8>; 3]> =
        (0..count).map(|_| [vec![0x31; weights], vec![0x31; scales], vec![0x31; biases]]).collect();
    let matrix = |number: usize| {
        let [weights, scales, biases] = &stored[number % count];
        Matrix { packing, outputs, inputs, weights, scales, biases }
    };
    let x = vec![0x3d; 512 * inputs * 2];
    let mut out = vec![0; 512 * outputs * 2];
    let mut seconds = |rows: usize, each: usize| {
        let mut times = Vec::new();
        for turn in 0..TURNS {
            let begun = now(pool);
            for number in 0..each {
                let rows = Rows { bytes: &x, number: Number::Bf16, rows, inputs, stride: inputs };
                let out = &mut out[..rows.rows * outputs * 2];
                matmul(pool, isa, &rows, &matrix(turn * each + number), out).expect("sizes fit");
            }
            times.push((now(pool) - begun) / each as f64);
        }
        times.sort_by(f64::total_cmp);
        times[TURNS / 2]
    };
    let read = bytes as f64 / seconds(1, 20.min(count));
    let multiply_adds = 512.0 * (outputs * inputs) as f64 / seconds(512, 1);
    println!(
        "{:<34} {:>12} {:>8.1} {:>7.0}% {:>7.0}%",
        format!("{packing:?}").replace("Number::", "").chars().take(34).collect::<String>(),
        format!("{outputs}x{inputs}"),
        read / 1e9,
        100.0 * read / memory,
        100.0 * multiply_adds / rate
    );
}
