//! Plans whose layers several nodes share.

use planaria_protocol::plan::Assignment;

use super::*;
use crate::testing::sharing;

const TENSOR: Sizing = Sizing { strategy: Strategy::Tensor, ..SIZING };

/// Three members that can share layers, with memory for all of them.
fn ranks() -> [Member; 3] {
    [1, 2, 3].map(|byte| sharing(byte, 400, 10.0))
}

/// A cluster in which a plan of one group over three nodes is in force.
fn cluster() -> (Cluster, Plan) {
    let mut cluster = Cluster::with(&[1, 2, 3], TENSOR);
    cluster.see(&ranks());
    cluster.pass(TIMEOUTS.settle);
    let plan = in_force(&cluster);
    assert_eq!((plan.nodes().count(), plan.has_groups()), (3, true), "{plan}");
    (cluster, plan)
}

/// The plan that all have in force.
fn in_force(cluster: &Cluster) -> Plan {
    let plans: Vec<_> = cluster.schedulers.values().map(|s| s.plan(&model()).unwrap()).collect();
    assert!(plans.iter().all(|plan| *plan == plans[0]), "{plans:?}");
    plans[0].clone()
}

/// What a member says of its worker, which is a rank of the only group of a plan.
fn says(member: &mut Member, plan: &Plan, state: ShardState) {
    let [Assignment { layers, ranks, .. }] = plan.stages() else { panic!("{plan}") };
    let held = if state == ShardState::Ready { vec![*layers] } else { Vec::new() };
    let report = Arc::make_mut(&mut member.report);
    report.plans = vec![plan.clone()];
    report.shards = vec![ShardReport {
        state,
        held: held.into_iter().collect(),
        ranks: ranks.clone(),
        reason: "its worker keeps dying".to_owned(),
        ..ShardReport::starting(&model())
    }];
}

/// The same members, each with its rank's worker ready.
fn ready(plan: &Plan) -> [Member; 3] {
    let mut members = ranks();
    members.iter_mut().for_each(|member| says(member, plan, ShardState::Ready));
    members
}

fn state(cluster: &Cluster) -> (ModelState, String) {
    cluster.schedulers[&id(1)].state(&model())
}

#[test]
fn a_plan_with_a_group_is_in_force_once_all_ranks_have_loaded_their_units() {
    let mut cluster = Cluster::with(&[1, 2, 3], TENSOR);
    cluster.silent = BTreeSet::from([id(3)]);
    cluster.see(&ranks());
    cluster.pass(TIMEOUTS.settle);
    assert!(cluster.adopted.is_empty(), "{:?}", cluster.adopted);
    let waits = (ModelState::Loading, "waiting for node-3 to load".to_owned());
    assert_eq!(state(&cluster), waits, "though it leads nothing");
    cluster.silent.clear();
    cluster.pass(TIMEOUTS.resend);
    let plan = in_force(&cluster);
    assert_eq!(plan.leaders().collect::<Vec<_>>(), [id(1)]);
    let adopted: Vec<_> =
        cluster.adopted.iter().map(|(node, plan)| (*node, plan.epoch())).collect();
    assert_eq!(adopted, [1, 2, 3].map(|byte| (id(byte), plan.epoch())));
    // A rank that cannot load calls it off at all of them, and is left out.
    let mut cluster = Cluster::with(&[1, 2, 3], TENSOR);
    cluster.failing = BTreeSet::from([id(3)]);
    cluster.see(&ranks());
    cluster.pass(TIMEOUTS.settle);
    let called_off: BTreeSet<NodeId> = cluster.abandoned.iter().map(|(node, _)| *node).collect();
    assert_eq!(called_off, BTreeSet::from([1, 2, 3].map(id)));
    assert_eq!(in_force(&cluster).nodes().collect::<Vec<_>>(), [id(1), id(2)]);
}

#[test]
fn a_model_loads_while_the_worker_of_a_rank_restarts() {
    let (mut cluster, plan) = cluster();
    cluster.see(&ready(&plan));
    assert_eq!(state(&cluster), (ModelState::Ready, String::new()));
    let mut members = ready(&plan);
    says(&mut members[1], &plan, ShardState::Restarting);
    cluster.see(&members);
    assert_eq!(state(&cluster), (ModelState::Loading, "the worker of node-2 restarts".to_owned()));
    cluster.see(&ready(&plan));
    assert_eq!(state(&cluster).0, ModelState::Ready);
    // A worker of whole layers, and that of another group, are no ranks of this one.
    for others in [Vec::new(), plan.stages()[0].ranks[..2].to_vec()] {
        let mut members = ready(&plan);
        Arc::make_mut(&mut members[1].report).shards[0].ranks = others;
        cluster.see(&members);
        let loads = (ModelState::Loading, "node-2 loads its layers".to_owned());
        assert_eq!(state(&cluster), loads);
    }
    assert_eq!(in_force(&cluster), plan);
}

#[test]
fn a_rank_that_gave_up_its_units_is_left_out() {
    let (mut cluster, plan) = cluster();
    // What another worker of the same node has given up is no matter of the group.
    let mut members = ready(&plan);
    says(&mut members[2], &plan, ShardState::Failed);
    Arc::make_mut(&mut members[2].report).shards[0].ranks.clear();
    cluster.see(&members);
    assert_eq!(
        (in_force(&cluster), cluster.schedulers[&id(1)].left_out(&model())),
        (plan.clone(), vec![])
    );
    says(&mut members[2], &plan, ShardState::Failed);
    cluster.see(&members);
    let [reason] = cluster.schedulers[&id(1)].left_out(&model()).try_into().unwrap();
    assert!(reason.starts_with("node-3: its worker keeps dying"), "{reason}");
    let next = in_force(&cluster);
    assert_eq!(next.nodes().collect::<Vec<_>>(), [id(1), id(2)], "{next}");
    assert_eq!(next.parts().takes_over, None, "it lives, and has its keys and values");
}

#[test]
fn the_death_of_a_rank_is_met_at_once_by_those_beside_it() {
    for lost in [1_u8, 2, 3] {
        let (mut cluster, plan) = cluster();
        let mut members = ready(&plan);
        cluster.see(&members);
        cluster.schedulers.remove(&id(lost));
        members[usize::from(lost) - 1].state = NodeState::Down;
        cluster.see(&members);
        let next = in_force(&cluster);
        assert_eq!(next.parts().takes_over, Some(plan.epoch()), "{next}");
        let before: Vec<_> = plan.stages()[0].ranks.iter().map(|rank| rank.units).collect();
        let place = usize::from(lost) - 1;
        let left = planaria_engine::partition::group::take_over(&before, place).unwrap();
        let [stage] = next.stages() else { panic!("{next}") };
        assert_eq!(stage.ranks.iter().map(|rank| rank.units).collect::<Vec<_>>(), left);
        let survivors = [1, 2, 3].into_iter().filter(|byte| *byte != lost).map(id);
        assert_eq!(next.nodes().collect::<Vec<_>>(), survivors.collect::<Vec<_>>());
    }
}

#[test]
fn a_plan_that_has_lost_a_rank_serves_nobody() {
    let (mut cluster, plan) = cluster();
    let mut members = ready(&plan);
    cluster.see(&members);
    cluster.schedulers.remove(&id(3));
    cluster.silent = BTreeSet::from([id(2)]);
    members[2].state = NodeState::Down;
    cluster.see(&members);
    assert_eq!(cluster.schedulers[&id(1)].plan(&model()), None);
    assert_eq!(state(&cluster), (ModelState::Loading, "waiting for node-2 to load".to_owned()));
}

#[test]
fn a_rank_in_another_life_is_another_one() {
    let (mut cluster, plan) = cluster();
    let mut members = ready(&plan);
    cluster.see(&members);
    let again = Incarnation { boot_count: 2, ..members[2].incarnation };
    members[2] = Member { incarnation: again, ..ranks()[2].clone() };
    cluster.see(&members);
    let next = in_force(&cluster);
    assert_eq!(next.parts().takes_over, Some(plan.epoch()), "the others go on without it");
    // Then it gets a share, with a plan of its own that is better by far.
    for _ in 0..10 {
        cluster.pass(TIMEOUTS.dwell);
    }
    let last = in_force(&cluster);
    assert_eq!((last.nodes().count(), last.parts().takes_over), (3, None), "{last}");
    assert_eq!(last.lives().last(), Some(again));
}

#[test]
fn who_is_back_takes_part_however_slow_that_is() {
    let (mut cluster, plan) = cluster();
    let mut members = ready(&plan);
    cluster.see(&members);
    let again = Incarnation { boot_count: 2, ..members[2].incarnation };
    members[2] = Member { incarnation: again, ..ranks()[2].clone() };
    for member in &mut members {
        let links = &mut Arc::make_mut(&mut member.report).capabilities.links;
        links.values_mut().for_each(|link| link.rtt_micros = 1_000_000);
    }
    cluster.see(&members);
    assert_eq!(in_force(&cluster).nodes().count(), 2);
    cluster.pass(TIMEOUTS.dwell / 2);
    assert_eq!(in_force(&cluster).nodes().count(), 2, "not at once");
    for _ in 0..10 {
        cluster.pass(TIMEOUTS.dwell);
    }
    let last = in_force(&cluster);
    assert_eq!(last.lives().last(), Some(again), "{last}");
    for _ in 0..10 {
        cluster.pass(TIMEOUTS.dwell);
    }
    assert_eq!(in_force(&cluster), last);
}
