use std::sync::Arc;

use planaria_config::Strategy;
use planaria_protocol::desired::clock::Clock;
use planaria_protocol::desired::{DesiredMap, DesiredSpec, Entry};
use planaria_protocol::state::NodeState;
use planaria_protocol::wire::{HeldModel, ShardReport};

use super::*;
use crate::membership::Member;
use crate::scheduler::problem::PlacementProblem;
use crate::scheduler::runtime::{SchedulerRuntime, carry_out};
use crate::testing::{id, member, model};

mod company;
mod files;
mod groups;
mod latency;
mod pins;

const TIMEOUTS: Timeouts = Timeouts::with(Duration::from_secs(60), Duration::from_secs(20));

const SIZING: Sizing =
    Sizing { strategy: Strategy::RingMemoryWeighted, context: 16, max_sequences: 1, streams: 1 };

/// Schedulers that deliver their messages to each other at once.
struct Cluster {
    now: Instant,
    schedulers: BTreeMap<NodeId, Scheduler>,
    /// Who says no to `Prepare`.
    failing: BTreeSet<NodeId>,
    /// Who does not answer `Prepare`.
    silent: BTreeSet<NodeId>,
    adopted: Vec<(NodeId, Plan)>,
    abandoned: Vec<(NodeId, Epoch)>,
}

impl Cluster {
    fn new(bytes: &[u8]) -> Self {
        Self::with(bytes, SIZING)
    }

    fn with(bytes: &[u8], sizing: Sizing) -> Self {
        let schedulers = bytes
            .iter()
            .map(|byte| (id(*byte), Scheduler::new(id(*byte), sizing, TIMEOUTS, &[])))
            .collect();
        Self {
            now: Instant::now(),
            schedulers,
            failing: BTreeSet::new(),
            silent: BTreeSet::new(),
            adopted: Vec::new(),
            abandoned: Vec::new(),
        }
    }

    fn everybody(&mut self, event: &SchedulerEvent) {
        for node in self.schedulers.keys().copied().collect::<Vec<_>>() {
            self.tell(node, event.clone());
        }
    }

    fn see(&mut self, members: &[Member]) {
        self.everybody(&SchedulerEvent::Members(View::of(members.iter().cloned())));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.everybody(&SchedulerEvent::Tick);
    }

    fn tell(&mut self, node: NodeId, event: SchedulerEvent) {
        let Some(scheduler) = self.schedulers.get_mut(&node) else {
            return;
        };
        let actions = scheduler.on(self.now, event);
        carry_out(node, actions, &mut Around { cluster: self, node });
    }

    /// The layers of each stage, as every node sees them.
    fn layout(&self) -> Vec<(NodeId, String)> {
        let layouts: BTreeSet<_> = self
            .schedulers
            .values()
            .map(|scheduler| {
                let plan = scheduler.plan(&model());
                let stages = plan.map_or(&[][..], Plan::stages);
                stages
                    .iter()
                    .map(|s| (s.incarnation.node, s.layers.to_string()))
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(layouts.len(), 1, "all nodes agree: {layouts:?}");
        layouts.into_iter().next().unwrap()
    }
}

/// The node around a scheduler: whoever is told something has taken it in when that returns.
struct Around<'a> {
    cluster: &'a mut Cluster,
    node: NodeId,
}

impl SchedulerRuntime for Around<'_> {
    fn cast(&mut self, event: SchedulerEvent) {
        self.cluster.tell(self.node, event);
    }

    fn send(&mut self, to: NodeId, message: Message) {
        self.cluster.tell(to, message.event_from(self.node));
    }

    fn prepare(&mut self, plan: Arc<Plan>) {
        if self.cluster.silent.contains(&self.node) {
            return;
        }
        let result = match self.cluster.failing.contains(&self.node) {
            true => Err("its disk is broken".to_owned()),
            false => Ok(()),
        };
        self.cast(SchedulerEvent::ShardsLoaded { epoch: plan.epoch(), result });
    }

    fn abandon(&mut self, epoch: Epoch) {
        self.cluster.abandoned.push((self.node, epoch));
    }

    fn adopt(&mut self, plan: Plan) {
        self.cluster.adopted.push((self.node, plan));
    }

    fn place(&mut self, problem: Box<PlacementProblem>) {
        self.cast(problem.placed());
    }

    fn plan_failovers(&mut self, problem: Box<PlacementProblem>) {
        self.cast(problem.failovers_planned(self.node));
    }

    fn standby(&mut self, _: Vec<ShardKey>) {}
}

fn layers(byte: u8, text: &str) -> (NodeId, String) {
    (id(byte), text.to_owned())
}

#[test]
fn the_lowest_id_plans_for_all_after_they_settled() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.see(&[member(1, 1, 100), member(2, 1, 200), member(3, 1, 300)]);
    assert!(cluster.layout().is_empty());
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout(), [layers(3, "0-5"), layers(2, "6-9"), layers(1, "10-11")]);
    assert!(cluster.adopted.iter().all(|(_, plan)| plan.epoch().planner == id(1)));
    assert_eq!(cluster.adopted.len(), 3, "one plan, adopted once by each");
}

#[test]
fn news_that_do_not_matter_change_nothing() {
    let mut cluster = Cluster::new(&[1, 2]);
    let members = [member(1, 1, 100), member(2, 1, 100)];
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let adopted = cluster.adopted.len();
    let mut busy = members.clone();
    Arc::make_mut(&mut busy[0].report).sequences.running = 5;
    cluster.see(&busy);
    cluster.pass(TIMEOUTS.excluded * 2);
    assert_eq!(cluster.adopted.len(), adopted);
}

#[test]
fn a_death_leads_to_a_plan_at_once() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let members = [member(1, 1, 200), member(2, 1, 200), member(3, 1, 200)];
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    // The planner itself dies.
    cluster.schedulers.remove(&id(1));
    cluster.see(&members[1..]);
    assert_eq!(cluster.layout(), [layers(3, "0-5"), layers(2, "6-11")]);
    let (_, last) = cluster.adopted.last().unwrap();
    assert_eq!(last.epoch().planner, id(2));
    assert!(cluster.adopted.windows(2).all(|pair| pair[0].1.epoch() <= pair[1].1.epoch()));
}

/// A planner with another member, the epoch of the plan that it has both prepare, and the time.
fn preparing(both: &[Member; 2]) -> (Scheduler, Epoch, Instant) {
    let mut now = Instant::now();
    let mut scheduler = Scheduler::new(id(1), SIZING, TIMEOUTS, &[]);
    scheduler.on(now, SchedulerEvent::Members(View::of(both.clone())));
    now += TIMEOUTS.settle;
    let asked = scheduler.on(now, SchedulerEvent::Tick);
    let [SchedulerAction::Place(problem)] = asked.as_slice() else { panic!("{asked:?}") };
    let actions = scheduler.on(now, problem.placed());
    let epoch = actions.iter().find_map(|action| match action {
        SchedulerAction::Send { message, .. } => match &**message {
            Message::Prepare(plan) => Some(plan.epoch()),
            _ => None,
        },
        _ => None,
    });
    (scheduler, epoch.unwrap(), now)
}

#[test]
fn an_answer_that_comes_after_a_death_brings_no_plan_into_force() {
    let both = [member(1, 1, 100), member(2, 1, 100)];
    let (mut scheduler, epoch, now) = preparing(&both);
    let loaded = |byte| SchedulerEvent::Prepared { from: id(byte), epoch, result: Ok(()) };
    scheduler.on(now, loaded(1));
    let [alive, dead] = both;
    let view = View::of([alive, Member { state: NodeState::Down, ..dead }]);
    let actions = scheduler.on(now, SchedulerEvent::Members(view));
    let aborts = |action: &SchedulerAction| {
        matches!(action, SchedulerAction::Send { to, message }
            if *to == id(1) && matches!(**message, Message::Abort(called) if called == epoch))
    };
    assert!(actions.iter().any(aborts), "{actions:?}");
    let commits = |action: &SchedulerAction| matches!(action, SchedulerAction::Send { message, .. } if matches!(**message, Message::Commit(_)));
    // It was on its way when its sender died, and other layouts are still being found.
    let actions = scheduler.on(now, loaded(2));
    assert!(!actions.iter().any(commits), "{actions:?}");
}

/// A planner that looks for layouts with a third member, what it asked, the members, and the time.
fn looking() -> (Scheduler, Box<PlacementProblem>, [Member; 3], Instant) {
    let both = [member(1, 1, 200), member(2, 1, 100)];
    let (mut scheduler, _, mut now) = preparing(&both);
    let [first, second] = both;
    let members = [first, second, member(3, 1, 300)];
    scheduler.on(now, SchedulerEvent::Members(View::of(members.clone())));
    now += TIMEOUTS.settle;
    let asked = scheduler.on(now, SchedulerEvent::Tick);
    let [SchedulerAction::Place(problem)] = asked.as_slice() else { panic!("{asked:?}") };
    let problem = problem.clone();
    assert!(scheduler.wake_at().is_none_or(|at| at > now), "it waits for an answer");
    (scheduler, problem, members, now)
}

fn asks(actions: &[SchedulerAction]) -> bool {
    actions.iter().any(|action| matches!(action, SchedulerAction::Place(_)))
}

#[test]
fn a_death_while_layouts_are_found_does_not_wait_for_them() {
    let (mut scheduler, stale, [first, _, third], now) = looking();
    let actions = scheduler.on(now, SchedulerEvent::Members(View::of([first, third])));
    assert!(asks(&actions), "{actions:?}");
    let actions = scheduler.on(now, stale.placed());
    assert!(actions.is_empty(), "{actions:?}");
}

#[test]
fn who_comes_while_layouts_are_found_may_settle_first() {
    let (mut scheduler, stale, [first, second, third], mut now) = looking();
    let four = View::of([first, second, third, member(4, 1, 300)]);
    scheduler.on(now, SchedulerEvent::Members(four));
    let actions = scheduler.on(now, stale.placed());
    assert!(actions.is_empty(), "{actions:?}");
    now += TIMEOUTS.settle;
    let actions = scheduler.on(now, SchedulerEvent::Tick);
    assert!(asks(&actions), "{actions:?}");
}

/// Two are worked out at once, and the later may be there first.
#[test]
fn what_a_former_question_would_have_kept_is_not_kept() {
    let mut scheduler = Scheduler::new(id(1), SIZING, TIMEOUTS, &[]);
    let mut now = Instant::now();
    let mut planned = |members: &[Member]| {
        scheduler.on(now, SchedulerEvent::Members(View::of(members.iter().cloned())));
        now += TIMEOUTS.settle;
        let asked = scheduler.on(now, SchedulerEvent::Tick);
        let [SchedulerAction::Place(problem)] = asked.as_slice() else { panic!("{asked:?}") };
        let actions = scheduler.on(now, problem.placed());
        let found = actions.into_iter().find_map(|action| match action {
            SchedulerAction::PlanFailovers(problem) => Some(problem),
            _ => None,
        });
        found.unwrap()
    };
    let former = planned(&[member(1, 1, 100)]);
    let later = planned(&[member(1, 1, 100), member(2, 1, 300)]);
    let kept = |actions: Vec<SchedulerAction>| {
        actions.iter().any(|action| matches!(action, SchedulerAction::Standby(_)))
    };
    assert!(kept(scheduler.on(now, later.failovers_planned(id(1)))));
    assert!(!kept(scheduler.on(now, former.failovers_planned(id(1)))));
}

/// It has just begun, and what it hears first is a plan.
#[test]
fn what_is_called_off_is_abandoned_also_by_who_does_not_know_the_planner_yet() {
    let both = [member(1, 1, 100), member(2, 1, 100)];
    let (_, epoch, now) = preparing(&both);
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.see(&both);
    cluster.pass(TIMEOUTS.settle);
    let (_, plan) = cluster.adopted.pop().unwrap();
    let plan = Plan::new(PlanParts { epoch, ..plan.parts().clone() }).unwrap();
    let mut late = Scheduler::new(id(2), SIZING, TIMEOUTS, &[]);
    let prepare = SchedulerEvent::Prepare { from: id(1), plan: Box::new(plan) };
    let actions = late.on(now, prepare);
    assert!(matches!(actions[..], [SchedulerAction::LoadShards(_)]), "{actions:?}");
    let actions = late.on(now, SchedulerEvent::Abort { from: id(1), epoch });
    assert_eq!(actions, [SchedulerAction::Abandon(epoch)]);
}

#[test]
fn a_restarted_node_is_another_one() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.see(&[member(1, 1, 100), member(2, 1, 100)]);
    cluster.pass(TIMEOUTS.settle);
    let before = cluster.adopted.last().unwrap().1.epoch();
    cluster.see(&[member(1, 1, 100), member(2, 2, 100)]);
    let (_, plan) = cluster.adopted.last().unwrap();
    assert!(plan.epoch() > before);
    assert_eq!(plan.stages().iter().map(|s| s.incarnation.boot_count).max(), Some(2));
}

#[test]
fn who_cannot_load_is_left_out_for_a_while() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.failing.insert(id(3));
    cluster.see(&[member(1, 1, 200), member(2, 1, 200), member(3, 1, 200)]);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout(), [layers(2, "0-5"), layers(1, "6-11")]);
    cluster.failing.clear();
    cluster.pass(TIMEOUTS.excluded);
    assert_eq!(cluster.layout().len(), 3);
}

#[test]
fn who_fails_again_and_again_is_tried_less_and_less_often_and_that_is_said() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.see(&[member(1, 1, 200), member(2, 1, 200)]);
    cluster.pass(TIMEOUTS.settle);
    let before = cluster.adopted.last().unwrap().1.clone();
    cluster.failing.insert(id(3));
    cluster.see(&[member(1, 1, 200), member(2, 1, 200), member(3, 1, 200)]);
    cluster.pass(TIMEOUTS.settle);
    let said = cluster.schedulers[&id(1)].left_out(&model());
    assert_eq!(said, ["node-3: its disk is broken (it is tried again 30s after that)"]);
    for _ in 0..600 {
        cluster.pass(Duration::from_secs(1));
        let plans = [1, 2].map(|byte| cluster.schedulers[&id(byte)].plan(&model()));
        assert_eq!(plans, [Some(&before); 2]);
    }
    let tried: BTreeSet<Epoch> = cluster.abandoned.iter().map(|(_, epoch)| *epoch).collect();
    assert_eq!(tried.len(), 5, "after 0, 30, 90, 210 and 450 seconds");
    cluster.failing.clear();
    cluster.pass(failures::LONGEST);
    assert_eq!(cluster.layout().len(), 3);
}

#[test]
fn what_a_planner_gives_up_it_calls_off_everywhere() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.silent.insert(id(3));
    let members = [member(1, 1, 200), member(2, 1, 200), member(3, 1, 200)];
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let begun = Epoch { counter: 1, planner: id(1) };
    assert!(cluster.abandoned.is_empty());
    // Nobody else can call it off.
    cluster.tell(id(2), SchedulerEvent::Abort { from: id(3), epoch: begun });
    assert!(cluster.abandoned.is_empty());
    cluster.pass(TIMEOUTS.load);
    let told: BTreeSet<_> = cluster.abandoned.iter().copied().collect();
    assert_eq!(told, BTreeSet::from([1, 2, 3].map(|byte| (id(byte), begun))));

    // One that is over calls nothing off.
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.silent.insert(id(3));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    cluster.schedulers.remove(&id(1));
    let down = Member { state: NodeState::Down, ..member(1, 1, 200) };
    cluster.see(&[down, members[1].clone(), members[2].clone()]);
    assert_eq!(cluster.abandoned, [2, 3].map(|byte| (id(byte), begun)));
}

#[test]
fn what_the_only_node_gave_up_is_tried_again() {
    let mut cluster = Cluster::new(&[1]);
    let mut alone = member(1, 1, 200);
    cluster.see(std::slice::from_ref(&alone));
    cluster.pass(TIMEOUTS.settle);
    for wait in [30, 60, 120] {
        let plan = cluster.adopted.last().unwrap().1.clone();
        gives_up(&mut alone, &plan);
        cluster.see(std::slice::from_ref(&alone));
        let (_, reason) = cluster.schedulers[&id(1)].state(&model());
        assert!(reason.contains(&format!("tried again {wait}s after")), "{reason}");
        cluster.pass(Duration::from_secs(wait - 1));
        cluster.see(std::slice::from_ref(&alone));
        assert_eq!(cluster.adopted.last().unwrap().1, plan);
        cluster.pass(Duration::from_secs(1));
        let next = cluster.adopted.last().unwrap().1.clone();
        assert!(next.epoch() > plan.epoch() && next.same_layout(&plan));
        // What it told before it was asked again counts for nothing.
        cluster.see(std::slice::from_ref(&alone));
        assert_eq!(cluster.adopted.last().unwrap().1, next);
    }
}

#[test]
fn who_does_not_answer_is_left_out() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.silent.insert(id(2));
    cluster.see(&[member(1, 1, 200), member(2, 1, 200)]);
    cluster.pass(TIMEOUTS.settle);
    let (state, reason) = cluster.schedulers[&id(1)].state(&model());
    assert_eq!((state, reason.as_str()), (ModelState::Loading, "waiting for node-2 to load"));
    cluster.pass(TIMEOUTS.load);
    assert_eq!(cluster.layout(), [layers(1, "0-11")]);
}

#[test]
fn who_did_not_hear_is_asked_again() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.silent.insert(id(2));
    cluster.see(&[member(1, 1, 200), member(2, 1, 200)]);
    cluster.pass(TIMEOUTS.settle);
    assert!(cluster.layout().is_empty());
    cluster.silent.clear();
    cluster.pass(TIMEOUTS.resend);
    assert_eq!(cluster.layout().len(), 2);
}

#[test]
fn who_answered_that_it_has_loaded_is_believed_until_it_tells_more() {
    let mut cluster = Cluster::new(&[1]);
    let mut alone = member(1, 1, 200);
    cluster.see(std::slice::from_ref(&alone));
    cluster.pass(TIMEOUTS.settle);
    let state = |cluster: &Cluster| cluster.schedulers[&id(1)].state(&model());
    assert_eq!(state(&cluster).0, ModelState::Ready, "its report is older than the plan");
    let plan = cluster.schedulers[&id(1)].plan(&model()).cloned().unwrap();
    Arc::make_mut(&mut alone.report).plans.push(plan);
    cluster.see(std::slice::from_ref(&alone));
    let (state, reason) = state(&cluster);
    assert_eq!((state, reason.as_str()), (ModelState::Loading, "node-1 loads its layers"));
}

#[test]
fn a_model_that_fits_nowhere_is_explained() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.see(&[member(1, 1, 30), member(2, 1, 40)]);
    cluster.pass(TIMEOUTS.settle);
    let (state, reason) = cluster.schedulers[&id(2)].state(&model());
    assert_eq!(state, ModelState::Unavailable);
    assert!(reason.contains("takes 120.0 MiB") && reason.contains("70 MiB"), "{reason}");
}

#[test]
fn a_model_that_nobody_has_is_explained() {
    let mut cluster = Cluster::new(&[1]);
    let mut alone = member(1, 1, 30);
    Arc::make_mut(&mut alone.report).models.clear();
    cluster.see(std::slice::from_ref(&alone));
    cluster.pass(TIMEOUTS.settle);
    let (_, reason) = cluster.schedulers[&id(1)].state(&model());
    assert!(reason.contains("no member has the files"), "{reason}");
    let unusable = &mut Arc::make_mut(&mut alone.report).unusable;
    unusable.push((model(), "config.json: no number of layers".to_owned()));
    let mut cluster = Cluster::new(&[1]);
    cluster.see(&[alone]);
    cluster.pass(TIMEOUTS.settle);
    let (_, reason) = cluster.schedulers[&id(1)].state(&model());
    assert!(reason.contains("no number of layers"), "{reason}");
}

#[test]
fn old_plans_are_not_adopted() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.see(&[member(1, 1, 100), member(2, 1, 100)]);
    cluster.pass(TIMEOUTS.settle);
    let (_, plan) = cluster.adopted.last().unwrap().clone();
    let mut parts = plan.parts().clone();
    parts.epoch.counter -= 1;
    let adopted = cluster.adopted.len();
    let old = Plan::new(parts).unwrap();
    cluster.tell(id(2), SchedulerEvent::Commit(Box::new(old.clone())));
    assert_eq!(cluster.adopted.len(), adopted);
    let scheduler = cluster.schedulers.get_mut(&id(2)).unwrap();
    let answer =
        scheduler.on(cluster.now, SchedulerEvent::Prepare { from: id(1), plan: Box::new(old) });
    let [SchedulerAction::Send { message, .. }] = answer.as_slice() else { panic!("{answer:?}") };
    assert!(matches!(**message, Message::Prepared(_, Err(_))), "{message:?}");
}

#[test]
fn a_new_planner_replans_what_the_former_one_commits_late() {
    let mut cluster = Cluster::new(&[2, 3]);
    cluster.silent.insert(id(3));
    let members = [member(1, 1, 100), member(2, 1, 100), member(3, 1, 100)];
    cluster.see(&members[1..]);
    cluster.pass(TIMEOUTS.settle);
    // Node 2 still waits for node 3 when node 1 comes, which plans from now on.
    let newcomer = Scheduler::new(id(1), SIZING, TIMEOUTS, &[]);
    cluster.schedulers.insert(id(1), newcomer);
    cluster.see(&members);
    cluster.tell(
        id(2),
        SchedulerEvent::Prepared {
            from: id(3),
            epoch: Epoch { counter: 1, planner: id(2) },
            result: Ok(()),
        },
    );
    cluster.silent.clear();
    cluster.pass(TIMEOUTS.settle);
    cluster.pass(TIMEOUTS.resend);
    assert_eq!(cluster.layout().len(), 3);
}

#[test]
fn a_plan_in_a_report_is_adopted_by_who_missed_its_commit() {
    let mut cluster = Cluster::new(&[1, 2]);
    let members = [member(1, 1, 100), member(2, 1, 100)];
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let (_, plan) = cluster.adopted.last().unwrap().clone();
    let mut late = Scheduler::new(id(3), SIZING, TIMEOUTS, &[]);
    let mut telling = members.clone();
    Arc::make_mut(&mut telling[0].report).plans.push(plan.clone());
    let view = View::of(telling.into_iter().chain([member(3, 1, 100)]));
    let actions = late.on(cluster.now, SchedulerEvent::Members(view));
    assert_eq!(actions.first(), Some(&SchedulerAction::Adopt(Box::new(plan))));
}

/// A member has given up its layers of a plan in force.
fn gives_up(member: &mut Member, plan: &Plan) {
    let report = Arc::make_mut(&mut member.report);
    report.plans = vec![plan.clone()];
    report.shards = vec![ShardReport {
        state: ShardState::Failed,
        reason: "its worker keeps dying".to_owned(),
        ..ShardReport::starting(&model())
    }];
}

#[test]
fn a_shard_that_was_given_up_is_planned_around() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let members = [member(1, 1, 200), member(2, 1, 200), member(3, 1, 200)];
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let lost = cluster.layout()[0].clone();
    let mut telling = members.clone();
    let broken = telling.iter_mut().find(|m| m.incarnation.node == lost.0).unwrap();
    gives_up(broken, &cluster.adopted.last().unwrap().1);
    cluster.see(&telling);
    assert!(cluster.layout().iter().all(|(node, _)| *node != lost.0), "{:?}", cluster.layout());
}

#[test]
fn who_asks_for_a_model_again_has_it_tried_again_at_once() {
    let mut cluster = Cluster::new(&[1, 2]);
    let mut members = [member(1, 1, 100), member(2, 1, 100)];
    cluster.failing.insert(id(2));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.schedulers[&id(1)].state(&model()).0, ModelState::Unavailable);
    cluster.failing.clear();
    say(&mut members, 1, Some(DesiredSpec::default()));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout().len(), 2, "{:?}", cluster.schedulers[&id(1)].state(&model()));
}

#[test]
fn who_fails_again_and_again_is_tried_later_and_later() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.failing.insert(id(2));
    cluster.see(&[member(1, 1, 100), member(2, 1, 100)]);
    cluster.pass(TIMEOUTS.settle);
    let waits = [1, 2, 4].map(|times| {
        let until = cluster.schedulers[&id(1)].failures.wake_at().unwrap();
        let wait = until - cluster.now;
        cluster.pass(wait);
        (wait, TIMEOUTS.excluded * times)
    });
    assert!(waits.iter().all(|(wait, expected)| wait == expected), "{waits:?}");
}

#[test]
fn epochs_grow_across_a_restart() {
    let mut cluster = Cluster::new(&[1]);
    cluster.see(&[member(1, 1, 200)]);
    cluster.pass(TIMEOUTS.settle);
    let (_, remembered) = cluster.adopted.last().unwrap().clone();
    let mut again = Cluster::new(&[]);
    let scheduler = Scheduler::new(id(1), SIZING, TIMEOUTS, std::slice::from_ref(&remembered));
    again.schedulers.insert(id(1), scheduler);
    again.see(&[member(1, 2, 200)]);
    again.pass(TIMEOUTS.settle);
    assert!(again.adopted.last().unwrap().1.epoch() > remembered.epoch());
}

/// Restored from a backup, or dead before it had stored what it made.
#[test]
fn a_planner_that_forgot_its_epochs_uses_none_twice() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.see(&[member(1, 1, 100), member(2, 1, 100)]);
    cluster.pass(TIMEOUTS.settle);
    let (_, former) = cluster.adopted.last().unwrap().clone();
    cluster.schedulers.insert(id(1), Scheduler::new(id(1), SIZING, TIMEOUTS, &[]));
    // Node 2 has not reported since, and would take the first plan of the new life for the old one.
    cluster.see(&[member(1, 2, 100), member(2, 1, 100)]);
    cluster.pass(TIMEOUTS.settle);
    cluster.pass(TIMEOUTS.settle);
    let (_, plan) = cluster.adopted.last().unwrap().clone();
    assert!(plan.epoch() > former.epoch(), "{plan} after {former}");
    assert!(cluster.schedulers.values().all(|s| s.plan(&model()) == Some(&plan)));
    assert!(cluster.schedulers[&id(1)].failures.excluded().is_empty(), "nobody is to blame");
    // It is enough that somebody has seen the epoch.
    let mut newcomer = Scheduler::new(id(1), SIZING, TIMEOUTS, &[]);
    let mut seer = member(2, 1, 100);
    Arc::make_mut(&mut seer.report).highest_epoch = Some(plan.epoch());
    newcomer.on(cluster.now, SchedulerEvent::Members(View::of([member(1, 3, 100), seer])));
    assert_eq!(newcomer.highest(), plan.epoch());
}

#[test]
fn members_that_boast_change_no_sums() {
    let mut boasting = [member(1, 1, 1), member(2, 1, 1)];
    for member in &mut boasting {
        let report = Arc::make_mut(&mut member.report);
        report.memory_bytes = u64::MAX;
        report.models[0].geometry.bytes_per_layer = vec![u64::MAX; 12];
    }
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.see(&boasting);
    cluster.pass(TIMEOUTS.settle);
    let (state, reason) = cluster.schedulers[&id(1)].state(&model());
    assert_eq!(state, ModelState::Unavailable, "{reason}");
    assert!(reason.contains("2 members offer"), "{reason}");
}

#[test]
fn after_the_last_epoch_there_is_none_newer() {
    let last = Epoch { counter: u64::MAX, planner: id(1) };
    assert_eq!(last.next(id(1)), last);
}

/// Has members say of the model, `at` a time, how it is wanted.
fn say(members: &mut [Member], at: u64, wanted: Option<DesiredSpec>) {
    let stamp = Clock::new(id(1)).tick(at, None);
    for member in members {
        Arc::make_mut(&mut member.report).desired.put(&model(), Entry { stamp, wanted });
    }
}

#[test]
fn a_model_is_sized_as_it_is_wanted_and_else_as_the_settings_have_it() {
    let mut cluster = Cluster::new(&[1, 2]);
    let mut members = [member(1, 1, 100), member(2, 1, 100)];
    let wanted = DesiredSpec { context: Some(64), ..DesiredSpec::default() };
    // One member has heard of it.
    say(&mut members[1..], 1, Some(wanted));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let parts = cluster.adopted.last().unwrap().1.parts().clone();
    assert_eq!((parts.context, parts.max_sequences), (64, SIZING.max_sequences));
    say(&mut members, 2, Some(DesiredSpec { max_sequences: Some(3), ..DesiredSpec::default() }));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let parts = cluster.adopted.last().unwrap().1.parts().clone();
    assert_eq!((parts.context, parts.max_sequences), (SIZING.context, 3));
}

#[test]
fn a_removed_model_is_let_go_and_loaded_anew_when_it_is_wanted_again() {
    let mut cluster = Cluster::new(&[1, 2]);
    let mut members = [member(1, 1, 100), member(2, 1, 100)];
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    let (_, former) = cluster.adopted.last().unwrap().clone();
    say(&mut members, 1, None);
    // The others' reports still name the plan.
    Arc::make_mut(&mut members[1].report).plans.push(former.clone());
    cluster.see(&members);
    assert!(cluster.schedulers.values().all(|scheduler| scheduler.plans().next().is_none()));
    cluster.pass(TIMEOUTS.settle);
    cluster.tell(id(2), SchedulerEvent::Commit(Box::new(former.clone())));
    assert!(cluster.layout().is_empty());

    Arc::make_mut(&mut members[1].report).plans.clear();
    say(&mut members, 2, Some(DesiredSpec::default()));
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout().len(), 2);
    let (_, anew) = cluster.adopted.last().unwrap();
    assert!(anew.epoch() > former.epoch(), "prepared, since the workers were stopped");
}

#[test]
fn who_is_gone_has_no_say_in_what_is_served() {
    let mut cluster = Cluster::new(&[1, 2]);
    let mut members = [member(1, 1, 200), member(2, 1, 200)];
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    members[1].state = NodeState::Down;
    say(&mut members[..1], 1, None);
    cluster.see(&members);
    cluster.pass(TIMEOUTS.settle);
    assert!(cluster.schedulers.values().all(|scheduler| scheduler.plans().next().is_none()));
}

/// Two nodes have just come back, and are not among each other's members yet; the third sees both.
#[test]
fn two_planners_that_do_not_see_each_other_yet_do_not_overtake_each_other_all_the_time() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let [first, second, mut third] = [member(1, 2, 200), member(2, 2, 200), member(3, 1, 200)];
    let former = |byte| Member { state: NodeState::Down, ..member(byte, 1, 200) };
    for _ in 0..50 {
        // The third passes on what it was told last.
        let told = cluster.adopted.iter().rev().find(|(node, _)| *node == id(3));
        Arc::make_mut(&mut third.report).plans =
            told.map(|(_, plan)| plan.clone()).into_iter().collect();
        for (byte, seen) in [
            (1, [first.clone(), former(2), third.clone()]),
            (2, [former(1), second.clone(), third.clone()]),
            (3, [first.clone(), second.clone(), third.clone()]),
        ] {
            cluster.tell(id(byte), SchedulerEvent::Members(View::of(seen)));
        }
        cluster.pass(Duration::from_millis(20));
    }
    let highest = cluster.adopted.iter().map(|(_, plan)| plan.epoch().counter).max().unwrap();
    // A second has passed, and each waits for the others to settle before it plans again.
    let most = 2 * (1_000 / TIMEOUTS.settle.as_millis() + 1);
    assert!(u128::from(highest) <= most, "{highest} epochs in a second, {most} at most");
    // Once they see each other they agree.
    cluster.see(&[first, second, third]);
    cluster.pass(TIMEOUTS.settle);
    assert_eq!(cluster.layout().len(), 3);
}
