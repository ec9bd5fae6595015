//! What the latency strategy gains over the memory-weighted ring, and how long it takes to find.
//!
//! `cargo bench -p planaria-engine --bench placement` prints two tables. Clusters are drawn at random
//! from Macs that exist (memory bandwidth as their maker states it), with half as much memory again as
//! the model needs; decoding is taken to be bound by bandwidth, at 80 % of it.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]
#![expect(clippy::indexing_slicing, reason = "a number below the length is drawn")]

use std::time::Instant;

use planaria_config::NodeId;
use planaria_engine::geometry::{Geometry, WorkingSet};
use planaria_engine::partition::latency::{Candidate, Problem, cost, least_latency};
use planaria_engine::partition::{Member, layers_that_fit, ring_memory_weighted};

/// Name, GB/s, and the memory sizes it is sold with, in GiB.
const MACS: [(&str, f64, &[u64]); 12] = [
    ("M1", 68.0, &[8, 16]),
    ("M1 Pro", 200.0, &[16, 32]),
    ("M1 Max", 400.0, &[32, 64]),
    ("M2", 100.0, &[8, 16, 24]),
    ("M2 Pro", 200.0, &[16, 32]),
    ("M2 Max", 400.0, &[32, 64, 96]),
    ("M2 Ultra", 800.0, &[64, 128, 192]),
    ("M3", 100.0, &[8, 16, 24]),
    ("M3 Pro", 150.0, &[18, 36]),
    ("M4", 120.0, &[16, 24, 32]),
    ("M4 Pro", 273.0, &[24, 48, 64]),
    ("M4 Max", 546.0, &[36, 64, 128]),
];

/// Clusters of each size.
const CLUSTERS: usize = 100;

/// Context and sequences that memory is kept for.
const CONTEXT: u32 = 4096;
const SEQUENCES: u32 = 1;

fn main() {
    println!(
        "Modelled time per token, memory-weighted ring over latency strategy: median of {CLUSTERS} random\n\
         clusters (tenth to ninetieth percentile), and how many of the nodes the latter uses.\n"
    );
    println!("model        nodes  streams  ring / latency        nodes used");
    for (name, geometry) in [
        ("8B 4-bit", model(32, 4096, 1024, 131_000_000)),
        ("70B 4-bit", model(80, 8192, 1024, 481_000_000)),
    ] {
        for count in [2, 3, 4, 6, 8, 12] {
            for streams in [1, 8] {
                compare(name, &geometry, count, streams);
            }
        }
    }
    println!("\nTime to solve, 80 layers: median (most) of 20 random clusters.\n");
    println!("nodes  streams  ms");
    for count in [4, 8, 12, 16, 32, 64] {
        for streams in [1, 8] {
            solve_times(count, streams);
        }
    }
}

fn compare(name: &str, geometry: &Geometry, count: usize, streams: u32) {
    let (mut ratios, mut used) = (Vec::new(), Vec::new());
    let mut dice = Dice(0x5eed + count as u64);
    for _ in 0..10_000 {
        let cluster = Cluster::random(&mut dice, count, geometry);
        let problem = cluster.problem(geometry, streams);
        let members: Vec<Member> = problem
            .nodes
            .iter()
            .map(|node| Member {
                memory: node.memory,
                id: node.id,
                max_layers: Some(layers_that_fit(geometry, node.memory, CONTEXT, SEQUENCES)),
            })
            .collect();
        let ring = ring_memory_weighted(&members, geometry.layers()).ok();
        let ring = ring.and_then(|stages| cost(&problem, &stages));
        if let (Some(ring), Ok(best)) = (ring, least_latency(&problem)) {
            ratios.push(ring.objective / best.cost.objective);
            used.push(best.stages.len() as f64);
        }
        if ratios.len() == CLUSTERS {
            break;
        }
    }
    ratios.sort_by(f64::total_cmp);
    used.sort_by(f64::total_cmp);
    let at = |percent: usize| ratios.get(ratios.len() * percent / 100).copied().unwrap_or(f64::NAN);
    println!(
        "{name:<11} {count:>6} {streams:>8}  {:.2} ({:.2} to {:.2}) {:>14}",
        at(50),
        at(10),
        at(90),
        used.get(used.len() / 2).copied().unwrap_or(f64::NAN),
    );
}

fn solve_times(count: usize, streams: u32) {
    let geometry = model(80, 8192, 1024, 481_000_000);
    let mut dice = Dice(77);
    let mut times = Vec::new();
    while times.len() < 20 {
        let cluster = Cluster::random(&mut dice, count, &geometry);
        let problem = cluster.problem(&geometry, streams);
        let start = Instant::now();
        let solved = least_latency(&problem);
        let took = start.elapsed().as_secs_f64() * 1e3;
        if solved.is_ok() {
            times.push(took);
        }
    }
    times.sort_by(f64::total_cmp);
    let (median, most) = (times.get(times.len() / 2), times.last());
    println!(
        "{count:>5} {streams:>8}  {:.2} ({:.2})",
        median.copied().unwrap_or(f64::NAN),
        most.copied().unwrap_or(f64::NAN)
    );
}

/// A model with layers of so many bytes.
fn model(layers: usize, hidden: u32, kv_width: u64, bytes: u64) -> Geometry {
    // 128,256 tokens of 4 bits and their scales.
    let vocab = 128_256;
    let head = u64::from(vocab) * u64::from(hidden) * 9 / 16;
    Geometry {
        bytes_per_layer: vec![bytes; layers],
        embed_bytes: head,
        head_bytes: head,
        tied: false,
        kv_bytes_per_token_per_layer: 4 * kv_width,
        kv_layers: Vec::new(),
        hidden_bytes: 2 * hidden,
        max_context: 131_072,
        vocab,
        working: WorkingSet::default(),
        cut: None,
        whole: false,
    }
}

struct Cluster {
    nodes: Vec<Candidate>,
    hops: Vec<f64>,
}

impl Cluster {
    /// Nodes whose memory is scaled so that together they offer one and a half times the need.
    fn random(dice: &mut Dice, count: usize, geometry: &Geometry) -> Self {
        let average = geometry.weight_bytes(geometry.all_layers()) as f64
            / f64::from(geometry.layers().get());
        let mut nodes = Vec::new();
        for id in 0..count {
            let (_, bandwidth, sizes) = dice.choose(&MACS);
            let memory = dice.choose(sizes) << 30;
            let layer_seconds = average / (0.8 * bandwidth * 1e9);
            let id = NodeId::from_bytes([u8::try_from(id).unwrap_or(u8::MAX); 32]);
            nodes.push(Candidate {
                id,
                memory,
                layer_seconds,
                stage_seconds: 5e-4,
                held: None,
                pinned: None,
            });
        }
        let need = u128::from(geometry.peak_bytes(geometry.all_layers(), CONTEXT, SEQUENCES));
        let offered: u128 = nodes.iter().map(|node| u128::from(node.memory)).sum();
        for node in &mut nodes {
            // Of every byte four fifths can be used.
            let scaled = u128::from(node.memory) * need * 3 / 2 * 5 / 4 / offered;
            node.memory = u64::try_from(scaled).unwrap_or(u64::MAX);
        }
        // Wireless, gigabit and Thunderbolt: half a round trip and bytes per second.
        let links = [(2e-3, 40e6), (2e-4, 117e6), (2e-4, 117e6), (8e-5, 2e9)];
        let hop = |_| {
            let (half, rate) = dice.choose(&links);
            half + f64::from(geometry.hidden_bytes) / rate
        };
        let hops = (0..count * count).map(hop).collect();
        Self { nodes, hops }
    }

    fn problem<'a>(&'a self, geometry: &'a Geometry, streams: u32) -> Problem<'a> {
        let Self { nodes, hops } = self;
        Problem { geometry, context: CONTEXT, sequences: SEQUENCES, streams, nodes, hops }
    }
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        from[usize::try_from(number).unwrap_or(0) % from.len()]
    }
}
