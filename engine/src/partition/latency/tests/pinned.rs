use super::*;
use crate::partition::pins::{Conflict, Pins};
use crate::partition::{Member, ring_around_pins};

/// Some nodes are pinned to layers that may be anywhere, overlap, or not be.
fn pin_some(dice: &mut Dice, instance: &mut Instance) {
    let layers = u64::from(instance.geometry.layers().get());
    for node in &mut instance.nodes {
        if dice.below(3) == 0 {
            let beyond = u64::from(dice.below(20) == 0);
            let first = dice.below(layers + beyond);
            let last = first + dice.below(2);
            let ends = [first, last].map(|end| u32::try_from(end).unwrap());
            node.pinned = LayerRange::inclusive(ends[0], ends[1]).ok();
        }
    }
}

fn follows(instance: &Instance, stages: &[(NodeId, LayerRange)]) -> bool {
    instance.nodes.iter().all(|node| {
        let stage = stages.iter().find(|(id, _)| *id == node.id).map(|(_, layers)| *layers);
        node.pinned.is_none() || stage == node.pinned
    })
}

/// What is left of brute force when all that does not follow the pins is thrown away.
fn best_that_follows(instance: &Instance) -> Option<f64> {
    let mut best = None;
    all_divisions(&instance.problem(), &mut |stages, cost| {
        if follows(instance, stages) && best.is_none_or(|best| cost < best) {
            best = Some(cost);
        }
    });
    best
}

#[test]
fn pins_are_followed_at_the_least_cost() {
    let (mut solved, mut refused) = (0, 0);
    for seed in 0..600 {
        let mut dice = Dice::new(5000 + seed);
        let count = 3 + dice.index(5);
        let layers: Vec<u64> = (0..count).map(|_| 50 + dice.below(100)).collect();
        let (embedding, head, tied) = (dice.below(100), dice.below(100), dice.below(2) == 0);
        let whole = layers.iter().sum::<u64>() + 300;
        let geometry = geometry(layers, embedding, if tied { 0 } else { head }, tied);
        let mut instance = Instance::random(&mut dice, 5, geometry, whole);
        pin_some(&mut dice, &mut instance);
        if instance.nodes.iter().all(|node| node.pinned.is_none()) {
            continue;
        }
        let found = least_latency(&instance.problem());
        match best_that_follows(&instance) {
            None => {
                let error = found.unwrap_err();
                assert!(matches!(error, NoPlacement::Pinned(_)), "seed {seed}: {error}");
                refused += 1;
            }
            Some(best) => {
                let found = found.unwrap();
                assert!(follows(&instance, &found.stages), "seed {seed}: {found:?}");
                let cost = found.cost.objective;
                assert!((cost - best).abs() <= 1e-9 * best, "seed {seed}: {cost} and not {best}");
                solved += 1;
            }
        }
    }
    assert!(solved > 100 && refused > 100, "{solved} solved, {refused} refused");
}

#[test]
fn the_reason_names_the_layers() {
    let range = |first, last| LayerRange::inclusive(first, last).unwrap();
    let why = |pins: &[(usize, LayerRange)], bytes: u64| {
        let nodes = (1..=3).map(|id| Candidate {
            id: node(id),
            memory: memory(bytes),
            layer_seconds: 1e-3,
            stage_seconds: 0.0,
            held: None,
            pinned: pins.iter().find(|(pinned, _)| *pinned == id).map(|(_, layers)| *layers),
        });
        let instance = Instance {
            geometry: geometry(vec![100; 9], 0, 0, false),
            nodes: nodes.collect(),
            hops: vec![1e-3; 9],
            streams: 1,
        };
        least_latency(&instance.problem()).map(|found| found.stages)
    };
    let conflict = |conflict: Conflict| Err(NoPlacement::Pinned(conflict));
    assert_eq!(
        why(&[(1, range(3, 9))], 900),
        conflict(Conflict::Beyond { layers: range(3, 9), of: 9 })
    );
    let overlap = Conflict::Overlap(range(0, 4), range(4, 5));
    assert_eq!(why(&[(1, range(4, 5)), (2, range(0, 4))], 900), conflict(overlap));
    assert_eq!(why(&[(1, range(0, 4))], 400), conflict(Conflict::TooLarge(range(0, 4))));
    assert_eq!(why(&[(1, range(4, 4))], 300), conflict(Conflict::Rest));
    // A gap on either side and two nodes for them.
    let stages = why(&[(1, range(4, 4))], 400).unwrap();
    assert_eq!(stages[1], (node(1), range(4, 4)));
    assert_eq!(stages.len(), 3);
}

#[test]
fn a_large_cluster_with_pins_is_solved() {
    let mut dice = Dice::new(77);
    let geometry = geometry(vec![100; 80], 50, 50, false);
    let mut instance = Instance::random(&mut dice, 1, geometry, 1);
    let template = instance.nodes[0];
    let nodes = (1..=64).map(|id| Candidate {
        id: node(id),
        memory: memory(600 + 10 * dice.below(60)),
        layer_seconds: dice.between(1e-3, 2e-2),
        pinned: [(3, 10), (9, 40), (20, 71)]
            .iter()
            .find(|(pinned, _)| *pinned == id)
            .map(|(_, first)| LayerRange::inclusive(*first, first + 4).unwrap()),
        ..template
    });
    instance.nodes = nodes.collect();
    instance.streams = 1;
    for node in instance.nodes.iter_mut().filter(|node| node.pinned.is_some()) {
        node.layer_seconds = 2e-3;
    }
    instance.hops = (0..64 * 64).map(|_| dice.between(1e-4, 2e-3)).collect();
    let found = least_latency(&instance.problem()).unwrap();
    assert!(follows(&instance, &found.stages));
    assert!(fits(&instance.problem(), &found.stages));
    // No worse than to leave the ends of the model to whoever has the memory.
    let free: Vec<_> =
        instance.nodes.iter().map(|node| Candidate { pinned: None, ..*node }).collect();
    let free = least_latency(&Problem { nodes: &free, ..instance.problem() }).unwrap();
    let ratio = found.cost.objective / free.cost.objective;
    assert!((1.0..1.5).contains(&ratio), "{ratio}");
}

#[test]
fn a_ring_goes_around_pins() {
    let range = |first, last| LayerRange::inclusive(first, last).unwrap();
    let member = |id, memory| Member { memory, id: node(id), max_layers: None };
    let layers = NonZeroU32::new(20).unwrap();
    let pins = Pins::new([(node(9), range(4, 7))], layers).unwrap();
    let members = [member(1, 40), member(2, 20), member(3, 20)];
    // Gaps of 4 and 12 layers: the largest member alone has more than a quarter of the memory.
    let stages = ring_around_pins(&members, &pins, layers).unwrap();
    let expected = [(1, 0, 3), (9, 4, 7), (3, 8, 13), (2, 14, 19)];
    assert_eq!(stages, expected.map(|(id, first, last)| (node(id), range(first, last))));
    assert_eq!(ring_around_pins(&members[..1], &pins, layers), Err(Conflict::Rest));
    let full = Pins::new([(node(9), range(0, 9)), (node(8), range(10, 19))], layers).unwrap();
    let stages = ring_around_pins(&members, &full, layers).unwrap();
    assert_eq!(stages, [(node(9), range(0, 9)), (node(8), range(10, 19))]);
    let tight = [Member { max_layers: Some(3), ..member(1, 40) }, member(2, 20)];
    assert_eq!(ring_around_pins(&tight, &pins, layers), Err(Conflict::Rest));
}
