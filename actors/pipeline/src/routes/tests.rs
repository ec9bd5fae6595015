use std::collections::BTreeSet;

use planaria_config::SequenceId;
use planaria_control::testing::member;
use planaria_protocol::state::NodeState;
use planaria_protocol::wire::{Forward, RunningReport};

use super::*;
use crate::sequence::machine::tests::{group_of, node, plan_of};

const SECOND: Duration = Duration::from_secs(1);

fn frame(plan: &Plan, body: DataBody) -> DataHeader {
    DataHeader {
        epoch: plan.epoch(),
        sequence: SequenceId::from_bits(1),
        owner: member(1, 1, 1).incarnation,
        attempt: 0,
        position: 0,
        trace: None,
        sent: None,
        body,
    }
}

fn forward(plan: &Plan) -> DataHeader {
    let forward = Forward { stage: 0, tokens: vec![1], open: None, sample: false, more: false };
    frame(plan, DataBody::Forward(forward))
}

/// Node 1 reports these plans, and that a sequence of its runs under each of those.
fn says(plans: &[&Arc<Plan>], running: Option<&[&Arc<Plan>]>) -> Member {
    let mut owner = member(1, 1, 1);
    let report = Arc::make_mut(&mut owner.report);
    report.plans = plans.iter().map(|plan| Plan::clone(plan)).collect();
    report.running = running.map(|running| {
        let report = |plan: &&Arc<Plan>| RunningReport {
            sequence: SequenceId::from_bits(1),
            epoch: plan.epoch(),
        };
        running.iter().map(report).collect()
    });
    owner
}

fn epochs(routes: &Routes) -> BTreeSet<u64> {
    routes.routes.keys().map(|epoch| epoch.counter).collect()
}

#[test]
fn a_plan_in_force_stays_whatever_is_prepared_beside_it() {
    let (start, mut routes) = (Instant::now(), Routes::new(node(1)));
    let in_force = plan_of(1, &[(1, 0, 3), (2, 4, 7)]);
    routes.prepare(start, &in_force);
    routes.follow(start, [&*in_force].into_iter());
    // A third node is tried again and again, and cannot load.
    for counter in 2..200 {
        let now = start + SECOND * u32::try_from(counter).unwrap() * 30;
        routes.prepare(now, &plan_of(counter, &[(1, 0, 2), (3, 3, 7)]));
        routes.follow(now, [&*in_force].into_iter());
        routes.look(now, &View::of([says(&[&in_force], Some(&[])), member(2, 1, 1)]));
        assert!(matches!(routes.way(&forward(&in_force)), Way::Stage(_)), "{counter}");
        assert!(epochs(&routes).len() <= 3, "{:?}", epochs(&routes));
    }
    routes.abort(plan_of(199, &[(1, 0, 7)]).epoch());
    assert!(!epochs(&routes).contains(&199), "given up");
    routes.abort(in_force.epoch());
    assert!(routes.plan(in_force.epoch()).is_some(), "what is in force is not");
}

#[test]
fn a_replaced_plan_stays_until_no_sequence_runs_under_it() {
    let (start, mut routes) = (Instant::now(), Routes::new(node(2)));
    let [old, new] = [1, 2].map(|counter| plan_of(counter, &[(1, 0, 3), (2, 4, 7)]));
    routes.follow(start, [&*old].into_iter());
    routes.follow(start, [&*new].into_iter());
    let mut look = |after: u32, owner: Member| {
        routes.look(start + SECOND * after, &View::of([owner, member(2, 1, 1)]));
        epochs(&routes).contains(&1)
    };
    assert!(look(1, says(&[&new], Some(&[]))), "a report may be on its way");
    assert!(look(20, says(&[&old], Some(&[]))), "it has not heard of the next");
    assert!(look(3000, says(&[&new], Some(&[&old]))));
    assert!(look(3001, says(&[&new], None)), "of an earlier build");
    let mut gone = says(&[&new], Some(&[&old]));
    gone.state = NodeState::Down;
    assert!(!look(3002, gone));

    routes.follow(start, [&*old].into_iter());
    assert!(epochs(&routes).contains(&2), "the other way round too");
    routes.look(start + UNREPORTED, &View::of([says(&[], None)]));
    assert_eq!(epochs(&routes), BTreeSet::from([1]), "an earlier build's patience is bounded");
}

#[test]
fn what_is_about_a_sequence_is_obeyed_under_a_fenced_plan_and_nothing_is_computed() {
    let (now, mut routes) = (Instant::now(), Routes::new(node(1)));
    let plan = plan_of(1, &[(1, 0, 3), (2, 4, 7)]);
    routes.follow(now, [&*plan].into_iter());
    let mut lost = member(2, 1, 1);
    lost.state = NodeState::Down;
    routes.look(now, &View::of([member(1, 1, 1), lost]));
    let layers = plan.stage(0).map(|stage| stage.layers);
    assert_eq!(routes.way(&forward(&plan)), Way::Nowhere(0, layers));
    assert!(routes.plan(plan.epoch()).is_none());
    let check = DataBody::Check { number: 1, stage: 0, round: 0 };
    assert_eq!(routes.way(&frame(&plan, check)), Way::Stage(Arc::clone(&plan)));
    let release = DataBody::Release { stage: 0 };
    let way = routes.way(&frame(&plan, release.clone()));
    assert_eq!(way, Way::Holder(Some(Arc::clone(&plan))));
    let unknown = plan_of(9, &[(1, 0, 7)]);
    assert_eq!(routes.way(&frame(&unknown, release)), Way::Holder(None));
    // The node was lost for a moment.
    routes.follow(now, [&*plan].into_iter());
    assert_eq!(routes.way(&forward(&plan)), Way::Stage(plan));
}

/// Layers 4-7 on nodes 2 and 3, behind node 1.
fn with_group(counter: u64) -> Arc<Plan> {
    group_of(counter, &[(1, 0, 3), (2, 4, 7)], &[(2, 0, 5), (3, 5, 8)])
}

#[test]
fn frames_for_a_group_go_to_its_leader_and_another_rank_refuses_them() {
    let (now, plan) = (Instant::now(), with_group(1));
    let layers = plan.stage(1).map(|stage| stage.layers);
    let forward = Forward { stage: 1, tokens: vec![1], open: None, sample: false, more: false };
    let check = DataBody::Check { number: 1, stage: 1, round: 0 };
    for body in [DataBody::Forward(forward), check] {
        for (me, leads) in [(1, false), (2, true), (3, false)] {
            let mut routes = Routes::new(node(me));
            routes.follow(now, [&*plan].into_iter());
            let header = frame(&plan, body.clone());
            let expected =
                if leads { Way::Stage(Arc::clone(&plan)) } else { Way::Nowhere(1, layers) };
            assert_eq!(routes.way(&header), expected, "{me}");
        }
    }
    let mut routes = Routes::new(node(3));
    routes.follow(now, [&*plan].into_iter());
    // Whoever holds a sequence hears of its end, whichever rank that is.
    let release = frame(&plan, DataBody::Release { stage: 1 });
    assert_eq!(routes.way(&release), Way::Holder(Some(plan)));
}

#[test]
fn a_group_is_reached_until_its_plan_is_fenced_and_known_until_that_is_retired() {
    let (start, mut routes) = (Instant::now(), Routes::new(node(2)));
    let [before, after] = [with_group(1), group_of(2, &[(1, 0, 3), (2, 4, 7)], &[(2, 0, 8)])];
    let group = |plan: &Plan, stage| GroupId { epoch: plan.epoch(), stage, attempt: 9 };
    let ranks = |plan: &Plan| plan.stages()[1].ranks.clone();
    assert!(routes.group(&group(&before, 1)).is_none() && !routes.knows_group(&ranks(&before)));
    // Ranks exchange sums before they hear that it is in force.
    routes.prepare(start, &before);
    let (plan, stage) = routes.group(&group(&before, 1)).unwrap();
    assert_eq!((plan, &stage.ranks), (&before, &ranks(&before)));
    for stage in [0, 2] {
        assert!(routes.group(&group(&before, stage)).is_none(), "{stage} is no group");
    }
    routes.follow(start, [&*before].into_iter());
    assert!(routes.group(&group(&before, 1)).is_some());
    assert!(routes.group(&group(&after, 1)).is_none(), "nobody has heard of that one");

    let lost = || Member { state: NodeState::Down, ..member(3, 1, 1) };
    let look = |routes: &mut Routes, after: u32, owner: Member| {
        routes.look(start + SECOND * after, &View::of([owner, member(2, 1, 1), lost()]));
    };
    look(&mut routes, 1, says(&[&before], Some(&[&before])));
    assert!(routes.group(&group(&before, 1)).is_none(), "one of its ranks is over");
    assert!(routes.knows_group(&ranks(&before)), "sequences may be taken up from it");
    routes.follow(start + SECOND, [&*after].into_iter());
    look(&mut routes, 60, says(&[&after], Some(&[&before])));
    assert!(routes.knows_group(&ranks(&before)), "one still runs");
    look(&mut routes, 61, says(&[&after], Some(&[])));
    assert!(!routes.knows_group(&ranks(&before)));
    assert!(routes.knows_group(&ranks(&after)));
}
