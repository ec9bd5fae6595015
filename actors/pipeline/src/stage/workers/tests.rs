use planaria_control::testing::{id, member};
use planaria_protocol::desired::clock::Clock;
use planaria_protocol::plan::PlanParts;

use super::*;
use crate::sequence::machine::tests::plan_of;

mod groups;

const ME: Incarnation = Incarnation { node: id(1), boot_count: 1 };
const LOAD: Duration = Duration::from_secs(60);
const MS: Duration = Duration::from_millis(1);

/// What it was told to do, in short, and what its files are.
#[derive(Default)]
struct Node {
    done: Vec<String>,
    files: Option<Result<FilesMatch, String>>,
    no_files: bool,
    wait: Duration,
    /// The number of the host that was started last.
    host: u64,
    reports: Vec<ShardReport>,
}

fn show(layers: &[LayerRange]) -> String {
    layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl WorkersRuntime for Node {
    fn files_for(&mut self, _: &WorkerKey, _: &Plan) -> Result<FilesMatch, String> {
        self.files.clone().unwrap_or(Ok(FilesMatch::Same))
    }

    fn start_host(
        &mut self,
        _: &WorkerKey,
        number: u64,
        layers: Vec<LayerRange>,
    ) -> Result<(), String> {
        self.host = number;
        if self.no_files {
            return Err("the files are not here".to_owned());
        }
        self.done.push(format!("start {}", show(&layers)));
        Ok(())
    }

    fn stop_host(&mut self, _: &WorkerKey) {
        self.done.push("stop".to_owned());
    }

    fn forget_host(&mut self, _: &WorkerKey) {
        self.done.push("forget".to_owned());
    }

    fn hold(&mut self, _: &WorkerKey, layers: Vec<LayerRange>) {
        self.done.push(format!("hold {}", show(&layers)));
    }

    fn join(&mut self, from: &WorkerKey, to: &WorkerKey, layers: Vec<LayerRange>) {
        let [from, to] = [from, to].map(|key| key.rank_on(ME.node).unwrap().1);
        self.done.push(format!("{from} joins as {to} for {}", show(&layers)));
    }

    fn try_again(&mut self, _: &WorkerKey) {
        self.done.push("try again".to_owned());
    }

    fn members(&mut self, _: &WorkerKey, _: &View) {}

    fn start_after(&mut self, wait: Duration, _: &WorkerKey) {
        self.wait = wait;
    }

    fn loaded(&mut self, epoch: Epoch, result: Result<(), String>) {
        self.done.push(format!("{}: {result:?}", epoch.counter));
    }

    fn reports(&mut self, shards: Vec<ShardReport>) {
        self.reports = shards;
    }

    fn busy(&mut self, _: bool) {}

    fn restarted(&mut self) {
        self.done.push("restart".to_owned());
    }

    fn look_for_files(&mut self) {
        self.done.push("look".to_owned());
    }

    fn time_after(&self, wait: Duration) -> String {
        format!("{wait:?}")
    }

    fn note(&mut self, _: &WorkerKey, _: WorkerNote<'_>) {}
}

fn key() -> WorkerKey {
    let plan = plan(3, 0, 3);
    WorkerKey::of_stage(&plan, &plan.stages()[0])
}

/// Workers that are told something, and what comes of it.
struct Told {
    workers: Workers,
    node: Node,
    now: Instant,
}

impl Told {
    fn new() -> Self {
        Self { workers: Workers::new(ME, LOAD), node: Node::default(), now: Instant::now() }
    }

    fn on(&mut self, event: WorkersEvent) -> Vec<String> {
        self.workers.on(self.now, event, &mut self.node);
        std::mem::take(&mut self.node.done)
    }

    fn after(&mut self, wait: Duration) -> Vec<String> {
        self.now += wait;
        self.on(WorkersEvent::Tick)
    }

    fn load(&mut self, plan: &Arc<Plan>) -> Vec<String> {
        self.on(WorkersEvent::Load(Arc::clone(plan)))
    }

    fn in_force(&mut self, plans: &[&Arc<Plan>]) -> Vec<String> {
        let plans = plans.iter().map(|plan| Plan::clone(plan)).collect();
        self.on(WorkersEvent::InForce(plans))
    }

    fn changed(&mut self, state: ShardState, held: &[(u32, u32)]) -> Vec<String> {
        let key = key();
        let held = held.iter().map(|(first, last)| layers(*first, *last)).collect();
        let reason = "no such tensor".to_owned();
        let report = ShardReport { state, held, reason, ..ShardReport::starting(&key.model) };
        self.on(WorkersEvent::Changed(key, self.node.host, report))
    }

    fn die(&mut self) -> Vec<String> {
        let (key, how) = (key(), "it panicked".to_owned());
        self.on(WorkersEvent::HostLost(key, self.node.host, how))
    }

    fn start_again(&mut self) -> Vec<String> {
        self.on(WorkersEvent::StartAgain(key()))
    }
}

fn layers(first: u32, last: u32) -> LayerRange {
    LayerRange::inclusive(first, last).unwrap()
}

/// A plan that gives this node these layers of eight.
fn plan(counter: u64, first: u32, last: u32) -> Arc<Plan> {
    let rest: &[(u8, u32, u32)] = match (first, last) {
        (0, 7) => &[(1, 0, 7)],
        (0, last) => &[(1, 0, last), (2, last + 1, 7)],
        (first, _) => &[(2, 0, first - 1), (1, first, 7)],
    };
    plan_of(counter, rest)
}

/// The same, made by another node.
fn made_by(byte: u8, plan: &Plan) -> Arc<Plan> {
    let parts = plan.parts();
    let epoch = Epoch { planner: id(byte), ..parts.epoch };
    Arc::new(Plan::new(PlanParts { epoch, ..parts.clone() }).unwrap())
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn plans_in_force_come_first_then_what_was_prepared_then_what_may_come() {
    let mut told = Told::new();
    let shard = ShardKey { worker: key(), layers: layers(6, 7) };
    assert_eq!(told.on(WorkersEvent::Standby(vec![shard])), ["start 6-7"]);
    assert_eq!(told.load(&plan(3, 0, 3)), ["hold 0-3 6-7"]);
    assert_eq!(told.in_force(&[&plan(2, 0, 5)]), ["hold 0-5 0-3 6-7"]);
}

#[test]
fn what_nothing_asks_for_any_more_is_kept_for_as_long_as_a_frame_may_be_on_its_way() {
    let mut told = Told::new();
    told.in_force(&[&plan(3, 0, 3)]);
    assert_eq!(told.in_force(&[&plan(4, 4, 7)]), ["hold 4-7 0-3"]);
    assert_eq!(told.after(1500 * MS), none());
    assert_eq!(told.after(1000 * MS), ["hold 4-7"]);
    assert_eq!(told.in_force(&[]), none());
    assert_eq!(told.after(1500 * MS), none());
    assert_eq!(told.after(1000 * MS), ["stop"]);
    assert_eq!(told.workers.reports(), []);
}

#[test]
fn a_worker_that_sequences_pass_through_is_kept() {
    let mut told = Told::new();
    told.in_force(&[&plan(3, 0, 3)]);
    let key = key();
    told.on(WorkersEvent::Busy(key.clone(), 1, true));
    told.in_force(&[]);
    assert_eq!(told.after(Duration::from_secs(60)), none());
    told.on(WorkersEvent::Busy(key, 1, false));
    assert_eq!(told.after(1500 * MS), none());
    assert_eq!(told.after(1000 * MS), ["stop"]);
}

#[test]
fn a_plan_of_a_former_life_asks_for_nothing() {
    let later = Incarnation { boot_count: 2, ..ME };
    let mut told = Told { workers: Workers::new(later, LOAD), ..Told::new() };
    assert_eq!(told.in_force(&[&plan(3, 0, 3)]), none());
}

#[test]
fn a_plan_that_has_no_stage_for_it_cannot_be_loaded() {
    let mut told = Told::new();
    assert_eq!(told.load(&plan_of(4, &[(9, 0, 7)])), ["4: Err(\"the plan has no stage for it\")"]);
}

#[test]
fn who_prepares_hears_when_its_layers_are_loaded_or_why_they_cannot_be() {
    let mut told = Told::new();
    assert_eq!(told.load(&plan(3, 0, 3)), ["start 0-3"]);
    assert_eq!(told.load(&plan(4, 4, 7)), ["hold 4-7 0-3"], "the newest of its planner");
    assert_eq!(told.changed(ShardState::Loading, &[(0, 3)]), ["3: Ok(())"]);
    assert_eq!(told.changed(ShardState::Failed, &[(0, 3)]), ["4: Err(\"no such tensor\")"]);
    assert_eq!(told.changed(ShardState::Ready, &[(0, 7)]), none(), "once");
    assert_eq!(told.load(&plan(5, 0, 3)), ["5: Ok(())"]);
}

#[test]
fn what_two_nodes_have_prepared_is_kept_until_it_is_decided() {
    let mut told = Told::new();
    let (one, other) = (plan(3, 0, 3), made_by(2, &plan(3, 4, 7)));
    told.load(&one);
    assert_eq!(told.load(&other), ["hold 0-3 4-7"]);
    assert_eq!(told.on(WorkersEvent::Abort(one.epoch())), none());
    assert_eq!(told.after(3000 * MS), ["hold 4-7"]);
    assert_eq!(told.in_force(&[&plan(2, 0, 3)]), ["hold 0-3 4-7"]);
    assert_eq!(told.after(3000 * MS), none(), "it is older than what is prepared");
    told.in_force(&[&plan(4, 0, 3)]);
    assert_eq!(told.after(3000 * MS), ["hold 0-3"]);
}

#[test]
fn what_a_planner_gave_up_without_a_word_is_let_go() {
    let mut told = Told::new();
    told.load(&plan(3, 0, 3));
    assert_eq!(told.after(LOAD + Duration::from_secs(29)), none());
    assert_eq!(told.after(1500 * MS), none());
    assert_eq!(told.after(1000 * MS), ["stop"]);
}

#[test]
fn a_model_that_is_removed_keeps_nothing_that_was_prepared_for_it() {
    let view = |wanted: bool| {
        let mut served = member(1, 1, 100);
        if !wanted {
            Arc::make_mut(&mut served.report).desired = Default::default();
        }
        View::of([served])
    };
    let mut told = Told::new();
    told.load(&plan(3, 0, 3));
    assert_eq!(told.on(WorkersEvent::Members(view(false))), none());
    assert_eq!(told.after(3000 * MS), none(), "it has yet to hear of it");
    told.on(WorkersEvent::Members(view(true)));
    told.on(WorkersEvent::Members(view(false)));
    assert_eq!(told.after(3000 * MS), ["stop"]);
}

#[test]
fn files_that_were_replaced_are_loaded_anew_and_those_of_no_plan_are_refused() {
    let mut told = Told::new();
    told.load(&plan(3, 0, 3));
    told.node.files = Some(Ok(FilesMatch::Replaced));
    assert_eq!(told.load(&plan(4, 0, 3)), ["stop", "start 0-3"]);
    told.node.files = Some(Err("others than the plan's".to_owned()));
    assert_eq!(told.load(&plan(5, 0, 5)), ["look", "5: Err(\"others than the plan's\")"]);
    assert_eq!(told.after(Duration::ZERO), none(), "what is loaded stays");
}

#[test]
fn a_worker_without_files_fails_and_is_loaded_once_they_are_there() {
    let mut told = Told::new();
    told.node.no_files = true;
    let failed = told.load(&plan(3, 0, 3));
    assert_eq!(failed, ["3: Err(\"the files are not here; it is tried again at 10s\")"]);
    assert_eq!(told.node.reports[0].state, ShardState::Failed);
    told.node.no_files = false;
    assert_eq!(told.load(&plan(4, 0, 3)), ["stop", "start 0-3"]);

    let mut told = Told::new();
    told.node.no_files = true;
    told.load(&plan(3, 0, 3));
    told.node.no_files = false;
    told.now += told.node.wait;
    assert_eq!(told.start_again(), ["start 0-3"], "nobody has asked");
}

#[test]
fn a_host_that_dies_is_started_again_and_given_up_when_it_dies_too_often() {
    let mut told = Told::new();
    told.load(&plan(3, 0, 3));
    let (mut waits, mut deaths) = (Vec::new(), 0);
    loop {
        let done = told.die();
        deaths += 1;
        waits.push(told.node.wait);
        assert_eq!(done[0], "forget");
        if done[1] != "restart" {
            assert!(done[1].contains("it panicked; it is tried again at 10s"), "{done:?}");
            break;
        }
        assert_eq!(told.node.reports[0].state, ShardState::Restarting);
        told.now += told.node.wait;
        assert_eq!(told.start_again(), ["start 0-3"]);
        assert_eq!(told.start_again(), none(), "it runs");
    }
    assert_eq!((deaths, waits[0], waits[1]), (6, 100 * MS, 200 * MS));
    assert_eq!(told.node.reports[0].state, ShardState::Failed);
    told.now += told.node.wait;
    assert_eq!(told.start_again(), ["start 0-3"]);
}

#[test]
fn what_was_given_up_is_tried_when_its_model_is_asked_for_again() {
    let mut told = Told::new();
    told.load(&plan(3, 0, 3));
    told.changed(ShardState::Failed, &[]);
    let asked = |stamp: u64| {
        let mut served = member(1, 1, 100);
        let desired = &mut Arc::make_mut(&mut served.report).desired;
        let model: ModelName = "m".parse().unwrap();
        let mut entry = desired.get(&model).unwrap();
        entry.stamp = Clock::new(id(1)).tick(stamp, None);
        desired.put(&model, entry);
        View::of([served])
    };
    told.on(WorkersEvent::Members(asked(1)));
    assert_eq!(told.on(WorkersEvent::Members(asked(1))), none());
    assert_eq!(told.on(WorkersEvent::Members(asked(2))), ["try again"]);
    for _ in 0..6 {
        told.die();
        told.start_again();
    }
    told.die();
    assert_eq!(told.on(WorkersEvent::Members(asked(3))), ["start 0-3"], "its host is gone");
}

#[test]
fn what_a_former_host_said_does_not_count() {
    let mut told = Told::new();
    told.load(&plan(3, 0, 3));
    let key = key();
    let held = [layers(0, 3)].into_iter().collect();
    let ready = ShardReport { state: ShardState::Ready, held, ..ShardReport::starting(&key.model) };
    told.die();
    assert_eq!(told.on(WorkersEvent::Changed(key.clone(), 1, ready)), none());
    told.start_again();
    told.on(WorkersEvent::Busy(key.clone(), 1, true));
    let lost = WorkersEvent::HostLost(key, 1, "it panicked".to_owned());
    assert_eq!(told.on(lost), none());
    told.on(WorkersEvent::Abort(plan(3, 0, 3).epoch()));
    assert_eq!(told.after(3000 * MS), ["stop"], "no sequence passes through it");
}
