//! Hosts of workers that are ranks of groups.

use planaria_collectives::{GroupId, Rank};
use planaria_control::membership::Member;
use planaria_control::testing::sharing;
use planaria_engine::architecture::RankUnits;
use planaria_protocol::pipe::{GroupRank, Lead};
use planaria_protocol::state::NodeState;

use super::*;
use crate::sequence::machine::tests::group_of;

const SECOND: Duration = Duration::from_secs(1);

/// All layers on three nodes, of which the first leads.
fn whole() -> Arc<Plan> {
    group_of(3, &[(1, 0, 7)], &[(1, 0, 3), (2, 3, 6), (3, 6, 8)])
}

fn key(plan: &Plan) -> WorkerKey {
    let group = plan.stages().iter().find(|stage| !stage.ranks.is_empty()).unwrap();
    WorkerKey::of_stage(plan, group)
}

fn ranks(key: &WorkerKey) -> Vec<RankUnits> {
    key.ranks.iter().map(|rank| rank.units).collect()
}

/// The host of a node's rank, and what was done.
struct Rig {
    host: Host,
    recorded: Recorded,
    now: Instant,
    me: u8,
}

impl Rig {
    /// A host whose worker holds the layers of its stage of a plan.
    fn ready(me: u8, plan: &Plan) -> Self {
        let mut rig = Self::started(me, plan, TIMEOUTS);
        rig.holds(&key(plan));
        assert_eq!(rig.host.report().state, ShardState::Ready);
        rig.recorded.commands.clear();
        rig
    }

    fn started(me: u8, plan: &Plan, timeouts: WorkerTimeouts) -> Self {
        let (now, key) = (Instant::now(), key(plan));
        let (_, stage) = plan.stage_of(node(me)).unwrap();
        let named = (node(me), "here".to_owned());
        let mut host = Host::new(now, named, &key, vec![stage.layers], timeouts, 1000);
        let view = View::of([1, 2, 3].map(|byte| sharing(byte, 100, 1.0)));
        let mut recorded = Recorded { view, ..Recorded::default() };
        host.start(now, &mut recorded);
        Self { host, recorded, now, me }
    }

    /// The worker holds all that it was told to, as the rank that it is in this group.
    fn holds(&mut self, key: &WorkerKey) {
        let units = key.rank_on(node(self.me)).map(|(_, units)| units);
        let layers = self.host.told_to_hold.iter().copied().collect();
        self.hear(WorkerEvent::Holds { layers, memory: MemoryUse::default(), units });
    }

    fn hear(&mut self, event: WorkerEvent) {
        self.host.hear(self.now, event, &Bytes::new(), &mut self.recorded);
    }

    fn take(&mut self, plan: &Arc<Plan>, header: &DataHeader) {
        let now = (self.now, self.now);
        self.host.take(now, plan, header, Bytes::new(), &mut self.recorded);
    }

    fn join(&mut self, key: &WorkerKey) {
        let layers = self.host.wanted.clone();
        self.host.join(self.now, key, layers, &mut self.recorded);
    }

    fn members(&mut self, members: impl IntoIterator<Item = Member>) {
        self.host.members(self.now, &View::of(members), &mut self.recorded);
    }

    fn after(&mut self, wait: Duration) -> Vec<Command> {
        self.now += wait;
        self.host.tick(self.now, &mut self.recorded);
        self.commands()
    }

    fn commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.recorded.commands)
    }

    fn dies(&mut self) {
        self.host.worker_ended(self.now, "signal: 9", &mut self.recorded);
        self.host.start(self.now, &mut self.recorded);
    }
}

/// The group that the worker was told to lead, if it was told something of that.
fn lead(commands: &[Command]) -> Option<Option<Lead>> {
    commands.iter().find_map(|command| match command {
        Command::Adopt { lead, .. } => Some(*lead),
        _ => None,
    })
}

fn patience(commands: &[Command]) -> Vec<Duration> {
    let patience = |command: &Command| match command {
        Command::ForgetUntouched(patience) => *patience,
        other => panic!("{other:?}"),
    };
    commands.iter().map(patience).collect()
}

#[test]
fn a_worker_is_started_as_the_rank_that_its_node_is() {
    for me in 1..=3 {
        let rig = Rig::started(me, &whole(), TIMEOUTS);
        let rank = rig.recorded.rank.unwrap();
        assert_eq!((rank.me, &rank.units), (Rank(me - 1), &ranks(&key(&whole()))));
        assert_eq!(rig.host.report().ranks, key(&whole()).ranks);
        // Nobody waits for a rank that loads for as long as for one that is stuck.
        assert_eq!(rank.cold, TIMEOUTS.step / 4);
    }
    let patient = WorkerTimeouts { step: 600 * SECOND, ..TIMEOUTS };
    let rig = Rig::started(1, &whole(), patient);
    assert_eq!(rig.recorded.rank.unwrap().cold, 10 * SECOND);
    assert_eq!(started().1.rank, None, "whole layers");
}

#[test]
fn who_leads_is_told_its_group_and_whoever_computes_alone_leads_none() {
    let plan = group_of(3, &[(4, 0, 3), (1, 4, 7)], &[(1, 0, 3), (2, 3, 8)]);
    let mut rig = Rig::ready(1, &plan);
    let mut header = frame(&plan);
    let DataBody::Forward(forward) = &mut header.body else { unreachable!() };
    forward.stage = 1;
    rig.take(&plan, &header);
    let commands = rig.commands();
    let told = lead(&commands).unwrap().unwrap();
    assert_eq!(told.group, GroupId { epoch: plan.epoch(), stage: 1, attempt: 0 });
    // Half of the way there and back, and what the ends take.
    assert_eq!((told.latency_micros, told.bytes_per_second), (90, 1_000_000_000));
    assert!(matches!(commands.last(), Some(Command::Compute(_))), "{commands:?}");
    // Groups of its next life are others.
    rig.dies();
    rig.holds(&key(&plan));
    rig.commands();
    header.attempt = 1;
    rig.take(&plan, &header);
    let attempt = rig.recorded.attempts_from() - 100;
    assert_eq!(lead(&rig.commands()).unwrap().unwrap().group.attempt, attempt);
    assert!(attempt > 0);

    let (mut host, mut recorded, plan, now) = started();
    super::holds(&mut host, &plan, now, &mut recorded);
    host.take((now, now), &plan, &frame(&plan), Bytes::new(), &mut recorded);
    assert_eq!(lead(&recorded.commands), Some(None));
}

#[test]
fn a_rank_that_does_not_lead_takes_no_frames() {
    let plan = whole();
    let mut rig = Rig::ready(2, &plan);
    rig.take(&plan, &frame(&plan));
    assert_eq!((rig.commands(), rig.host.sequences().len()), (vec![], 0));
}

#[test]
fn a_worker_hears_once_that_a_rank_is_over_and_again_when_it_was_back() {
    let alive = || [1, 2, 3].map(|byte| sharing(byte, 100, 1.0));
    let without = |lost: usize| {
        let mut members = alive();
        members[lost - 1].state = NodeState::Down;
        members
    };
    let over = |place| vec![Command::Over(Rank(place))];
    let mut rig = Rig::ready(1, &whole());
    rig.members(alive());
    assert_eq!(rig.commands(), []);
    rig.members(without(3));
    assert_eq!(rig.commands(), over(2));
    rig.members(without(3));
    assert_eq!(rig.commands(), [], "it knows");
    rig.members(alive());
    rig.members(without(3));
    assert_eq!(rig.commands(), over(2));
    rig.members(without(2));
    assert_eq!(rig.commands(), over(1));
    // Another worker knows nothing.
    rig.dies();
    rig.commands();
    rig.members(without(2));
    assert_eq!(rig.commands(), over(1));
    // Without one there is nobody to tell.
    rig.host.worker_ended(rig.now, "signal: 9", &mut rig.recorded);
    rig.members(alive());
    rig.members(without(2));
    assert_eq!((rig.commands(), &rig.recorded.kills), (vec![], &vec![]));
    rig.host.start(rig.now, &mut rig.recorded);
    rig.commands();
    rig.members(without(2));
    assert_eq!(rig.commands(), over(1));
    // Another life of the node is not the rank.
    let mut again = alive();
    again[2].incarnation.boot_count = 2;
    rig.members(again);
    assert_eq!(rig.commands(), over(2));
}

#[test]
fn a_leader_that_loses_a_rank_goes_on_with_its_sequences() {
    let plan = whole();
    let mut rig = Rig::ready(1, &plan);
    rig.take(&plan, &frame(&plan));
    rig.commands();
    let after = group_of(4, &[(1, 0, 7)], &[(1, 0, 4), (2, 4, 8)]);
    let (former, left) = (key(&plan), key(&after));
    rig.join(&left);
    let cold = TIMEOUTS.step / 4;
    let rank = GroupRank { me: Rank(0), units: ranks(&left), cold };
    let layers = vec![plan.stages()[0].layers];
    assert_eq!(rig.commands(), [Command::Join(rank), Command::Hold(layers)]);
    assert_eq!((rig.host.sequences().len(), rig.recorded.is_busy), (1, true));
    let report = rig.host.report();
    assert_eq!((report.state, &report.ranks), (ShardState::Loading, &left.ranks));
    assert!(report.held.is_empty());
    // It said so before it heard of that.
    rig.holds(&former);
    assert_eq!(rig.host.report().state, ShardState::Loading);
    rig.hear(WorkerEvent::Holds {
        layers: LayerSet::from(plan.stages()[0].layers),
        memory: MemoryUse::default(),
        units: None,
    });
    assert!(rig.host.report().held.is_empty());
    rig.holds(&left);
    assert_eq!(rig.host.report().state, ShardState::Ready);
    // The next frame is computed by the group that is left.
    let next = DataHeader { epoch: after.epoch(), attempt: 1, ..frame(&after) };
    rig.take(&after, &next);
    let told = lead(&rig.commands()).unwrap().unwrap().group;
    assert_eq!((told.epoch, told.attempt), (after.epoch(), rig.recorded.attempts_from()));
}

#[test]
fn who_does_not_lead_any_more_has_no_sequences_and_who_leads_now_takes_them_up() {
    let plan = whole();
    let mut rig = Rig::ready(1, &plan);
    rig.take(&plan, &frame(&plan));
    assert!(rig.recorded.is_busy);
    rig.commands();
    let after = group_of(4, &[(2, 0, 7)], &[(2, 0, 5), (1, 5, 8)]);
    rig.join(&key(&after));
    assert!(rig.host.sequences().is_empty() && !rig.recorded.is_busy);
    // The worker keeps what it has of them, for the other to take up.
    assert!(!rig.commands().iter().any(|command| matches!(command, Command::Release(_))));

    let mut rig = Rig::ready(2, &plan);
    rig.hear(WorkerEvent::Follows(true));
    rig.join(&key(&after));
    assert!(!rig.recorded.is_busy, "nobody leads it any more, and it may be stuck");
    rig.holds(&key(&after));
    rig.commands();
    rig.take(&after, &frame(&after));
    let commands = rig.commands();
    assert_eq!(lead(&commands).unwrap().unwrap().group.epoch, after.epoch());
    assert_eq!(rig.host.sequences().len(), 1);
}

#[test]
fn a_host_without_a_worker_starts_it_as_the_rank_that_it_joined_as() {
    let after = group_of(4, &[(1, 0, 7)], &[(1, 0, 4), (2, 4, 8)]);
    let mut rig = Rig::ready(2, &whole());
    rig.host.worker_ended(rig.now, "signal: 9", &mut rig.recorded);
    rig.join(&key(&after));
    assert_eq!(rig.commands(), []);
    rig.host.start(rig.now, &mut rig.recorded);
    let rank = rig.recorded.rank.unwrap();
    assert_eq!((rank.me, rank.units), (Rank(1), ranks(&key(&after))));
    assert!(rig.recorded.kills.is_empty(), "{:?}", rig.recorded.kills);
}

#[test]
fn a_worker_that_others_wait_for_is_killed_unless_it_says_something() {
    let mut rig = Rig::ready(2, &whole());
    let milli = Duration::from_millis(1);
    rig.host.accuse(rig.now);
    rig.after(SECOND);
    // Others wait for it too: that is no reason to be more patient.
    rig.host.accuse(rig.now);
    rig.after(SECOND);
    assert!(rig.recorded.kills.is_empty(), "{:?}", rig.recorded.kills);
    rig.after(milli);
    assert_eq!(rig.recorded.kills, ["it says nothing, though its group waits for it or is over"]);
    rig.after(5 * SECOND);
    assert_eq!(rig.recorded.kills.len(), 1, "once");

    let done = WorkerEvent::Loading { done: 1, total: 2 };
    for event in [WorkerEvent::Status(Status::default()), done, WorkerEvent::Follows(false)] {
        let mut rig = Rig::ready(2, &whole());
        rig.host.accuse(rig.now);
        rig.after(2 * SECOND);
        rig.hear(event);
        rig.after(20 * SECOND);
        assert!(rig.recorded.kills.is_empty(), "it is only slow: {:?}", rig.recorded.kills);
    }

    // Of one that is not there, and of the next one, nobody has heard nothing yet.
    let mut rig = Rig::ready(2, &whole());
    rig.host.accuse(rig.now);
    rig.host.worker_ended(rig.now, "signal: 9", &mut rig.recorded);
    rig.host.start(rig.now, &mut rig.recorded);
    rig.after(3 * SECOND);
    rig.host.worker_ended(rig.now, "signal: 9", &mut rig.recorded);
    rig.host.accuse(rig.now);
    rig.after(3 * SECOND);
    assert!(rig.recorded.kills.is_empty(), "{:?}", rig.recorded.kills);
}

#[test]
fn a_worker_that_does_not_join_is_stuck() {
    let after = group_of(4, &[(1, 0, 7)], &[(1, 0, 4), (2, 4, 8)]);
    for says_something in [false, true] {
        let mut rig = Rig::ready(1, &whole());
        rig.join(&key(&after));
        rig.after(5 * SECOND);
        assert!(rig.recorded.kills.is_empty(), "{:?}", rig.recorded.kills);
        if says_something {
            rig.hear(WorkerEvent::Loading { done: 1, total: 2 });
        }
        rig.after(SECOND);
        assert_eq!(rig.recorded.kills.len(), usize::from(!says_something));
    }
}

#[test]
fn a_rank_is_busy_while_it_follows_another_ones_sequences() {
    let mut rig = Rig::ready(2, &whole());
    assert!(!rig.recorded.is_busy);
    rig.hear(WorkerEvent::Follows(true));
    assert!(rig.recorded.is_busy);
    rig.hear(WorkerEvent::Follows(false));
    assert!(!rig.recorded.is_busy);
    rig.hear(WorkerEvent::Follows(true));
    rig.dies();
    assert!(!rig.recorded.is_busy, "another worker has nothing");
}

#[test]
fn a_worker_that_does_not_say_that_it_has_forgotten_all_is_killed_once_its_group_is_over() {
    let mut rig = Rig::ready(2, &whole());
    rig.hear(WorkerEvent::Follows(true));
    rig.recorded.is_retired = true;
    assert_eq!(patience(&rig.after(3 * SECOND)), [Duration::ZERO]);
    rig.after(2 * SECOND);
    assert!(rig.recorded.kills.is_empty(), "{:?}", rig.recorded.kills);
    rig.after(Duration::from_millis(1));
    assert_eq!(rig.recorded.kills.len(), 1);
    // Whoever says so is left alone.
    let mut rig = Rig::ready(2, &whole());
    rig.hear(WorkerEvent::Follows(true));
    rig.recorded.is_retired = true;
    rig.after(3 * SECOND);
    rig.hear(WorkerEvent::Follows(false));
    rig.after(20 * SECOND);
    assert!(rig.recorded.kills.is_empty(), "{:?}", rig.recorded.kills);
}

#[test]
fn a_rank_that_follows_forgets_after_a_while_what_nobody_touches() {
    let given_up = TIMEOUTS.load + 2 * TIMEOUTS.step;
    // Of what it had before somebody led it, it has nothing.
    let mut rig = Rig::ready(2, &whole());
    assert_eq!(rig.after(2 * SECOND), []);
    assert_eq!(patience(&rig.after(SECOND)), [given_up]);
    assert_eq!(rig.after(100 * SECOND), [], "it has nothing");
    rig.hear(WorkerEvent::Follows(true));
    assert_eq!(rig.after(2 * SECOND), []);
    for _ in 0..3 {
        assert_eq!(patience(&rig.after(SECOND)), [given_up]);
        assert_eq!(rig.after(2 * SECOND), []);
    }
    // A rank is over, or the group broke: somebody takes them up soon, or nobody does.
    rig.recorded.dead.insert(node(3));
    assert_eq!(patience(&rig.after(SECOND)), [10 * SECOND]);
    rig.recorded.dead.clear();
    assert_eq!(patience(&rig.after(3 * SECOND)), [given_up]);
    rig.hear(WorkerEvent::GroupOver("rank 2 is over".to_owned()));
    assert_eq!(patience(&rig.after(3 * SECOND)), [10 * SECOND]);
    // No sequence can run under its plan any more.
    rig.recorded.is_retired = true;
    assert_eq!(patience(&rig.after(3 * SECOND)), [Duration::ZERO]);
    rig.recorded.is_retired = false;
    // As another rank it is in a group that is whole.
    let after = group_of(4, &[(1, 0, 7)], &[(1, 0, 4), (2, 4, 8)]);
    rig.join(&key(&after));
    rig.holds(&key(&after));
    rig.commands();
    assert_eq!(patience(&rig.after(3 * SECOND)), [given_up]);
    rig.hear(WorkerEvent::Follows(false));
    assert_eq!(rig.after(100 * SECOND), []);
}

#[test]
fn who_leads_tells_the_others_what_is_left_once_its_group_broke() {
    let plan = whole();
    let mut rig = Rig::ready(1, &plan);
    let over = || WorkerEvent::GroupOver("rank 2 is over".to_owned());
    let given_up = TIMEOUTS.load + 2 * TIMEOUTS.step;
    // Until then others may come with sequences that were another leader's.
    rig.hear(over());
    assert_eq!(rig.after(given_up - SECOND), []);
    assert_eq!(rig.after(SECOND), [Command::Retain(vec![])]);
    rig.take(&plan, &frame(&plan));
    rig.commands();
    assert_eq!(rig.after(SECOND), [], "it was told, and nothing broke");
    rig.hear(over());
    assert_eq!(rig.after(2 * SECOND), []);
    rig.hear(over());
    assert_eq!(rig.after(2 * SECOND), [], "it broke again");
    assert_eq!(rig.after(SECOND), [Command::Retain(vec![frame(&plan).sequence])]);
    assert_eq!(rig.after(3 * SECOND), []);
    // A worker of whole layers has nobody to tell.
    let (mut host, mut recorded, _, now) = started();
    recorded.commands.clear();
    host.tick(now + given_up, &mut recorded);
    assert!(!recorded.commands.iter().any(|command| matches!(command, Command::Retain(_))));
}

#[test]
fn a_rank_is_predicted_to_take_what_its_units_do() {
    let plan = whole();
    let mut rig = Rig::ready(1, &plan);
    let geometry = sharing(1, 100, 1.0).report.models[0].geometry.clone();
    rig.recorded.geometry = Some(geometry.clone());
    rig.take(&plan, &frame(&plan));
    let units = key(&plan).ranks[0].units;
    let layers = plan.stages()[0].layers;
    let expected = rank_bytes(&geometry, layers, units, 64, 2);
    assert_eq!(Some(rig.host.report().work.predicted_bytes), expected);
}

#[test]
fn a_new_worker_and_one_that_joins_hear_who_is_over_already() {
    let mut members = [1, 2, 3].map(|byte| sharing(byte, 100, 1.0));
    members[2].state = NodeState::Down;
    let mut rig = Rig::ready(1, &whole());
    rig.members(members.clone());
    rig.recorded.view = View::of(members);
    rig.recorded.dead.insert(node(3));
    rig.commands();
    rig.dies();
    let commands = [rig.commands(), rig.after(SECOND)].concat();
    assert!(commands.contains(&Command::Over(Rank(2))), "{commands:?}");
}
