use planaria_config::LayerRange;
use planaria_engine::geometry::WorkingSet;

use super::*;
use crate::wire::ShardWork;

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
        hidden_bytes: 8,
        max_context: 16,
        vocab: 10,
        working: WorkingSet::default(),
    };
    HeldModel { name: "m".parse().unwrap(), digest: digest(), geometry }
}

fn shard(first: u32, last: u32, step_micros: u32) -> ShardReport {
    let layers = LayerRange::inclusive(first, last).unwrap();
    let work = ShardWork { step_micros, ..ShardWork::default() };
    ShardReport { work, ..ShardReport::starting(&"m".parse().unwrap(), layers) }
}

#[test]
fn a_layer_is_estimated_until_it_was_computed() {
    let mut measures = Measures::default();
    assert!(measures.probed(Speed { bytes_per_second: 1000, flops_per_second: 1_000_000 }));
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
        speed: Some(Speed { bytes_per_second, flops_per_second: u64::MAX }),
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
fn absurd_measures_are_not_kept() {
    let mut measures = Measures::new(String::new(), None, BTreeMap::from([(digest(), f64::NAN)]));
    assert!(measures.known().layer_seconds.is_empty());
    assert!(!measures.shards(&[shard(7, 9, 1000)], &[held()]), "there are no such layers");
    measures.round_trips([(id(1), Duration::MAX)]);
    measures.arrived(id(1), u64::MAX, Duration::ZERO);
    assert!(measures.known().links[&id(1)].seconds(u32::MAX).is_finite());
}
