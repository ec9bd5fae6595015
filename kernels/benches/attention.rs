//! What packed keys and values cost and save: the attention of one token, and of a prompt, beside plain ones.
//!
//! `cargo bench -p planaria-kernels --bench attention [-- POSITIONS]`, on one thread; times are the processor's, of turns that
//! alternate.

#![expect(clippy::print_stdout, reason = "a benchmark's figures")]
#![expect(clippy::indexing_slicing, clippy::expect_used, reason = "what it makes itself")]

use std::num::NonZeroUsize;

use planaria_kernels::{Attention, Heads, Isa, KvBits, Number, Pairs, Pool, attend};
use rustix::time::{ClockId, clock_gettime};

/// Ratios are of the medians of so many turns.
const TURNS: usize = 31;

const KEY_HEADS: usize = 8;
const SHARING: usize = 4;
const WIDTH: usize = 128;
/// Caches that take turns, so that none is in the processor's own.
const CACHES: usize = 8;

fn main() {
    let words = std::env::args().skip(1).filter(|word| !word.starts_with("--"));
    let positions = words.filter_map(|word| word.parse().ok()).next().unwrap_or(4096);
    println!(
        "{}: {KEY_HEADS} key heads, {SHARING} queries each, {WIDTH} wide, {positions} positions, bf16",
        Isa::best()
    );
    println!("{:<8} {:>10} {:>12} {:>12}", "kv-bits", "bytes", "1 query", "64 queries");
    let kinds = [None, Some(KvBits::Eight), Some(KvBits::Four)];
    let caches: Vec<Vec<Vec<u8>>> = kinds
        .iter()
        .map(|packed| (0..CACHES).map(|_| rows(*packed, positions)).collect())
        .collect();
    let mut times = [const { [Vec::new(), Vec::new()] }; 3];
    for turn in 0..TURNS {
        for (kind, packed) in kinds.iter().enumerate() {
            for (at, queries) in [1, 64].into_iter().enumerate() {
                let cache = |more: usize| &*caches[kind][(turn + more) % CACHES];
                let keys = heads(cache(0), *packed, positions);
                let values = heads(cache(CACHES / 2), *packed, positions);
                times[kind][at].push(seconds(keys, values, queries));
            }
        }
    }
    let median = |times: &[f64]| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[TURNS / 2]
    };
    for (kind, packed) in kinds.iter().enumerate() {
        let over = |at: usize| median(&times[kind][at]) / median(&times[0][at]);
        println!(
            "{:<8} {:>10} {:>12.2} {:>12.2}",
            packed.map_or("none".to_owned(), |bits| format!("{bits:?}").to_lowercase()),
            row_bytes(*packed),
            over(0),
            over(1)
        );
    }
}

const fn row_bytes(packed: Option<KvBits>) -> usize {
    match packed {
        None => WIDTH * 2,
        Some(bits) => bits.row_bytes(WIDTH, Number::Bf16),
    }
}

/// Any numbers of a usual size, as scales too.
fn rows(packed: Option<KvBits>, positions: usize) -> Vec<u8> {
    let count = KEY_HEADS * positions * row_bytes(packed);
    (0..count)
        .map(|at| if at % 2 == 0 { u8::try_from(at * 7 % 251).unwrap_or(0) } else { 0x3c })
        .collect()
}

fn heads(bytes: &[u8], packed: Option<KvBits>, positions: usize) -> Heads<'_> {
    let row = if packed.is_some() { row_bytes(packed) } else { WIDTH };
    Heads {
        bytes,
        number: Number::Bf16,
        packed,
        heads: KEY_HEADS,
        positions,
        width: WIDTH,
        head_stride: positions * row,
        position_stride: row,
    }
}

/// Of the processor.
fn seconds(keys: Heads<'_>, values: Heads<'_>, queries: usize) -> f64 {
    let pool = Pool::new(NonZeroUsize::MIN);
    let asked = vec![0x3c; KEY_HEADS * SHARING * queries * WIDTH * 2];
    let queries = Heads {
        bytes: &asked,
        number: Number::Bf16,
        packed: None,
        heads: KEY_HEADS * SHARING,
        positions: queries,
        width: WIDTH,
        head_stride: queries * WIDTH,
        position_stride: WIDTH,
    };
    let mut out = vec![0; asked.len()];
    let attention = Attention {
        pairs: Pairs { queries, keys },
        beside: None,
        values,
        first: 0,
        scale: 0.01,
        window: None,
        softcap: None,
        sinks: None,
        chosen: None,
    };
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let begun = now();
    attend(&pool, Isa::best(), &attention, &mut out).expect("sizes fit");
    now() - begun
}
