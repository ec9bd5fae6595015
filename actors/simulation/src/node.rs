//! A node without its actors: what they do around the scheduler and the routes, as briefly as it can
//! be said.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{
    ByteSize, Epoch, Incarnation, LayerRange, ModelName, NodeId, SequenceId, Strategy,
};
use planaria_control::drain::{Holds, holds};
use planaria_control::membership::{Member, View};
use planaria_control::scheduler::machine::{Message, Scheduler, SchedulerEvent, Timeouts};
use planaria_control::scheduler::placement::Sizing;
use planaria_control::scheduler::problem::PlacementProblem;
use planaria_control::scheduler::runtime::{SchedulerRuntime, carry_out};
use planaria_engine::geometry::{Geometry, WorkingSet};
use planaria_pipeline::routes::{Routes, Way};
use planaria_pipeline::sequence::machine::SequenceEvent;
use planaria_pipeline::sequence::recovery::Offer;
use planaria_pipeline::stage::host::{Host, WorkerTimeouts};
use planaria_protocol::capabilities::{Capabilities, LinkSpeed};
use planaria_protocol::desired::DesiredMap;
use planaria_protocol::plan::{Plan, WorkerKey};
use planaria_protocol::state::{NodeState, SequenceCounts, ShardState};
use planaria_protocol::wire::features::Features;
use planaria_protocol::wire::{DataHeader, HeldModel, Report, RunningReport, ShardReport};

use super::host::{Disk, SimulatedWorker};
use super::oracle::{all_layers, model_config};
use super::owner::{Owner, PACE};
use super::{Bug, MS, Packet, SimEvent, World, check_plan};

/// As nodes with the usual settings are, but for the time that a load may take.
const PATIENCE: Timeouts = Timeouts::with(Duration::from_secs(60), Duration::from_secs(20));

const SIZING: Sizing =
    Sizing { strategy: Strategy::RingMemoryWeighted, context: 800, max_sequences: 2, streams: 1 };

pub(super) fn model() -> ModelName {
    "m".parse().unwrap()
}

/// The sizes of the model.
pub(super) fn geometry() -> Geometry {
    let config = model_config();
    let layers = all_layers().count() as usize;
    Geometry {
        bytes_per_layer: vec![config.bytes_per_layer; layers],
        embed_bytes: 0,
        head_bytes: 0,
        tied: false,
        kv_bytes_per_token_per_layer: 8,
        hidden_bytes: 8,
        max_context: 256,
        vocab: config.vocab_size,
        working: WorkingSet::default(),
    }
}

/// A host that is to hold these layers.
pub(super) fn new_host(now: Instant, me: Incarnation, wanted: Vec<LayerRange>) -> Host {
    let key = WorkerKey { model: model(), digest: "11".repeat(32).parse().unwrap() };
    let timeouts = WorkerTimeouts { step: PACE.step_timeout, load: PACE.recovery_timeout };
    Host::new(now, (me.node, me.node.short()), &key, wanted, timeouts, 1 << 20)
}

/// What is there after `kill -9`, and a life.
pub(super) struct Node {
    id: NodeId,
    generation: u64,
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
    /// While it is not being started again, or takes something in.
    pub(super) host: Option<Host>,
    pub(super) worker: Option<SimulatedWorker>,
    /// How many it has had.
    pub(super) workers: u64,
    /// What is known of its shard.
    pub(super) shard: ShardReport,
    /// The layers that its host was told to hold.
    pub(super) wants: Vec<LayerRange>,
    /// Plans whose layers the scheduler waits for, and the newest that was prepared.
    pub(super) awaited: Vec<Arc<Plan>>,
    pub(super) prepared: Option<Arc<Plan>>,
    pub(super) owners: BTreeMap<SequenceId, Owner>,
    /// Whether it was asked to stop.
    leaving: bool,
}

impl Node {
    pub(super) fn new(id: NodeId) -> Self {
        Self {
            id,
            generation: 0,
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

    /// The plan that can answer now, if there is one.
    pub(super) fn ready(&self) -> Option<Arc<Plan>> {
        match self.life.as_ref()?.offer() {
            Offer::Ready(plan) => Some(plan),
            _ => None,
        }
    }

    /// What is left of requests that are over.
    pub(super) fn leftovers(&self) -> Option<String> {
        let life = self.life.as_ref()?;
        let kv = life.worker.as_ref().map_or(0, SimulatedWorker::kv);
        let open = life.host.as_ref().map(Host::sequences).filter(|open| !open.is_empty());
        let owners: Vec<&SequenceId> = life.owners.keys().collect();
        (open.is_some() || kv > 0 || !owners.is_empty())
            .then(|| format!("{:?} keeps {kv} bytes, {open:?}, and {owners:?}", self.id))
    }
}

impl Life {
    fn new(me: Incarnation, sizing: Sizing, stored: &[Plan]) -> Self {
        Self {
            me,
            members: BTreeMap::new(),
            view: View::default(),
            scheduler: Scheduler::new(me.node, sizing, PATIENCE, stored),
            routes: Routes::new(me.node),
            ever: BTreeMap::new(),
            host: None,
            worker: None,
            workers: 0,
            shard: ShardReport::starting(&model()),
            wants: Vec::new(),
            awaited: Vec::new(),
            prepared: None,
            owners: BTreeMap::new(),
            leaving: false,
        }
    }

    fn report(&self) -> Report {
        let digest = "11".repeat(32).parse().unwrap();
        let byte = self.me.node.as_bytes().first().copied().unwrap_or_default();
        // Two of them can hold all layers, one cannot.
        let memory = ByteSize::mib(65 + 5 * u64::from(byte));
        let mut capabilities = Capabilities::default();
        capabilities.layer_seconds.insert(digest, 1e-3 * f64::from(byte));
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
            desired: DesiredMap::granted(NodeId::from_bytes([1; 32]), [model()]),
            models: vec![HeldModel {
                name: model(),
                digest,
                geometry: geometry(),
                content: None,
                unreadable: None,
            }],
            unusable: Vec::new(),
            shards: self.is_used().then(|| self.shard.clone()).into_iter().collect(),
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

    /// Whether its worker is wanted, or sequences pass through it: else its supervisor lets go of it.
    fn is_used(&self) -> bool {
        let is_open = |host: &Host| !host.sequences().is_empty();
        !self.wanted().is_empty() || self.host.as_ref().is_some_and(is_open)
    }

    fn running(&self) -> Vec<RunningReport> {
        let owners = self.owners.iter();
        let report = |(sequence, owner): (&SequenceId, &Owner)| RunningReport {
            sequence: *sequence,
            epoch: owner.plan.epoch(),
        };
        owners.map(report).collect()
    }

    pub(super) fn offer(&self) -> Offer {
        Offer::of(&model(), &self.scheduler.plan_table(), &self.view)
    }

    /// The layers that plans want of it.
    pub(super) fn wanted(&self) -> Vec<LayerRange> {
        let own =
            |plan: &Plan| plan.stage_of(self.me.node).filter(|(_, s)| s.incarnation == self.me);
        let is_newer =
            |plan: &&Plan| self.scheduler.plans().all(|in_force| in_force.epoch() < plan.epoch());
        let prepared = self.prepared.as_deref().filter(is_newer);
        let plans = self.scheduler.plans().chain(prepared);
        let mut wanted = Vec::new();
        for (_, stage) in plans.filter_map(own) {
            if !wanted.contains(&stage.layers) {
                wanted.push(stage.layers);
            }
        }
        wanted
    }
}

impl World {
    pub(super) fn start(&mut self, id: NodeId) {
        let bug = self.setup.bug;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.oracle.owner_died(node.end());
        if bug != Some(Bug::LoseWrite) || node.generation == 0 {
            node.generation += 1;
        }
        let me = Incarnation { node: id, generation: node.generation };
        let sizing = Sizing { strategy: self.setup.strategy, ..SIZING };
        node.life = Some(Life::new(me, sizing, &node.stored));
        self.away.remove(&id);
        self.oracle.born(me);
        self.note(|| format!("{me:?} begins"));
        self.after(Duration::ZERO, SimEvent::Tick(me));
        self.after(MS, SimEvent::StartHost(me));
    }

    pub(super) fn life(&mut self, me: Incarnation) -> Option<&mut Life> {
        self.alive(me)?.life.as_mut()
    }

    pub(super) fn tick(&mut self, me: Incarnation) {
        self.see_itself(me);
        self.plan(me, SchedulerEvent::Tick);
        let Some(report) = self.life(me).map(|life| life.report()) else { return };
        let others: Vec<NodeId> = self.nodes.keys().filter(|n| **n != me.node).copied().collect();
        for other in others {
            drop(self.send(me, other, Packet::Report(Box::new(report.clone()))));
        }
        let time = self.time();
        self.host(me, |host, around| host.tick(time, around));
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
            let host = life.host.as_ref().filter(|_| could_hear)?;
            host.sequences().stage_of(id).map(|_| life.me)
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
        self.host(me, |host, around| host.members(time, &view, around));
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
        life.ever.extend(in_force.into_iter().map(|plan| (plan.epoch(), Arc::new(plan))));
        if life.scheduler.plan_table() == before {
            return;
        }
        let owners: Vec<SequenceId> = life.owners.keys().copied().collect();
        self.hold(me);
        self.see_itself(me);
        for id in owners {
            self.tell(me, id, SequenceEvent::PlansChanged);
        }
    }

    pub(super) fn load(&mut self, me: Incarnation, plan: Arc<Plan>) {
        let time = self.time();
        let Some(life) = self.life(me) else { return };
        life.ever.insert(plan.epoch(), Arc::clone(&plan));
        life.routes.prepare(time, &plan);
        life.prepared = Some(Arc::clone(&plan));
        life.awaited.push(plan);
        self.hold(me);
        self.answer(me);
    }

    /// Tells the scheduler of layers that are loaded, or cannot be.
    pub(super) fn answer(&mut self, me: Incarnation) {
        let Some(life) = self.life(me) else { return };
        let shard = life.shard.clone();
        let mut answers = Vec::new();
        life.awaited.retain(|plan| {
            let layers = plan.stage_of(me.node).map(|(_, stage)| stage.layers);
            let result = match shard.state {
                _ if layers.is_none_or(|layers| shard.held.covers(layers)) => Ok(()),
                ShardState::Failed => Err(shard.reason.clone()),
                _ => return true,
            };
            answers.push(SchedulerEvent::ShardsLoaded { epoch: plan.epoch(), result });
            false
        });
        answers.into_iter().for_each(|answer| self.plan(me, answer));
    }

    /// The shard of a node is in another state.
    pub(super) fn changed(&mut self, me: Incarnation) {
        self.see_itself(me);
        self.answer(me);
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
            Way::Holder(_) => self.release(me, &header),
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
        let number = life.worker.as_ref().map(|worker| worker.number);
        let owners: Vec<SequenceId> = life.owners.keys().copied().collect();
        owners.iter().for_each(|id| self.sleep(me, *id));
        if let Some(number) = number {
            self.after(MS, SimEvent::Turn(me, number));
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        let settled = self.oracle.ended_at.max(super::oracle::LAST_FAULT) + 2500 * MS;
        let has_ended = self.away.is_empty() && self.oracle.open_request().is_none();
        has_ended
            && self.now > settled
            && self.nodes.values().all(|node| node.ready().is_some() && node.leftovers().is_none())
    }

    pub(super) fn check_end(&mut self) {
        if let Some(request) = self.oracle.open_request() {
            self.oracle.violate(format!("request {request} has not ended"));
        }
        let ready: Vec<_> = self.nodes.values().map(|n| n.ready().map(|p| p.epoch())).collect();
        if ready.windows(2).any(|pair| pair.first() != pair.last()) || ready.contains(&None) {
            let lives = self.nodes.values().filter_map(|node| node.life.as_ref());
            let obstacles = lives.map(|life| life.scheduler.obstacle(&model()).map(str::to_owned));
            let obstacles: Vec<_> = obstacles.collect();
            self.oracle.violate(format!("in the end the nodes serve by {ready:?}: {obstacles:?}"));
        }
        let leftovers: Vec<String> = self.nodes.values().filter_map(Node::leftovers).collect();
        for leftover in leftovers {
            self.oracle.violate(leftover);
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
        drop(self.world.send(self.me, to, Packet::Control(message)));
    }

    fn prepare(&mut self, plan: Arc<Plan>) {
        self.world.load(self.me, plan);
    }

    fn abandon(&mut self, epoch: Epoch) {
        if let Some(life) = self.world.life(self.me) {
            life.routes.abort(epoch);
            life.awaited.retain(|plan| plan.epoch() != epoch);
            life.prepared.take_if(|plan| plan.epoch() == epoch);
        }
        self.world.hold(self.me);
    }

    fn adopt(&mut self, plan: Plan) {
        let me = self.me;
        self.world.oracle.in_force(&plan);
        self.world.note(|| format!("{me:?} has in force {plan}"));
        if let Some(node) = self.world.nodes.get_mut(&me.node) {
            node.stored = vec![plan];
        }
    }

    fn place(&mut self, problem: Box<PlacementProblem>) {
        let (number, placed) = (problem.number, problem.place());
        self.think(SchedulerEvent::Placed { number, placed });
    }

    fn plan_failovers(&mut self, problem: Box<PlacementProblem>) {
        let (number, failovers) = (problem.number, problem.failovers());
        self.think(SchedulerEvent::FailoversPlanned { number, failovers });
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
