//! A cluster on virtual time: what has to be true always, checked after every event.
//!
//! The machines are the real ones: `Scheduler`, `Sequence`, the routes with their fence, what a host keeps of
//! sequences, which workers a node has, and the worker's loop around the fake stage, through the codec of its pipe.
//! In place of the actors around them stand `node`, `workers`, `host` and `owner`, in place of links the `World`:
//! frames in order on each edge, delayed, sometimes twice, and lost with their link. What the members know of each
//! other comes late, and may be wrong. (How they find out is simulated in `membership::swim`.)
//!
//! One seed is one run. `PLANARIA_SIMULATED_SEEDS` says how many, `PLANARIA_SIMULATED_SEED` which one
//! to begin with.

// Nothing but tests.
#![cfg(test)]

mod host;
mod models;
mod node;
mod oracle;
mod owner;
mod tests;
mod workers;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{Incarnation, NodeId, SequenceId, Strategy};
use planaria_control::scheduler::machine::{Message, SchedulerEvent};
use planaria_pipeline::sequence::machine::SequenceEvent;
use planaria_pipeline::stage::workers::WorkersEvent;
use planaria_protocol::plan::{Plan, WorkerKey};
use planaria_protocol::wire::{DataBody, DataHeader, Report};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use self::host::Disk;
use self::node::Node;
use self::oracle::Oracle;

const MS: Duration = Duration::from_millis(1);

/// A mistake to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    /// Frames are taken whatever their epoch.
    SkipEpochCheck,
    /// What goes on after a break begins with a token that was computed before.
    ReplayToken,
    /// A layer that lost what it knew is left out when the others compute it again.
    ForgetLayer,
    /// A plan that was said to be stored is not.
    LoseWrite,
    /// A client hears nothing of the end of the actor that answers it.
    DeafClient,
    /// A stage does not obey a release by a plan of which a node is over.
    FencedRelease,
    /// Whatever is prepared takes the plan in force out of the routes.
    RetireInForce,
    /// A node that is asked to stop cuts the answers of its clients, without a word.
    CutAnswers,
    /// A sequence that has moved is released by the plan that it began under.
    StaleRelease,
    /// A worker of which nothing is needed any more is kept.
    KeepUnwanted,
    /// Layers that a loss would ask for are not loaded.
    DropStandby,
    /// A partial sum changes on its way from one rank to another.
    SpoilSum,
    /// A rank that knows less of a sequence than the others says that it knows as much.
    BoastRank,
}

/// Within this a node that is asked to stop has handed its layers over, and its answers have ended.
const DRAIN: Duration = Duration::from_secs(25);

/// So long after a release nothing may be left of a sequence on any stage that could hear it.
const FORGOTTEN: Duration = Duration::from_millis(1500);

/// What one run is made of.
#[derive(Debug, Clone, Copy)]
struct Setup {
    nodes: u8,
    faults: u32,
    /// So many nodes are killed besides.
    kills: u32,
    requests: u32,
    /// How many models are served.
    models: u8,
    /// Whether a node has memory for all layers.
    ample: bool,
    /// Whether layers are loaded that a loss would ask for.
    standby: bool,
    strategy: Strategy,
    bug: Option<Bug>,
}

/// What travels between nodes.
#[derive(Debug, Clone)]
enum Packet {
    Data(DataHeader, Bytes),
    /// What a rank has for another one: the header, encoded.
    Exchange(Bytes, Bytes),
    Control(Message),
    Report(Box<Report>),
}

/// What happens next.
#[derive(Debug)]
enum SimEvent {
    Arrival {
        from: Incarnation,
        to: Incarnation,
        packet: Box<Packet>,
    },
    Tick(Incarnation),
    /// A worker of this life takes what came, and computes.
    Turn(Incarnation, WorkerKey, u64),
    StartWorker(Incarnation, WorkerKey),
    /// That worker has ended.
    Exited(Incarnation, WorkerKey, u64),
    /// What the actor is told that keeps a node's workers.
    Workers(Incarnation, Box<WorkersEvent>),
    /// The shards of a node are in another state.
    Changed(Incarnation),
    /// A disk is as it should be.
    Mend(NodeId),
    /// A client leaves.
    Leave(u32),
    /// A node says goodbye to another one.
    Farewell(NodeId, Incarnation),
    /// A node that was asked to stop should have.
    Drained(Incarnation),
    /// A sequence of this owner is over, and began then: nothing is left of it.
    Forgotten(Incarnation, SequenceId, Duration),
    Wake(Incarnation, SequenceId),
    /// What a scheduler is told.
    Plan(Incarnation, Box<SchedulerEvent>),
    /// What a sequence is told.
    Tell(Incarnation, SequenceId, Box<SequenceEvent>),
    /// A node takes another for dead.
    Down(NodeId, Incarnation),
    Start(NodeId),
    Heal(NodeId, NodeId),
    Thaw(NodeId, bool),
    Ask(u32),
    Fault(Option<Fault>),
}

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    KillWorker,
    /// A worker process stands still until its host kills it.
    StallWorker,
    /// For a while a worker takes much longer for each step.
    SlowWorker,
    /// A host is started again, and has forgotten everything; so nobody is told.
    LoseHost,
    /// For a moment that nobody notices.
    Freeze,
    /// Until it is taken for dead; it comes back as a zombie and is then another.
    Zombie,
    /// Taken for dead by mistake.
    FalseSuspicion,
    Cut,
    /// For a while nothing can be loaded.
    BreakDisk,
    /// For a while a layer takes long.
    SlowDisk,
    /// The actor of a sequence panics.
    LoseSequence,
    /// A node is asked to stop.
    Terminate,
}

/// The kinds of faults, the likelier ones more than once.
const FAULTS: [Fault; 17] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Kill,
    Fault::KillWorker,
    Fault::KillWorker,
    Fault::StallWorker,
    Fault::SlowWorker,
    Fault::LoseHost,
    Fault::Freeze,
    Fault::Zombie,
    Fault::FalseSuspicion,
    Fault::Cut,
    Fault::BreakDisk,
    Fault::SlowDisk,
    Fault::LoseSequence,
    Fault::Terminate,
    Fault::Terminate,
];

/// Where frames that must stay in order travel: from, to, and what tells streams apart.
type Edge = (NodeId, NodeId, Option<(u64, Option<u16>)>);

struct World {
    setup: Setup,
    rng: SmallRng,
    start: Instant,
    now: Duration,
    queue: BTreeMap<(Duration, u64), SimEvent>,
    queued: u64,
    nodes: BTreeMap<NodeId, Node>,
    /// Pairs that do not hear each other.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// When pairs were cut or healed last.
    last_cut: BTreeMap<(NodeId, NodeId), Duration>,
    /// When the last frame on an edge arrives.
    busy_until: BTreeMap<Edge, Duration>,
    /// Nodes that are dead, frozen, or about to be another.
    away: BTreeSet<NodeId>,
    /// Whether a worker stood still.
    has_stalled: bool,
    /// Nodes whose disk was broken.
    spoiled: BTreeSet<NodeId>,
    oracle: Oracle,
    log: Vec<String>,
}

thread_local! {
    /// For workers, which ask for the time themselves.
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn now() -> Instant {
    NOW.get().unwrap_or_else(Instant::now)
}

/// What came of a seed.
struct Outcome {
    /// What was violated first.
    violation: Option<String>,
    /// What happened, for somebody who looks for the reason.
    log: Vec<String>,
    recoveries: u32,
    /// Positions that were computed again in recoveries of answers that had begun.
    replayed: Vec<u32>,
    tokens: u64,
}

impl World {
    /// Plays a seed to its end.
    fn play(seed: u64, setup: Setup) -> Outcome {
        let mut world = Self {
            setup,
            rng: SmallRng::seed_from_u64(seed),
            start: Instant::now(),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            queued: 0,
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            last_cut: BTreeMap::new(),
            busy_until: BTreeMap::new(),
            away: BTreeSet::new(),
            has_stalled: false,
            spoiled: BTreeSet::new(),
            oracle: Oracle::default(),
            log: Vec::new(),
        };
        for byte in 1..=setup.nodes {
            let node = NodeId::from_bytes([byte; 32]);
            // One of four or more may join late: two can hold the model.
            let is_late = byte > 3 && world.rng.random_ratio(1, 3);
            let after = if is_late { world.pick(800, 4000) } else { world.pick(0, 300) };
            let mut joining = Node::new(node);
            if is_late {
                world.away.insert(node);
                // Perhaps it can never load anything.
                if world.rng.random_bool(0.5) {
                    joining.disk = Disk::Broken;
                    world.spoiled.insert(node);
                }
            }
            world.nodes.insert(node, joining);
            world.after(after, SimEvent::Start(node));
        }
        for request in 0..setup.requests {
            let after = world.pick(1500, 4000);
            world.after(after, SimEvent::Ask(request));
        }
        for _ in 0..setup.faults {
            let after = world.pick(1000, 5000);
            world.after(after, SimEvent::Fault(None));
        }
        for _ in 0..setup.kills {
            let after = world.pick(1800, 5000);
            world.after(after, SimEvent::Fault(Some(Fault::Kill)));
        }
        while world.oracle.violation.is_none() {
            let Some(((at, _), event)) = world.queue.pop_first() else { break };
            if at > oracle::DEADLINE || (at > oracle::LAST_FAULT && world.is_quiet()) {
                break;
            }
            world.now = at;
            NOW.set(Some(world.time()));
            world.happen(event);
        }
        world.check_end();
        let Oracle { violation, recoveries, replayed, tokens, .. } = world.oracle;
        Outcome { violation, log: world.log, recoveries, replayed, tokens }
    }

    fn time(&self) -> Instant {
        self.start + self.now
    }

    /// A time between two numbers of milliseconds.
    fn pick(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(least * 1000..=most * 1000))
    }

    fn after(&mut self, wait: Duration, event: SimEvent) {
        self.queued += 1;
        self.queue.insert((self.now + wait, self.queued), event);
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        self.log.push(format!("{now:?} {}", what()));
    }

    /// The node, while this life of it lasts and is not frozen.
    fn alive(&mut self, life: Incarnation) -> Option<&mut Node> {
        let node = self.nodes.get_mut(&life.node)?;
        (node.life() == Some(life) && node.frozen.is_none()).then_some(node)
    }

    fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// Sends over a link, if there is one.
    fn send(&mut self, from: Incarnation, to: NodeId, packet: Packet) -> Result<(), String> {
        if self.is_cut(from.node, to) {
            return Err(format!("there is no link to {to:?}"));
        }
        let Some(receiver) = self.nodes.get(&to).and_then(Node::life) else {
            // The link does not know yet.
            return Ok(());
        };
        let lane = match &packet {
            Packet::Data(header, _) => Some((header.epoch.counter, stage_of(header))),
            Packet::Exchange(..) => Some((u64::MAX, None)),
            Packet::Control(_) | Packet::Report(_) => None,
        };
        let delay = if from.node == to { Duration::ZERO } else { self.pick(0, 8) };
        let edge = (from.node, to, lane);
        let free = self.busy_until.get(&edge).copied().unwrap_or_default();
        let at = free.max(self.now + delay);
        self.busy_until.insert(edge, at);
        let twice = from.node != to && lane.is_some() && self.rng.random_ratio(1, 400);
        if twice {
            let packet = packet.clone();
            let again = SimEvent::Arrival { from, to: receiver, packet: Box::new(packet) };
            self.after(at - self.now + 3 * MS, again);
        }
        let arrival = SimEvent::Arrival { from, to: receiver, packet: Box::new(packet) };
        self.after(at - self.now, arrival);
        Ok(())
    }

    fn happen(&mut self, event: SimEvent) {
        match event {
            SimEvent::Arrival { from, to, packet } => self.arrive(from, to, *packet),
            SimEvent::Tick(life) => {
                let frozen = self.nodes.get(&life.node).is_some_and(|n| n.frozen.is_some());
                if self.alive(life).is_some() {
                    self.tick(life);
                }
                if frozen || self.alive(life).is_some() {
                    self.after(100 * MS, SimEvent::Tick(life));
                }
            }
            SimEvent::Turn(life, key, worker) => {
                self.defer_or(life, |world| {
                    let key = world.name_of(life, &key);
                    world.turn(life, &key, worker);
                });
            }
            SimEvent::Wake(life, sequence) => {
                self.defer_or(life, |world| world.wake(life, sequence));
            }
            SimEvent::Plan(life, _)
            | SimEvent::Tell(life, ..)
            | SimEvent::StartWorker(life, _)
            | SimEvent::Exited(life, ..)
            | SimEvent::Workers(life, _)
            | SimEvent::Changed(life) => {
                if self.alive(life).is_some() {
                    self.receive(event);
                } else if self.nodes.get(&life.node).is_some_and(|n| n.life() == Some(life)) {
                    // It is frozen, and this waits in the inbox of an actor.
                    self.after(10 * MS, event);
                }
            }
            SimEvent::Mend(node) => {
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.disk = Disk::Well;
                }
            }
            SimEvent::Leave(request) => self.leave(request),
            SimEvent::Farewell(who, left) => self.hear_farewell(who, left),
            SimEvent::Drained(life) => {
                self.drain_ends(life);
            }
            SimEvent::Forgotten(owner, id, began) => self.check_forgotten(owner, id, began),
            SimEvent::Down(who, lost) => self.take_for_dead(who, lost),
            SimEvent::Start(node) => self.start(node),
            SimEvent::Heal(a, b) => {
                self.note(|| format!("{a:?} and {b:?} hear each other again"));
                let pair = (a.min(b), a.max(b));
                self.cut.remove(&pair);
                self.last_cut.insert(pair, self.now);
            }
            SimEvent::Thaw(node, is_zombie) => self.thaw(node, is_zombie),
            SimEvent::Ask(request) => self.ask(request),
            SimEvent::Fault(fault) => self.fault(fault),
        }
    }

    /// What a worker that went by this name when something was said is called now.
    fn name_of(&mut self, life: Incarnation, key: &WorkerKey) -> WorkerKey {
        self.life(life).map_or_else(|| key.clone(), |life| life.name_of(key))
    }

    /// An actor takes in what it was told.
    fn receive(&mut self, event: SimEvent) {
        match event {
            SimEvent::Plan(life, event) => self.plan(life, *event),
            SimEvent::Tell(life, id, event) => self.tell(life, id, *event),
            SimEvent::StartWorker(life, key) => {
                let key = self.name_of(life, &key);
                self.start_worker(life, &key);
            }
            SimEvent::Exited(life, key, worker) => {
                let key = self.name_of(life, &key);
                self.worker_exited(life, &key, worker);
            }
            SimEvent::Workers(life, event) => self.workers(life, *event),
            SimEvent::Changed(life) => self.see_itself(life),
            _ => {}
        }
    }

    /// What happens on a frozen node happens once it thaws.
    fn defer_or(&mut self, life: Incarnation, act: impl FnOnce(&mut Self)) {
        if self.alive(life).is_some() {
            act(self);
        }
    }

    fn arrive(&mut self, from: Incarnation, to: Incarnation, packet: Packet) {
        let is_frozen = |node: &Node| node.life() == Some(to) && node.frozen.is_some();
        if let Some(node) = self.nodes.get_mut(&to.node).filter(|node| is_frozen(node)) {
            // The kernel keeps it.
            node.frozen.get_or_insert_default().push((from, packet));
            return;
        }
        // What was on its way is lost with the link.
        if self.alive(to).is_none() || self.is_cut(from.node, to.node) {
            return;
        }
        self.take_packet(from, to, packet);
    }

    fn fault(&mut self, fault: Option<Fault>) {
        // Who comes back at once may be in the next plan already.
        let back = if fault.is_some() { (2500, 4000) } else { (300, 2500) };
        let kind = self.rng.random_range(0..FAULTS.len());
        let present: Vec<NodeId> =
            self.nodes.keys().filter(|node| !self.away.contains(node)).copied().collect();
        let victim = present.get(self.rng.random_range(0..present.len().max(1))).copied();
        let fault = fault.or(FAULTS.get(kind).copied());
        let (Some(victim), Some(fault)) = (victim, fault) else { return };
        let takes_away =
            matches!(fault, Fault::Kill | Fault::Zombie | Fault::FalseSuspicion | Fault::BreakDisk)
                || matches!(fault, Fault::Terminate);
        // Two can hold the model, and whoever plans has to be heard by them. Who could not load is left out for longer
        // than a request waits.
        let able = present.iter().filter(|node| !self.spoiled.contains(node)).count();
        let is_needed = !self.spoiled.contains(&victim) && able <= 2;
        if takes_away && (is_needed || !self.cut.is_empty()) {
            return;
        }
        self.note(|| format!("{fault:?} {victim:?}"));
        match fault {
            Fault::Kill => {
                self.end(victim);
                let back = self.pick(back.0, back.1);
                self.after(back, SimEvent::Start(victim));
            }
            Fault::KillWorker => self.kill_worker(victim),
            Fault::StallWorker => self.stall_worker(victim),
            Fault::SlowWorker => self.slow_worker(victim),
            Fault::LoseSequence => self.lose_sequence(victim),
            Fault::Terminate => self.terminate(victim),
            Fault::LoseHost => self.lose_host(victim),
            Fault::Freeze => {
                self.freeze(victim);
                let moment = self.pick(5, 150);
                self.after(moment, SimEvent::Thaw(victim, false));
            }
            Fault::Zombie => {
                self.away.insert(victim);
                self.freeze(victim);
                self.spread_death(victim);
                let moment = self.pick(800, 2500);
                self.after(moment, SimEvent::Thaw(victim, true));
            }
            Fault::FalseSuspicion => {
                self.away.insert(victim);
                self.spread_death(victim);
                let moment = self.pick(300, 900);
                self.after(moment, SimEvent::Thaw(victim, true));
            }
            Fault::BreakDisk | Fault::SlowDisk => {
                let lasting = self.pick(200, 3000);
                if let Some(node) = self.nodes.get_mut(&victim) {
                    let is_slow = matches!(fault, Fault::SlowDisk);
                    node.disk = if is_slow { Disk::Slow } else { Disk::Broken };
                    if !is_slow {
                        self.spoiled.insert(victim);
                    }
                }
                self.after(lasting, SimEvent::Mend(victim));
            }
            Fault::Cut => {
                let others: Vec<NodeId> = present.into_iter().filter(|n| *n != victim).collect();
                if others.len() < 2 {
                    return;
                }
                let other = others.get(self.rng.random_range(0..others.len()));
                if let Some(other) = other.copied() {
                    let pair = (victim.min(other), victim.max(other));
                    self.cut.insert(pair);
                    self.last_cut.insert(pair, self.now);
                    let moment = self.pick(20, 600);
                    self.after(moment, SimEvent::Heal(victim, other));
                }
            }
        }
    }

    /// Everybody else takes a node for dead, one after the other.
    fn spread_death(&mut self, victim: NodeId) {
        let Some(lost) = self.nodes.get(&victim).and_then(Node::life) else { return };
        let others: Vec<NodeId> = self.nodes.keys().filter(|n| **n != victim).copied().collect();
        for other in others {
            let noticed = self.pick(200, 600);
            self.after(noticed, SimEvent::Down(other, lost));
        }
    }

    fn end(&mut self, victim: NodeId) {
        self.away.insert(victim);
        self.spread_death(victim);
        if let Some(node) = self.nodes.get_mut(&victim) {
            let requests = node.end();
            self.oracle.owner_died(requests);
        }
    }

    fn freeze(&mut self, victim: NodeId) {
        if let Some(node) = self.nodes.get_mut(&victim) {
            node.frozen.get_or_insert_default();
            node.was_frozen = self.now;
        }
    }

    /// A node goes on; as a zombie it says what it has to say, and is then another.
    fn thaw(&mut self, node: NodeId, is_zombie: bool) {
        let Some((life, kept)) = self.nodes.get_mut(&node).and_then(Node::thaw) else { return };
        if let Some(node) = self.nodes.get_mut(&node) {
            node.was_frozen = self.now;
        }
        for (from, packet) in kept {
            self.arrive(from, life, packet);
        }
        self.resume(life);
        if is_zombie {
            let soon = self.pick(20, 200);
            self.after(soon, SimEvent::Start(node));
        }
    }
}

fn stage_of(header: &DataHeader) -> Option<u16> {
    match &header.body {
        DataBody::Forward(forward) => Some(forward.stage),
        DataBody::Release { stage }
        | DataBody::StateQuery { stage, .. }
        | DataBody::Resume { stage, .. }
        | DataBody::Check { stage, .. } => Some(*stage),
        _ => None,
    }
}

/// Every layer once, and nobody whom its planner knows to be gone.
fn check_plan(plan: &Plan, layers: u32, is_gone: impl Fn(Incarnation) -> bool) -> Option<String> {
    let held: Vec<u32> = plan.stages().iter().flat_map(|stage| stage.layers.range()).collect();
    if held != (0..layers).collect::<Vec<_>>() {
        return Some(format!("a plan that covers {held:?}: {plan}"));
    }
    let gone = plan.stages().iter().find(|stage| is_gone(stage.incarnation))?;
    Some(format!("a plan with {:?}, which is gone: {plan}", gone.incarnation))
}
