//! The workers of a node, and the node around their hosts.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_collectives::{Header, Part, Rank};
use planaria_config::{Incarnation, LayerRange, LayerSet, NodeId};
use planaria_control::membership::View;
use planaria_engine::geometry::Geometry;
use planaria_engine::stage::{Progress, SegmentError};
use planaria_pipeline::stage::host::{Host, HostRuntime};
use planaria_pipeline::stage::sequences::{Sequences, StepEffects};
use planaria_pipeline::stage::workers::WorkersEvent;
use planaria_protocol::pipe::{Command, FRAME_CAP, GroupRank, WorkerEvent};
use planaria_protocol::plan::{Plan, RankAssignment, WorkerKey};
use planaria_protocol::wire::{DataBody, DataHeader, ShardReport};
use planaria_transport::{Frame, decode_message, encode_message};
use planaria_worker::child::Worker;
use rand::RngExt as _;

use super::models::{geometry, stage};
use super::node::{Life, Node};
use super::{Bug, MS, Packet, SimEvent, World, now};

/// A host, and its worker.
pub(super) struct SimulatedHost {
    number: u64,
    /// While it does not take something in.
    host: Option<Host>,
    worker: Option<SimulatedWorker>,
}

impl SimulatedHost {
    pub(super) const fn around(number: u64, host: Host) -> Self {
        Self { number, host: Some(host), worker: None }
    }

    /// The layers that it has.
    pub(super) fn held(&self) -> Option<&LayerSet> {
        self.host.as_ref().map(|host| &host.report().held)
    }

    pub(super) fn sequences(&self) -> Option<&Sequences> {
        self.host.as_ref().map(Host::sequences)
    }

    /// Whether its worker stands still.
    pub(super) fn stands_still(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.is_stalled)
    }

    /// Bytes of KV that its worker keeps.
    pub(super) fn kv(&self) -> u64 {
        self.worker.as_ref().map_or(0, |worker| worker.worker.memory().kv)
    }
}

struct SimulatedWorker {
    worker: Worker<Pipe>,
    /// What it said last to another rank.
    last: Option<Header>,
    /// When it wants its turn though nothing comes.
    wakes_at: Option<Instant>,
    pipe: Pipe,
    inbox: VecDeque<(Command, Bytes)>,
    is_turning: bool,
    /// Whether it stands still for ever, and until when it is slow.
    is_stalled: bool,
    slow_until: Duration,
    /// Which one of its host's it is.
    number: u64,
}

/// What a worker has said.
#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<Vec<u8>>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Pipe {
    fn take(&self) -> Vec<(WorkerEvent, Bytes)> {
        let bytes = self.0.take();
        let mut bytes = bytes.as_slice();
        let mut heard = Vec::new();
        while let Some(frame) = Frame::read_from(&mut bytes, FRAME_CAP).unwrap() {
            heard.push((decode_message(&frame.header).unwrap(), frame.payload));
        }
        heard
    }
}

/// How a node's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    Well,
    /// Nothing can be read.
    Broken,
    /// A layer takes seconds.
    Slow,
}

impl World {
    /// Has a host of a node take something in, if it is there.
    pub(super) fn host(
        &mut self,
        me: Incarnation,
        key: &WorkerKey,
        act: impl FnOnce(&mut Host, &mut Around<'_>),
    ) {
        let hosted = self.life(me).and_then(|life| life.hosts.get_mut(key));
        let Some(hosted) = hosted else { return };
        let number = hosted.number;
        let Some(mut host) = hosted.host.take() else { return };
        act(&mut host, &mut Around { world: self, me, key, number });
        if let Some(hosted) = self.life(me).and_then(|life| life.hosts.get_mut(key)) {
            hosted.host = Some(host);
        }
    }

    /// A frame for a stage of this node.
    pub(super) fn take(
        &mut self,
        me: Incarnation,
        plan: &Arc<Plan>,
        header: &DataHeader,
        payload: Bytes,
    ) {
        let time = self.time();
        let Some(life) = self.life(me) else { return };
        let computes = matches!(header.body, DataBody::Forward(_) | DataBody::Resume { .. });
        let over = life.view.losses(plan).next();
        if let Some(over) = over.filter(|_| computes) {
            let what = format!("{me:?} computes for {}, in which {over:?} is over", plan.epoch());
            self.oracle.violate(what);
            return;
        }
        let Some(key) = WorkerKey::of(plan, me.node) else { return };
        if !life.hosts.contains_key(&key) {
            let stage = plan.stage_of(me.node).map(|(stage, assigned)| (stage, assigned.layers));
            let Some((stage, layers)) = stage else { return };
            if let Some(refusal) = life.routes.refusal(header, stage, Some(layers)) {
                self.send_to_owner(me, refusal);
            }
            return;
        }
        self.host(me, &key, |host, around| host.take((time, time), plan, header, payload, around));
    }

    /// A sequence is over that ran under this plan, or if that is not known, under any.
    pub(super) fn release(&mut self, me: Incarnation, header: &DataHeader, plan: Option<&Plan>) {
        let time = self.time();
        let (sequence, attempt) = (header.sequence, header.attempt);
        for key in self.hosts_of(me) {
            if plan.is_none_or(|plan| key.is_of(plan)) {
                self.host(me, &key, |host, around| host.release(time, sequence, attempt, around));
            }
        }
    }

    /// The workers of a node.
    pub(super) fn hosts_of(&mut self, me: Incarnation) -> Vec<WorkerKey> {
        self.life(me).map(|life| life.hosts.keys().cloned().collect()).unwrap_or_default()
    }

    fn worker(&mut self, me: Incarnation, key: &WorkerKey) -> Option<&mut SimulatedWorker> {
        self.life(me)?.hosts.get_mut(key)?.worker.as_mut()
    }

    pub(super) fn turn(&mut self, me: Incarnation, key: &WorkerKey, number: u64) {
        let disk = self.nodes.get(&me.node).map_or(Disk::Well, |node| node.disk);
        let time = self.now;
        let is_it = |worker: &&mut SimulatedWorker| worker.number == number && !worker.is_stalled;
        let Some(worker) = self.worker(me, key).filter(is_it) else {
            return;
        };
        let is_slow = time < worker.slow_until;
        let mut is_broken = false;
        for command in worker.inbox.drain(..) {
            let loads = matches!(&command.0, Command::Hold(layers)
                if layers.iter().any(|layers| !worker.worker.held().covers(*layers)));
            if loads && disk == Disk::Broken {
                is_broken = true;
            } else {
                worker.worker.take(command).unwrap();
            }
        }
        let before = worker.worker.held().clone();
        worker.is_turning = worker.worker.turn().unwrap();
        let has_loaded = *worker.worker.held() != before;
        let (is_turning, mut heard) = (worker.is_turning, worker.pipe.take());
        if is_broken {
            let reason = "the disk cannot be read".to_owned();
            heard.push((WorkerEvent::HoldFailed(reason), Bytes::new()));
        }
        let wakes_at = worker.worker.wake_at();
        let is_news = std::mem::replace(&mut worker.wakes_at, wakes_at) != wakes_at;
        if is_turning {
            let wait = match disk {
                Disk::Slow if has_loaded => self.pick(300, 1500),
                _ if is_slow => self.pick(100, 900),
                _ => self.pick(0, 6),
            };
            self.after(wait, SimEvent::Turn(me, key.clone(), number));
        }
        let time = self.time();
        if let Some(at) = wakes_at.filter(|_| is_news) {
            let wait = at.saturating_duration_since(time);
            self.after(wait, SimEvent::Turn(me, key.clone(), number));
        }
        for (event, payload) in heard {
            if let WorkerEvent::Exchange { to, header } = event {
                self.send_exchange(me, key, to, header, payload);
            } else {
                self.host(me, key, |host, around| host.hear(time, event, &payload, around));
            }
        }
    }

    /// A rank here has something for another one.
    fn send_exchange(
        &mut self,
        me: Incarnation,
        key: &WorkerKey,
        to: Rank,
        encoded: Bytes,
        payload: Bytes,
    ) {
        let header: Header = decode_message(&encoded).unwrap();
        let group = self.life(me).and_then(|life| life.routes.group(&header.group));
        let receiver = group.map(|(_, stage)| stage.ranks.get(to.index()).copied().unwrap());
        if let Some(worker) = self.worker(me, key) {
            worker.last = Some(header);
        }
        let Some(receiver) = receiver else { return };
        let payload = match (self.setup.bug, header.part) {
            (Some(Bug::SpoilSum), Part::Partial { .. }) => spoilt(&payload),
            (Some(Bug::BoastRank), Part::Whole) if header.from != Rank(0) => boast(payload),
            _ => payload,
        };
        let packet = Packet::Exchange(encoded, payload);
        if self.send(me, receiver.incarnation.node, packet).is_err() {
            self.command(me, key, Command::Over(to), Bytes::new());
        }
    }

    /// A rank on another node has something for one here.
    pub(super) fn take_exchange(
        &mut self,
        from: Incarnation,
        me: Incarnation,
        encoded: Bytes,
        payload: Bytes,
    ) {
        let header: Header = decode_message(&encoded).unwrap();
        let receiver = self.life(me).and_then(|life| life.routes.receiver(from, &header));
        let Some((own, plan, stage)) = receiver else { return };
        let key = WorkerKey::of_stage(plan, stage);
        if matches!(header.part, Part::GaveUp(culprits) if culprits.contains(own)) {
            let time = self.time();
            self.host(me, &key, |host, _| host.accuse(time));
        }
        let is_there = self.worker(me, &key).is_some();
        if !is_there && !matches!(header.part, Part::GaveUp(_)) {
            self.give_up(me, &Header { from: own, ..header });
        }
        self.command(me, &key, Command::Exchange(encoded), payload);
    }

    /// Tells a worker something, if there is one.
    fn command(&mut self, me: Incarnation, key: &WorkerKey, command: Command, payload: Bytes) {
        let (time, mut wait) = (self.now, self.pick(0, 3));
        // To a worker that has just died it is lost with everything else.
        let Some(worker) = self.worker(me, key) else { return };
        if time < worker.slow_until {
            wait *= 200;
        }
        let number = worker.number;
        worker.inbox.push_back((command, payload));
        if !std::mem::replace(&mut worker.is_turning, true) {
            self.after(wait, SimEvent::Turn(me, key.clone(), number));
        }
    }

    /// Gives every worker of a node its turn.
    pub(super) fn turn_all(&mut self, me: Incarnation) {
        for key in self.hosts_of(me) {
            if let Some(number) = self.worker(me, &key).map(|worker| worker.number) {
                self.after(MS, SimEvent::Turn(me, key, number));
            }
        }
    }

    /// One of a node's workers.
    fn any_worker(&mut self, id: NodeId) -> Option<(Incarnation, WorkerKey)> {
        let me = self.nodes.get(&id).and_then(Node::life)?;
        let mut keys = self.hosts_of(me);
        let any = self.rng.random_range(0..keys.len().max(1));
        (any < keys.len()).then(|| (me, keys.swap_remove(any)))
    }

    pub(super) fn kill_worker(&mut self, id: NodeId) {
        if let Some((me, key)) = self.any_worker(id) {
            self.end_worker(me, &key);
        }
    }

    pub(super) fn stall_worker(&mut self, id: NodeId) {
        let Some((me, key)) = self.any_worker(id) else { return };
        // One of whole layers is noticed only when it has something to do.
        if let Some(worker) = self.worker(me, &key).filter(|_| !key.ranks.is_empty()) {
            worker.is_stalled = true;
            self.has_stalled = true;
        }
    }

    pub(super) fn slow_worker(&mut self, id: NodeId) {
        let Some((me, key)) = self.any_worker(id) else { return };
        let until = self.now + self.pick(500, 3000);
        if let Some(worker) = self.worker(me, &key) {
            worker.slow_until = until;
        }
    }

    /// The worker ends, which the host hears of.
    fn end_worker(&mut self, me: Incarnation, key: &WorkerKey) {
        let hosted = self.life(me).and_then(|life| life.hosts.get_mut(key));
        let Some(worker) = hosted.and_then(|hosted| hosted.worker.take()) else { return };
        self.after(MS, SimEvent::Exited(me, key.clone(), worker.number));
        self.rank_ended(me, worker.last);
    }

    /// A worker is stopped.
    pub(super) fn end_rank(&mut self, me: Incarnation, key: &WorkerKey) {
        let last = self.worker(me, key).and_then(|worker| worker.last.take());
        self.rank_ended(me, last);
    }

    /// The worker of a rank has ended, which said this last.
    fn rank_ended(&mut self, me: Incarnation, last: Option<Header>) {
        if let Some(last) = last {
            self.give_up(me, &last);
        }
    }

    /// A rank here, which this header is of, takes no part any more.
    fn give_up(&mut self, me: Incarnation, header: &Header) {
        let group = self.life(me).and_then(|life| life.routes.group(&header.group));
        let Some(ranks) = group.map(|(_, stage)| stage.ranks.clone()) else { return };
        let part = Part::GaveUp([header.from].into_iter().collect());
        let encoded = encode_message(&Header { part, ..*header }).unwrap();
        for (rank, to) in (0..).map(Rank).zip(ranks).filter(|(rank, _)| *rank != header.from) {
            let packet = Packet::Exchange(encoded.clone(), Bytes::new());
            if self.send(me, to.incarnation.node, packet).is_err() {
                self.note(|| format!("{rank} does not hear that {} is over", header.from));
            }
        }
    }

    pub(super) fn worker_exited(&mut self, me: Incarnation, key: &WorkerKey, number: u64) {
        let time = self.time();
        if self.life(me).is_some_and(|life| life.was_last(key, number)) {
            self.host(me, key, |host, around| host.worker_ended(time, "it was killed", around));
        }
    }

    /// The host dies with its worker, and has forgotten everything; its supervisor starts another one.
    pub(super) fn lose_host(&mut self, id: NodeId) {
        let Some((me, key)) = self.any_worker(id) else { return };
        let lost = self.life(me).and_then(|life| life.hosts.remove(&key));
        if let Some(SimulatedHost { number, .. }) = lost {
            // It is heard of before what the host has said.
            self.workers(me, WorkersEvent::HostLost(key, number, "it panicked".to_owned()));
        }
    }

    pub(super) fn start_worker(&mut self, me: Incarnation, key: &WorkerKey) {
        let time = self.time();
        if self.worker(me, key).is_none() {
            self.host(me, key, |host, around| host.start(time, around));
        }
    }

    pub(super) fn send_to_owner(&mut self, me: Incarnation, header: DataHeader) {
        let owner = header.owner.node;
        drop(self.send(me, owner, Packet::Data(header, Bytes::new())));
    }
}

/// Adds one to the first number.
fn spoilt(payload: &Bytes) -> Bytes {
    let mut bytes = payload.to_vec();
    if let Some(first) = bytes.first_chunk_mut() {
        *first = (f32::from_le_bytes(*first) + 1.0).to_le_bytes();
    }
    bytes.into()
}

/// A rank that says how far it is says that it is far.
fn boast(payload: Bytes) -> Bytes {
    let Ok(said) = decode_message::<Result<Vec<Progress>, SegmentError>>(&payload) else {
        return payload;
    };
    let far = |progress: Progress| Progress { positions: progress.positions + 1000, ..progress };
    let said = said.map(|all| all.into_iter().map(far).collect::<Vec<_>>());
    encode_message(&said).unwrap()
}

/// The node around a host.
pub(super) struct Around<'a> {
    world: &'a mut World,
    me: Incarnation,
    key: &'a WorkerKey,
    number: u64,
}

impl Around<'_> {
    fn life(&self) -> Option<&Life> {
        self.world.nodes.get(&self.me.node)?.life_of(self.me)
    }
}

impl HostRuntime for Around<'_> {
    fn start_worker(&mut self, rank: Option<GroupRank>) -> Result<Option<u32>, String> {
        let pipe = Pipe::default();
        let units = rank.as_ref().and_then(GroupRank::own);
        let stage = Box::new(stage(&self.key.model, units));
        let worker = Worker::new(stage, rank.as_ref(), pipe.clone(), now);
        let life = self.world.life(self.me).ok_or("the node is gone")?;
        let number = life.next_worker(self.key);
        let (inbox, is_turning) = (VecDeque::new(), false);
        let hosted = life.hosts.get_mut(self.key).ok_or("the host is gone")?;
        let (last, wakes_at, is_stalled, slow_until) = (None, None, false, Duration::ZERO);
        hosted.worker = Some(SimulatedWorker {
            worker,
            last,
            wakes_at,
            pipe,
            inbox,
            is_turning,
            is_stalled,
            slow_until,
            number,
        });
        Ok(Some(1))
    }

    fn attempts_from(&self) -> u64 {
        u64::try_from(self.world.now.as_micros()).unwrap()
    }

    fn kill_worker(&mut self, _: &str) {
        self.world.end_worker(self.me, self.key);
    }

    fn command(&mut self, command: Command, payload: Bytes) -> bool {
        self.world.command(self.me, self.key, command, payload);
        true
    }

    fn start_after(&mut self, wait: Duration) {
        self.world.after(wait, SimEvent::StartWorker(self.me, self.key.clone()));
    }

    fn send(&mut self, to: NodeId, header: DataHeader, payload: Bytes) -> Result<(), String> {
        let payload = match &header.body {
            DataBody::Forward(_) => payload,
            _ => Bytes::new(),
        };
        self.world.send(self.me, to, Packet::Data(header, payload))
    }

    fn send_all(
        &mut self,
        to: NodeId,
        frames: Vec<(DataHeader, Bytes)>,
        failed: impl FnOnce(String) -> DataHeader + Send + 'static,
    ) {
        for (header, payload) in frames {
            if let Err(reason) = self.world.send(self.me, to, Packet::Data(header, payload)) {
                self.world.send_to_owner(self.me, failed(reason));
                return;
            }
        }
    }

    fn send_to_owner(&mut self, header: DataHeader) {
        self.world.send_to_owner(self.me, header);
    }

    fn is_dead(&self, life: Incarnation) -> bool {
        self.life().is_some_and(|own| own.view.is_dead(life))
    }

    fn knows_group(&self, ranks: &[RankAssignment]) -> bool {
        self.life().is_some_and(|life| life.routes.knows_group(ranks))
    }

    fn view(&self) -> View {
        self.life().map(|life| life.view.clone()).unwrap_or_default()
    }

    fn geometry(&self) -> Option<Geometry> {
        Some(geometry(&self.key.model))
    }

    fn changed(&mut self, report: &ShardReport) {
        let changed = WorkersEvent::Changed(self.key.clone(), self.number, report.clone());
        self.world.tell_workers(self.me, changed);
    }

    fn busy(&mut self, busy: bool) {
        let busy = WorkersEvent::Busy(self.key.clone(), self.number, busy);
        self.world.tell_workers(self.me, busy);
    }

    fn restarted(&mut self) {}

    fn look_for_files(&mut self) {}

    fn time_after(&self, wait: Duration) -> String {
        format!("{:?}", self.world.now + wait)
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
