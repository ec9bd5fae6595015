//! A node without its actors: what they do around the scheduler and the routes, as briefly as it can
//! be said.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use planaria_config::{ByteSize, Epoch, Incarnation, ModelName, NodeId, SequenceId, Strategy};
use planaria_control::drain::{Holds, holds};
use planaria_control::membership::{Member, View};
use planaria_control::scheduler::machine::{Message, Scheduler, SchedulerEvent, Timeouts};
use planaria_control::scheduler::placement::Sizing;
use planaria_control::scheduler::problem::PlacementProblem;
use planaria_control::scheduler::runtime::{SchedulerRuntime, carry_out};
use planaria_pipeline::routes::{Routes, Way};
use planaria_pipeline::sequence::machine::SequenceEvent;
use planaria_pipeline::sequence::recovery::Offer;
use planaria_pipeline::stage::workers::{Workers, WorkersEvent};
use planaria_protocol::capabilities::{Capabilities, LinkSpeed};
use planaria_protocol::desired::DesiredMap;
use planaria_protocol::plan::{Plan, ShardKey, WorkerKey};
use planaria_protocol::state::{NodeState, SequenceCounts};
use planaria_protocol::wire::features::Features;
use planaria_protocol::wire::{DataHeader, Report, RunningReport, ShardReport};

use super::host::{Disk, SimulatedHost};
use super::models::{all_layers, digest, held, names};
use super::owner::Owner;
use super::{Bug, MS, Packet, Setup, SimEvent, World, check_plan};

/// As nodes with the usual settings are, but for the time that a load may take.
const TIMEOUTS: Timeouts = Timeouts::with(Duration::from_secs(60), Duration::from_secs(20));

const SIZING: Sizing =
    Sizing { strategy: Strategy::RingMemoryWeighted, context: 800, max_sequences: 2, streams: 1 };

/// What is there after `kill -9`, and a life.
pub(super) struct Node {
    id: NodeId,
    boot_count: u64,
    stored: Vec<Plan>,
    pub(super) disk: Disk,
    /// When it was frozen or went on last.
    pub(super) was_frozen: Duration,
    /// What came while it was frozen.
    pub(super) frozen: Option<Vec<(Incarnation, Packet)>>,
    life: Option<Life>,
}

pub(super) struct Life {
    pub(super) me: Incarnation,
    pub(super) members: BTreeMap<NodeId, Member>,
    pub(super) view: View,
    pub(super) scheduler: Scheduler,
    pub(super) routes: Routes,
    /// All plans that it ever routed by; for [`Bug::SkipEpochCheck`].
    pub(super) ever: BTreeMap<Epoch, Arc<Plan>>,
    /// While they do not take something in.
    pub(super) workers: Option<Workers>,
    pub(super) hosts: BTreeMap<WorkerKey, SimulatedHost>,
    /// How many processes each of them has had.
    processes: BTreeMap<WorkerKey, u64>,
    /// What workers were called before they became other ranks.
    renamed: BTreeMap<WorkerKey, WorkerKey>,
    /// The layers that the loss of a node would ask for.
    standby: Vec<ShardKey>,
    /// What is told of its shards.
    pub(super) shards: Vec<ShardReport>,
    /// The plans in force, as its workers know them.
    known: Vec<Plan>,
    /// How many models are served, and whether there is plenty of memory.
    models: u8,
    ample: bool,
    pub(super) owners: BTreeMap<SequenceId, Owner>,
    /// Whether it was asked to stop.
    leaving: bool,
}

impl Node {
    pub(super) fn new(id: NodeId) -> Self {
        Self {
            id,
            boot_count: 0,
            stored: Vec::new(),
            disk: Disk::Well,
            was_frozen: Duration::ZERO,
            frozen: None,
            life: None,
        }
    }

    /// Its incarnation, if it lives.
    pub(super) fn life(&self) -> Option<Incarnation> {
        self.life.as_ref().map(|life| life.me)
    }

    /// What it does in this life.
    pub(super) fn life_of(&self, me: Incarnation) -> Option<&Life> {
        self.life.as_ref().filter(|life| life.me == me)
    }

    /// The requests of its clients.
    pub(super) fn requests(&self) -> Vec<u32> {
        let owners = self.life.iter().flat_map(|life| life.owners.values());
        owners.map(|owner| owner.request).collect()
    }

    /// It is killed; the requests that are lost with it.
    pub(super) fn end(&mut self) -> Vec<u32> {
        let requests = self.requests();
        self.life = None;
        self.frozen = None;
        requests
    }

    /// It goes on; what came meanwhile.
    pub(super) fn thaw(&mut self) -> Option<(Incarnation, Vec<(Incarnation, Packet)>)> {
        Some((self.life()?, self.frozen.take().unwrap_or_default()))
    }

    /// The plan of a model that can answer now, if there is one.
    pub(super) fn ready(&self, model: &ModelName) -> Option<Arc<Plan>> {
        match self.life.as_ref()?.offer(model) {
            Offer::Ready(plan) => Some(plan),
            _ => None,
        }
    }

    /// What its workers hold and nothing asks for, or do not hold and should.
    pub(super) fn misplaced(&self) -> Option<String> {
        let life = self.life.as_ref()?;
        let in_force = life.scheduler.plans().filter_map(|plan| ShardKey::of(plan, self.id));
        let wanted: Vec<ShardKey> = in_force.chain(life.standby.iter().cloned()).collect();
        let kept = life.hosts.keys().find(|key| wanted.iter().all(|shard| shard.worker != **key));
        if let Some(key) = kept {
            return Some(format!("{:?} keeps a worker of `{}` for nothing", self.id, key.model));
        }
        let held = |shard: &&ShardKey| {
            let held = life.hosts.get(&shard.worker).and_then(SimulatedHost::held);
            held.is_some_and(|held| held.covers(shard.layers))
        };
        // Who stands still has as long as a load may take.
        let waits = |shard: &ShardKey| {
            life.hosts.get(&shard.worker).is_some_and(SimulatedHost::stands_still)
        };
        let lacks = wanted
            .iter()
            .find(|shard| self.disk != Disk::Broken && !held(shard) && !waits(shard))?;
        Some(format!("{:?} lacks {} of `{}`", self.id, lacks.layers, lacks.worker.model))
    }

    /// What is left of requests that are over.
    pub(super) fn leftovers(&self) -> Option<String> {
        let life = self.life.as_ref()?;
        // What stands still and has nothing to do is noticed when it has.
        let leads = |key: &WorkerKey| {
            key.ranks.first().is_none_or(|first| first.incarnation.node == self.id)
        };
        let hosts = life.hosts.iter();
        let hosts = hosts.filter(|(key, host)| !(host.stands_still() && leads(key)));
        let kv: u64 = hosts.map(|(_, host)| host.kv()).sum();
        let open = life.hosts.values().filter_map(SimulatedHost::sequences);
        let open: Vec<_> = open.filter(|open| !open.is_empty()).collect();
        let owners: Vec<&SequenceId> = life.owners.keys().collect();
        (!open.is_empty() || kv > 0 || !owners.is_empty())
            .then(|| format!("{:?} keeps {kv} bytes, {open:?}, and {owners:?}", self.id))
    }
}

impl Life {
    fn new(me: Incarnation, sizing: Sizing, stored: &[Plan], setup: &Setup) -> Self {
        Self {
            me,
            members: BTreeMap::new(),
            view: View::default(),
            scheduler: Scheduler::new(me.node, sizing, TIMEOUTS, stored),
            routes: Routes::new(me.node),
            ever: BTreeMap::new(),
            workers: Some(Workers::new(me, TIMEOUTS.load)),
            hosts: BTreeMap::new(),
            processes: BTreeMap::new(),
            renamed: BTreeMap::new(),
            standby: Vec::new(),
            shards: Vec::new(),
            known: Vec::new(),
            models: setup.models,
            ample: setup.ample,
            owners: BTreeMap::new(),
            leaving: false,
        }
    }

    fn report(&self) -> Report {
        let byte = self.me.node.as_bytes().first().copied().unwrap_or_default();
        // Two of them can hold all layers of all models, one cannot, unless there is plenty.
        let each = if self.ample { 300 } else { 65 + 5 * u64::from(byte) };
        let memory = ByteSize::mib(each * u64::from(self.models));
        let mut capabilities = Capabilities::default();
        for model in names(self.models) {
            capabilities.layer_seconds.insert(digest(&model), 1e-3 * f64::from(byte));
        }
        let link = LinkSpeed { rtt_micros: 200, bytes_per_second: None };
        let others = self.members.keys().filter(|node| **node != self.me.node);
        capabilities.links = others.map(|node| (*node, link)).collect();
        let running = u32::try_from(self.owners.len()).unwrap();
        Report {
            name: format!("node-{byte}"),
            features: Features::understood(),
            pid: 1,
            port: 1,
            api: None,
            memory_bytes: memory.bytes(),
            pins: BTreeMap::new(),
            desired: DesiredMap::granted(NodeId::from_bytes([1; 32]), names(self.models)),
            models: names(self.models).map(|model| held(&model)).collect(),
            unusable: Vec::new(),
            shards: self.shards.clone(),
            plans: self.scheduler.plans().cloned().collect(),
            highest_epoch: Some(self.scheduler.highest()),
            sequences: SequenceCounts { running, ..SequenceCounts::default() },
            neighbours: Vec::new(),
            capabilities,
            leaving: self.leaving,
            restarts: BTreeMap::new(),
            generated_tokens: 0,
            running: Some(self.running()),
        }
    }

    fn running(&self) -> Vec<RunningReport> {
        let owners = self.owners.iter();
        let report = |(sequence, owner): (&SequenceId, &Owner)| RunningReport {
            sequence: *sequence,
            epoch: owner.plan.epoch(),
        };
        owners.map(report).collect()
    }

    pub(super) fn offer(&self, model: &ModelName) -> Offer {
        Offer::of(model, &self.scheduler.plan_table(), &self.view)
    }

    /// The number of a worker's next process.
    pub(super) fn next_worker(&mut self, key: &WorkerKey) -> u64 {
        let processes = self.processes.entry(key.clone()).or_default();
        *processes += 1;
        *processes
    }

    /// The worker of a rank goes by another name.
    pub(super) fn rename_host(&mut self, from: &WorkerKey, to: &WorkerKey) {
        if let Some(host) = self.hosts.remove(from) {
            self.hosts.insert(to.clone(), host);
        }
        if let Some(processes) = self.processes.remove(from) {
            self.processes.insert(to.clone(), processes);
        }
        self.renamed.insert(from.clone(), to.clone());
    }

    /// What the worker of this name is called now.
    pub(super) fn name_of(&self, key: &WorkerKey) -> WorkerKey {
        let mut name = key;
        while !self.hosts.contains_key(name)
            && let Some(later) = self.renamed.get(name)
        {
            name = later;
        }
        name.clone()
    }

    /// Whether a process was the worker's last.
    pub(super) fn was_last(&self, key: &WorkerKey, number: u64) -> bool {
        self.processes.get(key) == Some(&number)
    }
}

impl World {
    pub(super) fn start(&mut self, id: NodeId) {
        let bug = self.setup.bug;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.oracle.owner_died(node.end());
        if bug != Some(Bug::LoseWrite) || node.boot_count == 0 {
            node.boot_count += 1;
        }
        let me = Incarnation { node: id, boot_count: node.boot_count };
        let sizing = Sizing { strategy: self.setup.strategy, ..SIZING };
        node.life = Some(Life::new(me, sizing, &node.stored, &self.setup));
        self.away.remove(&id);
        self.oracle.born(me);
        self.note(|| format!("{me:?} begins"));
        self.after(Duration::ZERO, SimEvent::Tick(me));
        let table = self.life(me).map(|life| life.scheduler.plan_table()).unwrap_or_default();
        for event in WorkersEvent::after_start(id, table) {
            self.tell_workers(me, event);
        }
    }

    pub(super) fn life(&mut self, me: Incarnation) -> Option<&mut Life> {
        self.alive(me)?.life.as_mut()
    }

    pub(super) fn tick(&mut self, me: Incarnation) {
        self.see_itself(me);
        let time = self.time();
        if let Some(life) = self.life(me) {
            life.routes.look(time, &life.view);
        }
        self.plan(me, SchedulerEvent::Tick);
        let Some(report) = self.life(me).map(|life| life.report()) else { return };
        let others: Vec<NodeId> = self.nodes.keys().filter(|n| **n != me.node).copied().collect();
        for other in others {
            drop(self.send(me, other, Packet::Report(Box::new(report.clone()))));
        }
        self.workers(me, WorkersEvent::Tick);
        for key in self.hosts_of(me) {
            self.host(me, &key, |host, around| host.tick(time, around));
        }
        self.leave_if_drained(me);
    }

    /// A node is asked to stop.
    pub(super) fn terminate(&mut self, id: NodeId) {
        let Some(me) = self.nodes.get(&id).and_then(Node::life) else { return };
        self.away.insert(id);
        let Some(life) = self.life(me) else { return };
        life.leaving = true;
        if self.setup.bug == Some(Bug::CutAnswers) {
            self.stop(me);
            return;
        }
        self.after(super::DRAIN, SimEvent::Drained(me));
    }

    /// It stops once nothing depends on it any more.
    fn leave_if_drained(&mut self, me: Incarnation) {
        let Some(life) = self.life(me).filter(|life| life.leaving) else { return };
        let held = holds(me.node, &life.scheduler.plan_table(), &life.view);
        if held != Holds::Layers && life.owners.is_empty() {
            self.note(|| format!("{me:?} stops: {held:?}"));
            self.stop(me);
        }
    }

    /// The time is over in which a node that was asked to stop hands its layers over. If its planner has found
    /// nobody to take them it stops all the same, and so it does if somebody was found so late that its workers are still
    /// on their way out. (Whom a planner leaves out it does not say, so the node itself may
    /// still wait for them.)
    pub(super) fn drain_ends(&mut self, me: Incarnation) {
        if self.nodes.get(&me.node).is_none_or(|node| node.life() != Some(me)) {
            return;
        }
        let lives = self.nodes.values().filter_map(|node| node.life.as_ref());
        let mut schedulers = lives.map(|life| &life.scheduler);
        let is_stuck = schedulers.any(|scheduler| {
            names(self.setup.models).any(|model| scheduler.obstacle(&model).is_some())
        });
        let has_answers = self.life(me).is_some_and(|life| !life.owners.is_empty());
        let is_relieved = self.life(me).is_some_and(|life| {
            let plans = life.scheduler.plan_table();
            let mut plans = plans.models.values().filter_map(|model| model.plan.as_ref());
            plans.all(|plan| plan.stage_of(me.node).is_none())
        });
        // Who shall take them may stand still for as long as a load may take.
        if (is_stuck || is_relieved || self.has_stalled) && !has_answers {
            self.note(|| format!("{me:?} stops with what it holds"));
            self.stop(me);
        } else {
            self.oracle.violate(format!("{me:?} was asked to stop and cannot"));
        }
    }

    /// A node ends in order: the others hear of it at once.
    fn stop(&mut self, me: Incarnation) {
        let others: Vec<NodeId> = self.nodes.keys().filter(|n| **n != me.node).copied().collect();
        for other in others {
            let soon = self.pick(0, 20);
            self.after(soon, SimEvent::Farewell(other, me));
        }
        if let Some(node) = self.nodes.get_mut(&me.node) {
            node.end();
        }
        let back = self.pick(300, 2500);
        self.after(back, SimEvent::Start(me.node));
    }

    pub(super) fn hear_farewell(&mut self, who: NodeId, left: Incarnation) {
        let Some(me) = self.nodes.get(&who).and_then(Node::life) else { return };
        if self.nodes.get(&who).is_some_and(|node| node.frozen.is_some()) {
            self.after(50 * MS, SimEvent::Farewell(who, left));
            return;
        }
        let known = self.life(me).and_then(|life| life.members.get(&left.node).cloned());
        if let Some(member) = known.filter(|member| member.incarnation == left) {
            self.see(me, Member { state: NodeState::Left, ..member });
        }
    }

    /// Nothing is left of a sequence that is over, on any stage that could hear so all the time.
    pub(super) fn check_forgotten(&mut self, owner: Incarnation, id: SequenceId, began: Duration) {
        let keeps = |node: &Node| {
            let life = node.life.as_ref()?;
            let pair = (owner.node.min(node.id), owner.node.max(node.id));
            let was_cut = self.last_cut.get(&pair).is_some_and(|at| *at >= began);
            let could_hear = !was_cut && node.frozen.is_none() && node.was_frozen < began;
            let mut hosts = life.hosts.values().filter_map(SimulatedHost::sequences);
            let keeps = hosts.any(|open| open.stage_of(id).is_some());
            (could_hear && keeps).then_some(life.me)
        };
        let owner_lives = self.nodes.get(&owner.node).is_some_and(|n| n.life() == Some(owner));
        let kept = self.nodes.values().filter(|_| owner_lives).find_map(keeps);
        if let Some(who) = kept {
            self.oracle.violate(format!("{who:?} keeps {id} after its end on {owner:?}"));
        }
    }

    pub(super) fn see_itself(&mut self, me: Incarnation) {
        let Some(life) = self.life(me) else { return };
        let report = Arc::new(life.report());
        self.see(me, Member { incarnation: me, state: NodeState::Alive, address: any(), report });
    }

    pub(super) fn see(&mut self, me: Incarnation, member: Member) {
        let time = self.time();
        let Some(life) = self.life(me) else { return };
        let known = life.members.get(&member.incarnation.node);
        let is_old = known.is_some_and(|known| {
            known.incarnation > member.incarnation
                || (known.incarnation == member.incarnation && known.state.is_over())
                || *known == member
        });
        if is_old {
            return;
        }
        life.members.insert(member.incarnation.node, member);
        let view = View::of(life.members.values().cloned());
        life.view = view.clone();
        life.routes.look(time, &view);
        self.tell_workers(me, WorkersEvent::Members(view.clone()));
        self.plan(me, SchedulerEvent::Members(view.clone()));
        let Some(life) = self.life(me) else { return };
        let lost = life.owners.iter().flat_map(|(id, owner)| {
            view.losses(owner.sequence.plan()).map(|lost| (*id, lost)).collect::<Vec<_>>()
        });
        for (id, lost) in lost.collect::<Vec<_>>() {
            let name = format!("{lost:?}");
            self.tell(me, id, SequenceEvent::NodeLost { life: lost, name });
        }
    }

    pub(super) fn take_for_dead(&mut self, who: NodeId, lost: Incarnation) {
        let Some(me) = self.nodes.get(&who).and_then(Node::life) else { return };
        if self.nodes.get(&who).is_some_and(|node| node.frozen.is_some()) {
            self.after(50 * MS, SimEvent::Down(who, lost));
            return;
        }
        let known = self.life(me).and_then(|life| life.members.get(&lost.node).cloned());
        if let Some(member) = known.filter(|member| member.incarnation == lost) {
            self.note(|| format!("{me:?} takes {lost:?} for dead"));
            self.see(me, Member { state: NodeState::Down, ..member });
        }
    }

    pub(super) fn plan(&mut self, me: Incarnation, event: SchedulerEvent) {
        let time = self.time();
        let Some(life) = self.life(me) else { return };
        let before = life.scheduler.plan_table();
        let actions = life.scheduler.on(time, event);
        carry_out(me.node, actions, &mut Around { world: self, me });
        let Some(life) = self.life(me) else { return };
        let in_force: Vec<Plan> = life.scheduler.plans().cloned().collect();
        life.routes.follow(time, in_force.iter());
        life.ever.extend(in_force.iter().map(|plan| (plan.epoch(), Arc::new(plan.clone()))));
        let is_new = in_force != life.known;
        life.known.clone_from(&in_force);
        let is_known = life.scheduler.plan_table() == before;
        let owners: Vec<SequenceId> = life.owners.keys().copied().collect();
        if is_new {
            self.tell_workers(me, WorkersEvent::InForce(in_force));
        }
        if is_known {
            return;
        }
        self.see_itself(me);
        for id in owners {
            self.tell(me, id, SequenceEvent::PlansChanged);
        }
    }

    pub(super) fn take_packet(&mut self, from: Incarnation, to: Incarnation, packet: Packet) {
        match packet {
            Packet::Report(report) => {
                let report = Arc::new(*report);
                let state = NodeState::Alive;
                self.see(to, Member { incarnation: from, state, address: any(), report });
            }
            Packet::Control(message) => {
                self.plan(to, message.event_from(from.node));
            }
            Packet::Data(header, payload) => self.deliver(to, header, payload),
            Packet::Exchange(header, payload) => self.take_exchange(from, to, header, payload),
        }
    }

    pub(super) fn deliver(&mut self, me: Incarnation, header: DataHeader, payload: Bytes) {
        let bug = self.setup.bug;
        let Some(life) = self.life(me) else { return };
        let newest = life.ever.keys().next_back().copied();
        let is_retired =
            bug == Some(Bug::RetireInForce) && newest.is_some_and(|newest| newest > header.epoch);
        match life.routes.way(&header) {
            Way::Stage(_) if is_retired => {
                if let Some(refusal) = life.routes.refusal(&header, 0, None) {
                    self.send_to_owner(me, refusal);
                }
            }
            Way::Owner => {
                let id = header.sequence;
                self.tell(me, id, SequenceEvent::Frame(header));
            }
            Way::Stage(plan) => self.take(me, &plan, &header, payload),
            Way::Holder(Some(plan))
                if bug == Some(Bug::FencedRelease) && life.view.has_lost(&plan) => {}
            Way::Holder(plan) => self.release(me, &header, plan.as_deref()),
            Way::Nowhere(stage, layers) => {
                let old = life.ever.get(&header.epoch).cloned();
                if let Some(old) = old.filter(|_| bug == Some(Bug::SkipEpochCheck)) {
                    self.take(me, &old, &header, payload);
                } else if let Some(refusal) = life.routes.refusal(&header, stage, layers) {
                    self.send_to_owner(me, refusal);
                }
            }
        }
    }

    pub(super) fn resume(&mut self, me: Incarnation) {
        let Some(life) = self.life(me) else { return };
        let owners: Vec<SequenceId> = life.owners.keys().copied().collect();
        owners.iter().for_each(|id| self.sleep(me, *id));
        self.turn_all(me);
    }

    pub(super) fn is_quiet(&self) -> bool {
        let settled = self.oracle.ended_at.max(super::oracle::LAST_FAULT) + 2500 * MS;
        let has_ended = self.away.is_empty() && self.oracle.open_request().is_none();
        has_ended
            && self.now > settled
            && names(self.setup.models).all(|model| self.ready_under(&model).is_ok())
            && self.nodes.values().all(|node| node.leftovers().or(node.misplaced()).is_none())
    }

    /// The one epoch under which all nodes can answer for a model, or those under which they can.
    fn ready_under(&self, model: &ModelName) -> Result<Epoch, Vec<Option<Epoch>>> {
        let ready = |node: &Node| node.ready(model).map(|plan| plan.epoch());
        let ready: Vec<_> = self.nodes.values().map(ready).collect();
        match ready.first() {
            Some(Some(first)) if ready.iter().all(|epoch| *epoch == Some(*first)) => Ok(*first),
            _ => Err(ready),
        }
    }

    pub(super) fn check_end(&mut self) {
        if let Some(request) = self.oracle.open_request() {
            self.oracle.violate(format!("request {request} has not ended"));
        }
        for model in names(self.setup.models) {
            if let Err(ready) = self.ready_under(&model) {
                let lives = self.nodes.values().filter_map(|node| node.life.as_ref());
                let obstacles = lives.map(|life| life.scheduler.obstacle(&model));
                let obstacles: Vec<_> = obstacles.map(|why| why.map(str::to_owned)).collect();
                self.oracle.violate(format!(
                    "in the end the nodes serve `{model}` by {ready:?}: {obstacles:?}"
                ));
            }
        }
        let leftovers: Vec<String> = self.nodes.values().filter_map(Node::leftovers).collect();
        let misplaced: Vec<String> = self.nodes.values().filter_map(Node::misplaced).collect();
        for wrong in leftovers.into_iter().chain(misplaced) {
            self.oracle.violate(wrong);
        }
    }
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// The node around a scheduler.
struct Around<'a> {
    world: &'a mut World,
    me: Incarnation,
}

impl SchedulerRuntime for Around<'_> {
    fn cast(&mut self, event: SchedulerEvent) {
        if let SchedulerEvent::Commit(plan) = &event {
            self.check(plan);
        }
        self.world.after(Duration::ZERO, SimEvent::Plan(self.me, Box::new(event)));
    }

    fn send(&mut self, to: NodeId, message: Message) {
        if let Message::Commit(plan) = &message {
            self.check(plan);
        }
        if let Message::Abort(epoch) = &message {
            let me = self.me;
            self.world.note(|| format!("{me:?} calls {epoch} off at {to:?}"));
        }
        drop(self.world.send(self.me, to, Packet::Control(message)));
    }

    fn prepare(&mut self, plan: Arc<Plan>) {
        let (time, me) = (self.world.time(), self.me);
        self.world.note(|| format!("{me:?} prepares {plan}"));
        if let Some(life) = self.world.life(self.me) {
            life.ever.insert(plan.epoch(), Arc::clone(&plan));
            life.routes.prepare(time, &plan);
        }
        self.world.tell_workers(self.me, WorkersEvent::Load(plan));
    }

    fn abandon(&mut self, epoch: Epoch) {
        let me = self.me;
        self.world.note(|| format!("{me:?} abandons {epoch}"));
        if let Some(life) = self.world.life(self.me) {
            life.routes.abort(epoch);
        }
        self.world.tell_workers(self.me, WorkersEvent::Abort(epoch));
    }

    fn adopt(&mut self, plan: Plan) {
        let me = self.me;
        self.world.oracle.in_force(&plan);
        self.world.note(|| format!("{me:?} has in force {plan}"));
        if let Some(node) = self.world.nodes.get_mut(&me.node) {
            node.stored.retain(|stored| stored.model() != plan.model());
            node.stored.push(plan);
        }
    }

    fn place(&mut self, problem: Box<PlacementProblem>) {
        self.think(problem.placed());
    }

    fn plan_failovers(&mut self, problem: Box<PlacementProblem>) {
        self.think(problem.failovers_planned(self.me.node));
    }

    fn standby(&mut self, shards: Vec<ShardKey>) {
        if !self.world.setup.standby {
            return;
        }
        if let Some(life) = self.world.life(self.me) {
            life.standby.clone_from(&shards);
        }
        self.world.tell_workers(self.me, WorkersEvent::Standby(shards));
    }
}

impl Around<'_> {
    /// A plan that this node made comes into force.
    fn check(&mut self, plan: &Plan) {
        let view = self.world.life(self.me).map(|life| life.view.clone()).unwrap_or_default();
        let wrong = check_plan(plan, all_layers().count(), |life| view.is_dead(life));
        wrong.into_iter().for_each(|wrong| self.world.oracle.violate(wrong));
    }

    /// What was worked out is there after a while.
    fn think(&mut self, event: SchedulerEvent) {
        let thinking = self.world.pick(0, 40);
        self.world.after(thinking, SimEvent::Plan(self.me, Box::new(event)));
    }
}
