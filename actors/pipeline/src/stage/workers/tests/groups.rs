//! Workers that are ranks of groups.

use super::*;
use crate::sequence::machine::tests::group_of;

/// All layers on this node and two others.
fn whole() -> Arc<Plan> {
    group_of(1, &[(1, 0, 7)], &[(1, 0, 3), (2, 3, 6), (3, 6, 8)])
}

/// The same without the last of them.
fn left(counter: u64) -> Arc<Plan> {
    group_of(counter, &[(1, 0, 7)], &[(1, 0, 3), (2, 3, 8)])
}

/// A plan in which what is left of another one's group goes on.
fn taking_over(plan: &Plan, before: &Plan) -> Arc<Plan> {
    let takes_over = Some(before.epoch());
    Arc::new(Plan::new(PlanParts { takes_over, ..plan.parts().clone() }).unwrap())
}

fn key_of(plan: &Plan) -> WorkerKey {
    WorkerKey::of(plan, ME.node).unwrap()
}

impl Told {
    /// The host of this plan's worker says that it holds all layers.
    fn holds(&mut self, plan: &Plan, host: u64) -> Vec<String> {
        let key = key_of(plan);
        let ready = ShardReport {
            state: ShardState::Ready,
            held: [layers(0, 7)].into_iter().collect(),
            ranks: key.ranks.clone(),
            ..ShardReport::starting(&key.model)
        };
        self.on(WorkersEvent::Changed(key, host, ready))
    }

    /// The groups of the workers of which the node tells, and what it says of each.
    fn told(&self) -> Vec<(usize, ShardState, bool)> {
        let shards = self.workers.reports().into_iter();
        shards.map(|shard| (shard.ranks.len(), shard.state, shard.held.is_empty())).collect()
    }
}

/// Workers of which one is a rank of three, with its plan in force.
fn ranked() -> (Told, Arc<Plan>) {
    let (mut told, plan) = (Told::new(), whole());
    assert_eq!(told.load(&plan), ["start 0-7"]);
    assert_eq!(told.holds(&plan, 1), ["1: Ok(())"]);
    assert_eq!(told.in_force(&[&plan]), none());
    assert_eq!(told.told(), [(3, ShardState::Ready, false)]);
    (told, plan)
}

#[test]
fn a_rank_takes_over_in_its_place_while_the_former_plan_is_still_in_force() {
    let (mut told, before) = ranked();
    let after = taking_over(&group_of(2, &[(1, 0, 7)], &[(1, 0, 5), (2, 5, 8)]), &before);
    assert_eq!(told.load(&after), ["0-2 joins as 0-4 for 0-7"]);
    // It is not ready until it says so as the rank that it is now.
    assert_eq!(told.told(), [(2, ShardState::Loading, true)]);
    assert_eq!(told.holds(&before, 1), none(), "it is no rank of three any more");
    assert_eq!(told.load(&after), none(), "it was told");
    assert_eq!(told.in_force(&[&before]), none(), "who has taken over is not wanted beside");
    assert_eq!(told.after(Duration::ZERO), none());
    assert_eq!(told.holds(&after, 1), ["2: Ok(())"]);
    assert_eq!(told.in_force(&[&before]), none());
    assert_eq!(told.in_force(&[&after]), none());
    assert_eq!(told.after(3000 * MS), none());
    assert_eq!(told.told(), [(2, ShardState::Ready, false)]);
    assert_eq!(told.workers.started, 1);
}

#[test]
fn who_took_over_can_do_so_again() {
    let (mut told, before) = ranked();
    let after = taking_over(&left(2), &before);
    assert_eq!(told.load(&after), ["0-2 joins as 0-2 for 0-7"]);
    assert_eq!(told.holds(&after, 1), ["2: Ok(())"]);
    let alone = taking_over(&group_of(3, &[(1, 0, 7)], &[(1, 0, 8)]), &after);
    assert_eq!(told.load(&alone), ["0-2 joins as 0-7 for 0-7"]);
    assert_eq!(told.in_force(&[&before]), none());
    // What is over need not be remembered.
    told.in_force(&[&alone]);
    assert!(told.workers.taken_over.is_empty());
}

#[test]
fn a_group_that_takes_over_nothing_has_workers_of_its_own() {
    let (mut told, before) = ranked();
    assert_eq!(told.load(&left(2)), ["start 0-7"]);
    assert_eq!(told.in_force(&[&before]), none());
    let both = [(2, ShardState::Loading, true), (3, ShardState::Ready, false)];
    let mut reports = told.told();
    reports.sort_by_key(|(ranks, ..)| *ranks);
    assert_eq!(reports, both);
    assert_eq!(told.holds(&left(2), 2), ["2: Ok(())"]);
    // One that is there need not become another one.
    assert_eq!(told.load(&taking_over(&left(3), &before)), ["3: Ok(())"]);
    // Once it is in force nothing is wanted of the former.
    told.in_force(&[&left(3)]);
    assert_eq!(told.after(3000 * MS), ["stop"]);
    assert_eq!(told.told(), [(2, ShardState::Ready, false)]);
}

#[test]
fn who_holds_whole_layers_or_is_no_rank_of_the_former_group_takes_nothing_over() {
    let (mut told, before) = ranked();
    let whole = taking_over(&plan(2, 0, 7), &before);
    assert_eq!(told.load(&whole), ["start 0-7"]);
    // A node that was no rank before.
    let other = group_of(3, &[(1, 0, 7)], &[(1, 0, 3), (4, 3, 8)]);
    assert_eq!(told.load(&taking_over(&other, &before)), ["start 0-7"]);
}

#[test]
fn a_take_over_finds_no_host_and_starts_one() {
    let (mut told, before) = ranked();
    let (key, how) = (key_of(&before), "it panicked".to_owned());
    assert_eq!(told.on(WorkersEvent::HostLost(key.clone(), 1, how)), ["forget", "restart"]);
    let after = taking_over(&left(2), &before);
    assert_eq!(told.load(&after), ["start 0-7"]);
    assert_eq!(told.holds(&after, 2), ["2: Ok(())"]);
    told.in_force(&[&after]);
    assert_eq!(told.after(3000 * MS), ["stop"], "nobody waits for the former any more");
    assert_eq!(told.on(WorkersEvent::StartAgain(key)), none());
    assert_eq!(told.told(), [(2, ShardState::Ready, false)]);
}

#[test]
fn a_group_that_is_wanted_again_is_loaded_again() {
    let (mut told, before) = ranked();
    told.load(&taking_over(&left(2), &before));
    assert_eq!(told.in_force(&[&before]), none());
    // The same lives as ranks of the same units, under another epoch.
    let parts = before.parts().clone();
    let epoch = Epoch { counter: 3, ..parts.epoch };
    let again = Arc::new(Plan::new(PlanParts { epoch, ..parts }).unwrap());
    assert_eq!(told.load(&again), ["start 0-7"]);
}
