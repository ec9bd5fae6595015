//! Layers that settings pin nodes to.

use planaria_config::LayerRange;

use super::latency::{LATENCY, fast};
use super::*;

/// A member that could hold all layers.
fn free(byte: u8) -> Member {
    fast(byte, 14, 1.0)
}

fn pinned(byte: u8, first: u32, last: u32) -> Member {
    let mut member = free(byte);
    let layers = LayerRange::inclusive(first, last).unwrap();
    Arc::make_mut(&mut member.report).pins.insert(model(), layers);
    member
}

fn layout(cluster: &Cluster) -> Vec<String> {
    let stages = cluster.layout().into_iter();
    stages.map(|(node, layers)| format!("{}: {layers}", node.as_bytes()[0])).collect()
}

#[test]
fn a_pinned_node_holds_its_layers_and_the_others_the_rest() {
    for sizing in [SIZING, LATENCY] {
        let mut cluster = Cluster::with(&[1, 2, 3], sizing);
        // One node alone would do.
        cluster.see(&[free(1), pinned(2, 4, 7), free(3)]);
        cluster.pass(TIMEOUTS.settle);
        let stages = layout(&cluster);
        assert_eq!(stages.len(), 3, "{stages:?}");
        assert_eq!(stages[1], "2: 4-7");
        assert_eq!(cluster.schedulers[&id(1)].unpinned(&model()), None);
    }
}

#[test]
fn a_new_pin_is_followed_at_once_and_gives_way_to_a_loss() {
    let mut cluster = Cluster::with(&[1, 2], LATENCY);
    let mut members = [free(1), free(2)];
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(layout(&cluster).len(), 1);
    // It comes back with other settings.
    members[1] =
        Member { incarnation: Incarnation { node: id(2), boot_count: 2 }, ..pinned(2, 8, 11) };
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(layout(&cluster), ["1: 0-7", "2: 8-11"]);
    members[1].state = NodeState::Down;
    cluster.schedulers.remove(&id(2));
    cluster.see(&members);
    cluster.pass(Duration::ZERO);
    assert_eq!(layout(&cluster), ["1: 0-11"]);
    assert_eq!(cluster.schedulers[&id(1)].unpinned(&model()), None, "nobody is pinned any more");
}

#[test]
fn pins_that_cannot_be_followed_are_left_aside_and_said_so() {
    for sizing in [SIZING, LATENCY] {
        let mut cluster = Cluster::with(&[1, 2], sizing);
        cluster.see(&[pinned(1, 0, 7), pinned(2, 7, 11)]);
        cluster.pass(TIMEOUTS.settle);
        assert!(!cluster.layout().is_empty());
        let reason = cluster.schedulers[&id(2)].unpinned(&model()).unwrap();
        assert!(reason.contains("node-1 to 0-7, node-2 to 7-11"), "{reason}");
        assert!(reason.contains("overlap"), "{reason}");
    }
}

#[test]
fn nobody_says_that_pins_are_not_followed_by_a_plan_that_follows_them() {
    let mut cluster = Cluster::with(&[1, 2], LATENCY);
    cluster.see(&[free(1), pinned(2, 4, 7)]);
    cluster.pass(TIMEOUTS.settle);
    let reason = cluster.schedulers[&id(2)].unpinned(&model());
    assert!(reason.is_some_and(|reason| reason.contains("node-2 to 4-7")), "{reason:?}");
    // The planner sees who came before the other does, and has its plan in force before the other
    // has looked for one itself.
    let members = [free(1), pinned(2, 4, 7), free(3)];
    cluster.schedulers.insert(id(3), Scheduler::new(id(3), LATENCY, TIMEOUTS, &[]));
    let seen = SchedulerEvent::Members(View::of(members));
    cluster.tell(id(1), seen.clone());
    cluster.now += TIMEOUTS.settle;
    cluster.tell(id(2), seen.clone());
    cluster.tell(id(3), seen);
    cluster.tell(id(1), SchedulerEvent::Tick);
    assert_eq!(layout(&cluster)[1], "2: 4-7");
    for scheduler in cluster.schedulers.values() {
        assert_eq!(scheduler.unpinned(&model()), None);
    }
}
