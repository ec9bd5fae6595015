//! Files that differ, change, or cannot be read.

use planaria_config::LayerSet;
use planaria_engine::model_dir::{Content, PartDigest};

use super::*;

fn content(tokenizer: &str, weights: Option<&str>) -> Content {
    let digest = |of: &str| PartDigest::of([of.as_bytes()]);
    Content {
        tokenizer: Some(digest(tokenizer)),
        weights: weights.map(digest),
        ..Content::default()
    }
}

fn hold(member: &mut Member, content: Content) {
    Arc::make_mut(&mut member.report).models[0].content = Some(content);
}

/// Three members that hold the same files.
fn alike() -> [Member; 3] {
    [1, 2, 3].map(|byte| {
        let mut member = member(byte, 1, 200);
        hold(&mut member, content("a", Some("w")));
        member
    })
}

/// Has every member say that it holds what the plan in force gives to it.
fn have_loaded(cluster: &Cluster, members: &mut [Member]) {
    let plan = cluster.schedulers[&id(1)].plan(&model()).cloned().unwrap();
    for member in members {
        let (_, stage) = plan.stage_of(member.incarnation.node).unwrap();
        let shard = ShardReport {
            held: stage.layers.into(),
            state: ShardState::Ready,
            ..ShardReport::starting(&model())
        };
        let report = Arc::make_mut(&mut member.report);
        (report.shards, report.plans) = (vec![shard], vec![plan.clone()]);
    }
}

#[test]
fn who_has_another_tokenizer_gets_no_layers() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let mut members = alike();
    hold(&mut members[0], content("b", Some("w")));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout(), [layers(3, "0-5"), layers(2, "6-11")]);
    hold(&mut members[0], content("a", Some("w")));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout().len(), 3);
}

#[test]
fn weights_that_turn_out_to_differ_are_planned_around() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let mut members = alike();
    members.iter_mut().for_each(|member| hold(member, content("a", None)));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout().len(), 3, "they are used before they are read");
    for (member, weights) in members.iter_mut().zip(["w", "v", "w"]) {
        hold(member, content("a", Some(weights)));
    }
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout(), [layers(3, "0-5"), layers(1, "6-11")]);
}

#[test]
fn of_two_who_changed_its_weights_is_left_out() {
    let mut cluster = Cluster::new(&[1, 2]);
    let mut members: Vec<Member> = alike().into_iter().take(2).collect();
    members.iter_mut().for_each(|member| hold(member, content("a", None)));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    // What both say while the plan is in force is what it was made for.
    members.iter_mut().for_each(|member| hold(member, content("a", Some("w"))));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    hold(&mut members[0], content("a", Some("v")));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout(), [layers(2, "0-11")]);
}

#[test]
fn other_weights_on_all_nodes_are_another_plan_for_the_same_nodes() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let mut members = alike();
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let before = cluster.adopted.last().unwrap().1.clone();
    members.iter_mut().for_each(|member| hold(member, content("a", Some("v"))));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let after = cluster.adopted.last().unwrap().1.clone();
    assert!(after.epoch() > before.epoch());
    assert_eq!(after.stages(), before.stages());
    assert!(!after.computes_as(&before));
}

#[test]
fn who_cannot_read_its_files_keeps_what_it_holds_and_gets_no_more() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let mut members = alike();
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    have_loaded(&cluster, &mut members);
    cluster.see(&members);
    let adopted = cluster.adopted.len();
    let away = |member: &mut Member, reason: Option<&str>| {
        Arc::make_mut(&mut member.report).models[0].unreadable = reason.map(str::to_owned);
    };
    members.iter_mut().for_each(|member| away(member, Some("its folder is not there")));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.excluded * 2);
    assert_eq!(cluster.adopted.len(), adopted, "all goes on");
    assert_eq!(cluster.schedulers[&id(1)].state(&model()).0, ModelState::Ready);

    // What one of them loses cannot be loaded again, also not when it is forgiven.
    let shard = &mut Arc::make_mut(&mut members[2].report).shards[0];
    (shard.held, shard.state) = (LayerSet::EMPTY, ShardState::Failed);
    away(&mut members[0], None);
    away(&mut members[1], None);
    cluster.see(&members);
    assert_eq!(cluster.layout(), [layers(2, "0-5"), layers(1, "6-11")]);
    cluster.pass(TIMEOUTS.excluded * 2);
    assert_eq!(cluster.layout(), [layers(2, "0-5"), layers(1, "6-11")]);
    away(&mut members[2], None);
    Arc::make_mut(&mut members[2].report).shards.clear();
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout().len(), 3);
}

#[test]
fn who_could_not_load_may_try_with_other_files_at_once() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.failing.insert(id(3));
    let mut members = alike();
    hold(&mut members[2], content("a", None));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout().len(), 2);
    cluster.failing.clear();
    hold(&mut members[2], content("a", Some("w")));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout().len(), 3);
}

#[test]
fn who_failed_over_files_that_it_has_no_more_is_planned_for_with_the_new_ones() {
    let mut cluster = Cluster::new(&[1]);
    let mut members: Vec<Member> = alike().into_iter().take(1).collect();
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let before = cluster.adopted.last().unwrap().1.clone();
    have_loaded(&cluster, &mut members);
    let shard = &mut Arc::make_mut(&mut members[0].report).shards[0];
    (shard.held, shard.state) = (LayerSet::EMPTY, ShardState::Failed);
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.adopted.last().unwrap().1, before, "it is left out for now");
    // Its worker has given up for good, and says so on and on.
    hold(&mut members[0], content("a", Some("v")));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let after = cluster.adopted.last().unwrap().1.clone();
    assert!(after.epoch() > before.epoch() && !after.computes_as(&before));
}
