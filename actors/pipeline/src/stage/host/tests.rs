use std::collections::BTreeSet;
use std::ops::Range;

use planaria_engine::sampler::SamplingParams;
use planaria_protocol::generation::Until;
use planaria_protocol::wire::{Forward, Opening};

use super::*;
use crate::sequence::machine::tests::{node, plan_of};

mod groups;

const TIMEOUTS: WorkerTimeouts =
    WorkerTimeouts { step: Duration::from_secs(10), load: Duration::from_secs(60) };

/// What a host had done.
#[derive(Debug, Default)]
struct Recorded {
    geometry: Option<Geometry>,
    starts: u32,
    rank: Option<GroupRank>,
    kills: Vec<String>,
    commands: Vec<Command>,
    start_after: Vec<Duration>,
    to_owner: Vec<DataHeader>,
    states: Vec<(ShardState, String)>,
    is_busy: bool,
    /// Why no process can be started.
    refusal: Option<String>,
    /// Who is over.
    dead: BTreeSet<NodeId>,
    /// Whether no plan has its group any more.
    is_retired: bool,
    view: View,
}

impl HostRuntime for Recorded {
    fn start_worker(&mut self, rank: Option<GroupRank>) -> Result<Option<u32>, String> {
        self.starts += 1;
        self.rank = rank;
        self.refusal.clone().map_or(Ok(Some(self.starts)), Err)
    }

    fn attempts_from(&self) -> u64 {
        u64::from(self.starts) * 100
    }

    fn kill_worker(&mut self, why: &str) {
        self.kills.push(why.to_owned());
    }

    fn command(&mut self, command: Command, _: Bytes) -> bool {
        self.commands.push(command);
        true
    }

    fn start_after(&mut self, wait: Duration) {
        self.start_after.push(wait);
    }

    fn send(&mut self, _: NodeId, _: DataHeader, _: Bytes) -> Result<(), String> {
        Ok(())
    }

    fn send_all(
        &mut self,
        _: NodeId,
        _: Vec<(DataHeader, Bytes)>,
        _: impl FnOnce(String) -> DataHeader + Send + 'static,
    ) {
    }

    fn send_to_owner(&mut self, header: DataHeader) {
        self.to_owner.push(header);
    }

    fn is_dead(&self, life: Incarnation) -> bool {
        self.dead.contains(&life.node)
    }

    fn knows_group(&self, _: &[RankAssignment]) -> bool {
        !self.is_retired
    }

    fn view(&self) -> View {
        self.view.clone()
    }

    fn geometry(&self) -> Option<Geometry> {
        self.geometry.clone()
    }

    fn changed(&mut self, report: &ShardReport) {
        self.states.push((report.state, report.reason.clone()));
    }

    fn busy(&mut self, busy: bool) {
        self.is_busy = busy;
    }

    fn restarted(&mut self) {}

    fn look_for_files(&mut self) {}

    fn time_after(&self, wait: Duration) -> String {
        format!("{wait:?}")
    }

    fn computed(&mut self, _: &StepEffects) {}

    fn unfinished<'a>(
        &mut self,
        _: &str,
        _: impl Iterator<Item = (&'a DataHeader, LayerRange, Range<u32>, Duration)>,
    ) {
    }

    fn kv_usage(&mut self, _: f64) {}
}

/// A host of node 1, which has layers 0-3 of 8, and the plan that says so.
fn started() -> (Host, Recorded, Arc<Plan>, Instant) {
    let (plan, now) = (plan_of(3, &[(1, 0, 3), (2, 4, 7)]), Instant::now());
    let wanted = vec![plan.stages()[0].layers];
    let named = (node(1), "here".to_owned());
    let mut host = Host::new(
        now,
        named,
        &WorkerKey::of_stage(&plan, &plan.stages()[0]),
        wanted,
        TIMEOUTS,
        1000,
    );
    let mut recorded = Recorded::default();
    host.start(now, &mut recorded);
    (host, recorded, plan, now)
}

fn holds(host: &mut Host, plan: &Plan, now: Instant, recorded: &mut Recorded) {
    let (layers, memory) = (LayerSet::from(plan.stages()[0].layers), MemoryUse::default());
    host.hear(now, WorkerEvent::Holds { layers, memory, units: None }, &Bytes::new(), recorded);
}

/// The first frame of a sequence.
fn frame(plan: &Plan) -> DataHeader {
    let until = Until { eos: Vec::new(), max_tokens: 5 };
    let (sampling, prefix) = (SamplingParams::greedy(), Vec::new());
    let open = Opening { sampling, until, reuse: false, prefix, trace: None, waits: false };
    let (tokens, open) = (vec![1, 2], Some(Box::new(open)));
    DataHeader {
        epoch: plan.epoch(),
        sequence: SequenceId::from_bits(1),
        owner: Incarnation { node: node(9), boot_count: 1 },
        attempt: 0,
        position: 0,
        trace: None,
        sent: None,
        body: DataBody::Forward(Forward { stage: 0, tokens, open, sample: false, more: false }),
    }
}

fn failure(recorded: &mut Recorded) -> GenerationError {
    match recorded.to_owner.pop().unwrap().body {
        DataBody::Failed(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_comes_too_early_is_refused_and_what_a_dead_worker_had_is_failed() {
    let (mut host, mut recorded, plan, now) = started();
    let wanted = plan.stages()[0].layers;
    assert_eq!(recorded.commands, [Command::Hold(vec![wanted])]);
    host.take((now, now), &plan, &frame(&plan), Bytes::new(), &mut recorded);
    let GenerationError::NotReady { node, layers, reason } = failure(&mut recorded) else {
        panic!("it is computed though nothing is loaded");
    };
    assert_eq!((node.as_str(), layers.as_str()), ("here", "0-3"));
    assert!(reason.contains("still being loaded"), "{reason}");

    holds(&mut host, &plan, now, &mut recorded);
    assert_eq!(host.report().state, ShardState::Ready);
    host.take((now, now), &plan, &frame(&plan), Bytes::new(), &mut recorded);
    assert!(matches!(recorded.commands.last(), Some(Command::Compute(_))));
    assert!(recorded.is_busy);

    host.worker_ended(now, "signal: 9", &mut recorded);
    let GenerationError::StageFailed { reason, stage, .. } = failure(&mut recorded) else {
        panic!("its owner does not hear that the worker is gone");
    };
    assert_eq!(stage, Some(0));
    assert!(reason.contains("signal: 9"), "{reason}");
    assert_eq!(host.report().state, ShardState::Restarting);
    assert_eq!((host.report().pid, host.report().held.is_empty()), (None, true));
}

#[test]
fn a_worker_that_dies_again_and_again_is_given_up_and_tried_again_later() {
    let (mut host, mut recorded, plan, mut now) = started();
    let mut deaths = 0;
    while host.report().state != ShardState::Failed {
        deaths += 1;
        host.worker_ended(now, "exit status: 101", &mut recorded);
        if let Some(wait) = recorded.start_after.pop() {
            now += wait;
            host.start(now, &mut recorded);
        }
    }
    assert_eq!(deaths, 6, "five restarts within a minute");
    let reason = &host.report().reason;
    assert!(reason.contains("exit status: 101") && reason.contains("tried again"), "{reason}");

    let starts = recorded.starts;
    host.tick(now + Duration::from_secs(9), &mut recorded);
    assert_eq!(recorded.starts, starts);
    now += Duration::from_secs(10);
    host.tick(now, &mut recorded);
    assert_eq!((recorded.starts, host.report().state), (starts + 1, ShardState::Restarting));
    holds(&mut host, &plan, now, &mut recorded);
    assert_eq!(host.report().state, ShardState::Ready);
}

#[test]
fn a_process_that_cannot_be_started_is_no_better_than_one_that_died() {
    let (mut host, mut recorded, _, now) = started();
    host.worker_ended(now, "exit status: 1", &mut recorded);
    recorded.refusal = Some("no file descriptor is left".to_owned());
    host.start(now, &mut recorded);
    assert_eq!(recorded.start_after.len(), 2);
    let (state, reason) = recorded.states.last().unwrap();
    assert_eq!(*state, ShardState::Restarting);
    assert!(reason.contains("no file descriptor is left"), "{reason}");
}

#[test]
fn a_worker_that_gives_nothing_back_is_killed_and_one_that_loads_for_too_long() {
    let (mut host, mut recorded, plan, now) = started();
    holds(&mut host, &plan, now, &mut recorded);
    host.take((now, now), &plan, &frame(&plan), Bytes::new(), &mut recorded);
    host.tick(now + Duration::from_secs(1), &mut recorded);
    assert!(recorded.kills.is_empty(), "{:?}", recorded.kills);
    host.tick(now + TIMEOUTS.step + Duration::from_secs(1), &mut recorded);
    assert!(recorded.kills[0].contains("no step came back"), "{:?}", recorded.kills);

    let (mut host, mut recorded, _, now) = started();
    host.tick(now + TIMEOUTS.load + Duration::from_secs(1), &mut recorded);
    assert_eq!(recorded.kills, ["loading took too long"]);
    assert_eq!(host.report().state, ShardState::Failed);
    // Its end is no reason to start it at once.
    host.worker_ended(now + TIMEOUTS.load, "signal: 9", &mut recorded);
    assert!(recorded.start_after.is_empty());
    assert_eq!(host.report().state, ShardState::Failed);
}
