//! When a plan changes for the better, and what is ready for the worse.

use planaria_protocol::capabilities::LinkSpeed;

use super::*;

pub(super) const LATENCY: Sizing = Sizing { strategy: Strategy::Latency, ..SIZING };

/// A member with memory for about so many of the 12 layers, which computes one in so many
/// milliseconds, and has links to nodes 1 to 4.
pub(super) fn fast(byte: u8, layers: u64, layer_ms: f64) -> Member {
    let mut member = member(byte, 1, layers * 25 / 2 + 1);
    let report = Arc::make_mut(&mut member.report);
    let digest = report.models[0].digest;
    report.capabilities.layer_seconds.insert(digest, layer_ms / 1e3);
    let link = LinkSpeed { rtt_micros: 200, bytes_per_second: None };
    report.capabilities.links = (1..5).filter(|b| *b != byte).map(|b| (id(b), link)).collect();
    member
}

fn cluster(members: &[Member]) -> Cluster {
    let bytes: Vec<u8> = members.iter().map(|m| m.incarnation.node.as_bytes()[0]).collect();
    let mut cluster = Cluster::with(&bytes, LATENCY);
    cluster.see(members);
    cluster.pass(TIMEOUTS.settle);
    cluster
}

fn failovers(cluster: &Cluster, byte: u8) -> Vec<(NodeId, Option<String>)> {
    let scheduler = &cluster.schedulers[&id(byte)];
    let model = model();
    let shown = |layout: &Layout| {
        let stage = |s: &planaria_protocol::plan::Assignment| {
            format!("{}={}", s.incarnation.node.as_bytes()[0], s.layers)
        };
        layout.stages.iter().map(stage).collect::<Vec<_>>().join(" ")
    };
    scheduler.failovers(&model).map(|(node, layout)| (node, layout.map(shown))).collect()
}

#[test]
fn a_model_stays_on_the_fastest_node_that_holds_it() {
    let cluster = cluster(&[fast(1, 12, 2.0), fast(2, 12, 1.0), fast(3, 12, 3.0)]);
    assert_eq!(cluster.layout(), [layers(2, "0-11")]);
}

#[test]
fn a_faster_node_takes_over_once_it_was_better_for_long_enough() {
    let slow = [fast(1, 12, 2.0), fast(2, 12, 3.0)];
    let mut cluster = cluster(&slow);
    assert_eq!(cluster.layout(), [layers(1, "0-11")]);
    cluster.schedulers.insert(id(3), Scheduler::new(id(3), LATENCY, TIMEOUTS, &[]));
    let [first, second] = slow;
    cluster.see(&[first, second, fast(3, 12, 1.0)]);
    cluster.pass(TIMEOUTS.settle);
    cluster.pass(TIMEOUTS.dwell - Duration::from_secs(1));
    assert_eq!(cluster.adopted.len(), 2, "the first plan, by both, and no other yet");
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.layout(), [layers(3, "0-11")]);
}

#[test]
fn what_is_better_for_a_moment_changes_nothing() {
    let mut cluster = cluster(&[fast(1, 12, 2.0), fast(2, 12, 3.0)]);
    cluster.see(&[fast(1, 12, 2.0), fast(2, 12, 1.0)]);
    cluster.pass(TIMEOUTS.appraise);
    cluster.pass(TIMEOUTS.dwell / 2);
    cluster.see(&[fast(1, 12, 2.0), fast(2, 12, 3.0)]);
    cluster.pass(TIMEOUTS.dwell / 2);
    // Better again: the time counts from here.
    cluster.see(&[fast(1, 12, 2.0), fast(2, 12, 1.0)]);
    cluster.pass(TIMEOUTS.appraise);
    cluster.pass(TIMEOUTS.dwell / 2);
    assert_eq!(cluster.layout(), [layers(1, "0-11")]);
    cluster.pass(TIMEOUTS.dwell / 2);
    assert_eq!(cluster.layout(), [layers(2, "0-11")]);
}

#[test]
fn what_is_a_little_better_changes_nothing() {
    let mut cluster = cluster(&[fast(1, 12, 2.0), fast(2, 12, 3.0)]);
    cluster.see(&[fast(1, 12, 2.0), fast(2, 12, 1.8)]);
    for _ in 0..10 {
        cluster.pass(TIMEOUTS.dwell);
    }
    assert_eq!(cluster.layout(), [layers(1, "0-11")]);
    assert_eq!(cluster.adopted.len(), 2, "one plan, adopted by both");
}

#[test]
fn what_there_is_no_memory_for_beside_the_old_is_not_begun() {
    // The node in the middle would hold others than now, and has no room for both.
    let members = |first, last| [fast(1, 5, first), fast(2, 4, 0.5), fast(3, 5, last)];
    let mut cluster = cluster(&members(1.0, 4.0));
    let before = [layers(1, "0-4"), layers(2, "5-8"), layers(3, "9-11")];
    assert_eq!(cluster.layout(), before);
    cluster.see(&members(4.0, 1.0));
    cluster.pass(TIMEOUTS.appraise);
    cluster.pass(TIMEOUTS.dwell);
    assert_eq!(cluster.layout(), before);
}

#[test]
fn what_a_node_has_already_needs_no_room_beside_it() {
    let members = |layer_ms| [fast(1, 8, 2.0), fast(2, 8, layer_ms)];
    let mut cluster = cluster(&members(2.0));
    assert_eq!(cluster.layout(), [layers(1, "0-7"), layers(2, "8-11")]);
    cluster.see(&members(0.5));
    cluster.pass(TIMEOUTS.appraise);
    cluster.pass(TIMEOUTS.dwell);
    assert_eq!(cluster.layout(), [layers(1, "0-3"), layers(2, "4-11")]);
}

#[test]
fn measures_that_change_do_not_disturb_who_loads() {
    let mut cluster = cluster(&[fast(1, 12, 2.0), fast(2, 12, 3.0)]);
    cluster.silent = BTreeSet::from([id(2)]);
    cluster.see(&[fast(1, 12, 2.0), fast(2, 12, 1.0)]);
    cluster.pass(TIMEOUTS.appraise);
    cluster.pass(TIMEOUTS.dwell);
    let preparing = |cluster: &Cluster| {
        cluster.schedulers[&id(1)].preparing.get(&model()).map(|p| p.plan.clone())
    };
    let begun = preparing(&cluster);
    assert!(begun.is_some());
    cluster.see(&[fast(1, 12, 1.5), fast(2, 12, 1.0)]);
    cluster.pass(TIMEOUTS.appraise);
    assert_eq!(preparing(&cluster), begun);
}

#[test]
fn a_loss_is_met_by_the_failover_plan() {
    let members = [fast(1, 8, 1.0), fast(2, 8, 1.0), fast(3, 8, 1.0)];
    let mut cluster = cluster(&members);
    let [(first, _), (second, _)] = cluster.layout().try_into().unwrap();
    let planned = failovers(&cluster, 1);
    assert_eq!(planned.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [first, second]);
    let (lost, expected) = planned[1].clone();
    let survivors: Vec<Member> = members
        .iter()
        .cloned()
        .map(|mut member| {
            if member.incarnation.node == lost {
                member.state = NodeState::Down;
            }
            member
        })
        .collect();
    cluster.schedulers.remove(&lost);
    cluster.see(&survivors);
    let found = cluster.layout();
    let found = found.iter().map(|(node, layers)| format!("{}={layers}", node.as_bytes()[0]));
    assert_eq!(Some(found.collect::<Vec<_>>().join(" ")), expected);
}

#[test]
fn a_cluster_that_cannot_lose_a_node_says_so() {
    let cluster = cluster(&[fast(1, 8, 1.0), fast(2, 8, 1.0)]);
    assert_eq!(cluster.layout().len(), 2);
    assert!(failovers(&cluster, 1).iter().all(|(_, layout)| layout.is_none()));
    assert_eq!(failovers(&cluster, 1).len(), 2);
}

#[test]
fn who_leaves_hands_its_layers_over_while_it_still_serves() {
    let mut cluster = cluster(&[fast(1, 12, 1.0), fast(2, 12, 2.0)]);
    let mut leaving = fast(1, 12, 1.0);
    Arc::make_mut(&mut leaving.report).leaving = true;
    cluster.see(&[leaving, fast(2, 12, 2.0)]);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout(), [layers(2, "0-11")]);
}

#[test]
fn nodes_without_links_wait_for_them() {
    let apart = |byte| {
        let mut member = fast(byte, 8, 1.0);
        Arc::make_mut(&mut member.report).capabilities.links.clear();
        member
    };
    let mut cluster = cluster(&[apart(1), apart(2)]);
    let (state, reason) = cluster.schedulers[&id(1)].state(&model());
    assert_eq!(state, ModelState::Unavailable);
    assert!(reason.contains("not all connected"), "{reason}");
    cluster.see(&[fast(1, 8, 1.0), fast(2, 8, 1.0)]);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout().len(), 2);
}
