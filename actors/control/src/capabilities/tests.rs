use planaria_config::{Incarnation, LayerRange};
use planaria_engine::architecture::RankUnits;
use planaria_engine::geometry::WorkingSet;
use planaria_engine::speed::Accelerator;
use planaria_protocol::plan::RankAssignment;
use planaria_protocol::wire::{RankStep, ShardWork};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn id(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 32])
}

fn digest() -> ModelDigest {
    "11".repeat(32).parse().unwrap()
}

/// Four layers of 100 bytes and a head of 200.
fn held() -> HeldModel {
    let geometry = Geometry {
        bytes_per_layer: vec![100; 4],
        embed_bytes: 0,
        head_bytes: 200,
        tied: false,
        kv_bytes_per_token_per_layer: 1,
        kv_layers: Vec::new(),
        hidden_bytes: 8,
        max_context: 16,
        vocab: 10,
        working: WorkingSet::default(),
        cut: None,
        whole: false,
    };
    HeldModel {
        name: "m".parse().unwrap(),
        digest: digest(),
        geometry,
        content: None,
        unreadable: None,
    }
}

fn device(bytes_per_second: u64, flops_per_second: u64) -> Device {
    let speed = Speed { bytes_per_second, flops_per_second };
    Device { accelerator: Accelerator::None, speed }
}

fn kernels(name: &str, threads: u32) -> Kernels {
    Kernels { name: name.to_owned(), threads, arithmetic: String::new() }
}

fn shard(first: u32, last: u32, step_micros: u32) -> ShardReport {
    let layers = LayerRange::inclusive(first, last).unwrap();
    let work = ShardWork { step_micros, step_layers: Some(layers), ..ShardWork::default() };
    ShardReport { work, ..ShardReport::starting(&"m".parse().unwrap()) }
}

#[test]
fn a_layer_is_estimated_until_it_was_computed() {
    let mut measures = Measures::default();
    assert!(measures.probed(Probed { device: device(1000, 1_000_000), kernels: None }));
    let seconds = |measures: &Measures| {
        let geometry = held().geometry;
        LayerSpeeds::of([].into_iter(), digest(), &geometry).on(measures.known())
    };
    assert!((seconds(&measures) - 0.1).abs() < 1e-9);
    // The last two layers and the head: as much work as four layers.
    assert!(measures.shards(&[shard(2, 3, 80_000)], &[held()]));
    assert!((seconds(&measures) - 0.02).abs() < 1e-9);
}

#[test]
fn estimates_are_corrected_by_what_others_measured() {
    let node = |bytes_per_second, measured: Option<f64>| Capabilities {
        device: Some(device(bytes_per_second, u64::MAX)),
        layer_seconds: measured.map(|seconds| (digest(), seconds)).into_iter().collect(),
        ..Capabilities::default()
    };
    // 100 bytes: the first is estimated at 0.1 s, the second at 0.2, the third at 0.05.
    let nodes = [node(1000, Some(0.3)), node(500, Some(0.8)), node(2000, None)];
    let geometry = held().geometry;
    let speeds = LayerSpeeds::of(nodes.iter(), digest(), &geometry);
    let seconds = nodes.each_ref().map(|node| speeds.on(node));
    // Wrong by factors of 3 and 4; of two, the larger.
    for (found, expected) in seconds.into_iter().zip([0.3, 0.8, 0.2]) {
        assert!((found - expected).abs() < 1e-9, "{seconds:?}");
    }
}

#[test]
fn small_changes_are_no_news() {
    let mut measures = Measures::default();
    assert!(measures.shards(&[shard(0, 1, 1000)], &[held()]));
    assert!(!measures.shards(&[shard(0, 1, 1090)], &[held()]));
    assert!(measures.shards(&[shard(0, 1, 1110)], &[held()]));
    assert!(!measures.shards(&[shard(0, 1, 0)], &[held()]), "nothing was computed yet");

    assert!(measures.round_trips([(id(1), 2 * MS)]));
    assert!(!measures.round_trips([(id(1), 3 * MS)]));
    assert!(measures.round_trips([(id(1), 4 * MS)]));

    let memory = |bytes, percent| MemoryState {
        available_bytes: Some(bytes),
        pressure_percent: Some(percent),
    };
    assert!(measures.memory(memory(1000, 0)));
    assert!(!measures.memory(memory(1090, 0)));
    assert!(measures.memory(memory(1000, 1)));

    let path = |micros, rate| PathSpeed {
        address: ([10, 0, 0, 1], 1).into(),
        in_use: true,
        rtt_micros: micros,
        bytes_per_second: rate,
    };
    let paths = |path| BTreeMap::from([(id(1), vec![path])]);
    assert!(measures.paths(paths(path(Some(1000), None))));
    assert!(!measures.paths(paths(path(Some(1400), None))));
    assert!(measures.paths(paths(path(Some(1400), Some(1000)))));
    assert!(!measures.paths(paths(path(Some(1400), Some(1090)))));
    assert!(measures.paths(paths(PathSpeed { in_use: false, ..path(Some(1400), Some(1090)) })));
    assert!(measures.paths(paths(path(None, None))), "the way is lost");
    assert!(measures.paths(BTreeMap::new()));
}

#[test]
fn a_link_that_is_gone_is_forgotten() {
    let mut measures = Measures::default();
    assert!(measures.round_trips([(id(1), MS), (id(2), MS)]));
    assert!(measures.arrived(id(2), 1_000_000, 10 * MS));
    assert!(measures.round_trips([(id(1), MS)]));
    assert_eq!(measures.known().links.keys().copied().collect::<Vec<_>>(), [id(1)]);
    assert!(!measures.arrived(id(2), 1_000_000, MS), "an answer that came too late");
}

#[test]
fn a_hop_takes_half_a_round_trip_and_its_time_on_the_wire() {
    let mut measures = Measures::default();
    measures.round_trips([(id(1), 2 * MS)]);
    measures.arrived(id(1), 1_000_000, 100 * MS);
    let link = measures.known().links[&id(1)];
    assert!((link.seconds(5000) - 0.0015).abs() < 1e-9);
}

#[test]
fn what_other_kernels_or_threads_did_is_forgotten() {
    let measured = |accelerator, kernels| Measured {
        device: Some(Device { accelerator, ..device(1000, 1_000_000) }),
        kernels,
        layer_seconds: BTreeMap::from([(digest(), 0.1)]),
    };
    let remembers = |measured: &Measured, now: &Kernels| {
        let measures = Measures::new(String::new(), measured.clone(), Some(now));
        let known = measures.known();
        assert_eq!(known.device.is_some(), !known.layer_seconds.is_empty());
        known.device.is_some() && known.kernels == measured.kernels
    };
    let now = kernels("avx2", 2);
    assert!(remembers(&measured(Accelerator::None, Some(now.clone())), &now));
    for former in [None, Some(kernels("avx2", 4)), Some(kernels("plain", 2))] {
        assert!(!remembers(&measured(Accelerator::None, former), &now));
    }
    assert!(remembers(&measured(Accelerator::Cuda, None), &now), "a GPU has no part in that");
}

#[test]
fn kernels_are_news() {
    let mut measures = Measures::default();
    let probed = |threads| Probed {
        device: device(1000, 1_000_000),
        kernels: Some(kernels("avx2", threads)),
    };
    assert!(measures.probed(probed(2)));
    assert!(!measures.probed(probed(2)));
    assert!(measures.probed(probed(1)));
}

#[test]
fn absurd_measures_are_not_kept() {
    let layer_seconds = BTreeMap::from([(digest(), f64::NAN)]);
    let remembered = Measured { layer_seconds, ..Measured::default() };
    let mut measures = Measures::new(String::new(), remembered, None);
    assert!(measures.known().layer_seconds.is_empty());
    assert!(!measures.shards(&[shard(7, 9, 1000)], &[held()]), "there are no such layers");
    measures.round_trips([(id(1), Duration::MAX)]);
    measures.arrived(id(1), u64::MAX, Duration::ZERO);
    assert!(measures.known().links[&id(1)].seconds(u32::MAX).is_finite());
}

/// A shard of which a node has these of eight units.
fn rank(nodes: &[u8], units: std::ops::Range<u16>, step_micros: u32, exchange: u32) -> ShardReport {
    let mut shard = shard(0, 3, step_micros);
    let units = RankUnits::new(&units, &units).unwrap();
    shard.work.step_rank = Some(RankStep { units, of: 8, exchange_micros: exchange });
    let life = |node: &u8| Incarnation { node: id(*node), boot_count: 1 };
    let ranks = nodes.iter().map(|node| RankAssignment { incarnation: life(node), units });
    shard.ranks = ranks.collect();
    shard
}

#[test]
fn a_rank_tells_what_whole_layers_take_a_node_alone() {
    let seconds = |shard: ShardReport| {
        let mut measures = Measures::default();
        assert!(measures.shards(&[shard], &[held()]));
        *measures.known().layer_seconds.get(&digest()).unwrap()
    };
    // Eight half-layers of 80 us besides products. Half of four layers, and for the leader the head, as much as two.
    assert!((seconds(rank(&[1, 2], 4..8, 2_640, 0)) - 1e-3).abs() < 1e-9);
    assert!((seconds(rank(&[1, 2], 0..4, 4_640, 0)) - 1e-3).abs() < 1e-9);
    // Some of a step is left for products, however short it is.
    assert!(seconds(rank(&[1, 2], 4..8, 100, 0)) > 0.0);
}

#[test]
fn a_rank_remembers_what_exchanges_took_in_its_last_groups() {
    let mut measures = Measures::default();
    let mut say = |nodes: &[u8], exchange| {
        measures.shards(&[rank(nodes, 0..4, 4_640, exchange)], &[held()]);
        let groups = &measures.known().groups;
        groups.iter().map(|group| (group.members.len(), group.exchange_micros)).collect::<Vec<_>>()
    };
    assert_eq!(say(&[1], 10), [], "alone");
    assert_eq!(say(&[1, 2], 0), [], "before the first");
    assert_eq!(say(&[1, 2], 200), [(2, 200)]);
    assert_eq!(say(&[2, 1], 210), [(2, 200)], "nothing new");
    assert_eq!(say(&[1, 2, 3], 300), [(2, 200), (3, 300)]);
    assert_eq!(say(&[1, 2], 400), [(3, 300), (2, 400)]);
    say(&[1, 3], 500);
    say(&[1, 4], 600);
    assert_eq!(say(&[1, 5], 700), [(2, 400), (2, 500), (2, 600), (2, 700)], "not more");
}
