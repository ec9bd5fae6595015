//! The worker of a node, and the node around its host.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use planaria_config::{Incarnation, LayerRange, NodeId};
use planaria_control::membership::View;
use planaria_engine::fake::FakeStage;
use planaria_engine::geometry::Geometry;
use planaria_pipeline::stage::host::{Host, HostRuntime};
use planaria_pipeline::stage::sequences::StepEffects;
use planaria_protocol::pipe::{Command, Event as Heard, FRAME_CAP};
use planaria_protocol::plan::Plan;
use planaria_protocol::state::ShardState;
use planaria_protocol::wire::{DataBody, DataHeader, ShardReport};
use planaria_transport::{Frame, decode_message};
use planaria_worker::child::Worker;

use super::node::{Life, Node, geometry, model, new_host};
use super::oracle::model_config;
use super::{MS, Packet, SimEvent, World, now};

pub(super) struct SimulatedWorker {
    worker: Worker<Pipe>,
    pipe: Pipe,
    inbox: VecDeque<(Command, Bytes)>,
    is_turning: bool,
    /// Which one of its node's life it is.
    pub(super) number: u64,
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
    fn take(&self) -> Vec<(Heard, Bytes)> {
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

impl SimulatedWorker {
    /// Bytes of KV that it keeps.
    pub(super) fn kv(&self) -> u64 {
        self.worker.memory().kv
    }
}

impl World {
    /// Has the host of a node take something in, if it has one.
    pub(super) fn host(&mut self, me: Incarnation, act: impl FnOnce(&mut Host, &mut Around<'_>)) {
        let Some(mut host) = self.life(me).and_then(|life| life.host.take()) else { return };
        act(&mut host, &mut Around { world: self, me });
        if let Some(life) = self.life(me) {
            life.host = Some(host);
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
        if life.host.is_none() {
            let stage = plan.stage_of(me.node).map(|(stage, assigned)| (stage, assigned.layers));
            let Some((stage, layers)) = stage else { return };
            if let Some(refusal) = life.routes.refusal(header, stage, Some(layers)) {
                self.send_to_owner(me, refusal);
            }
            return;
        }
        self.host(me, |host, around| host.take((time, time), plan, header, payload, around));
    }

    pub(super) fn release(&mut self, me: Incarnation, header: &DataHeader) {
        let time = self.time();
        let (sequence, attempt) = (header.sequence, header.attempt);
        self.host(me, |host, around| host.release(time, sequence, attempt, around));
    }

    /// Has the host hold what plans want of this node.
    pub(super) fn hold(&mut self, me: Incarnation) {
        let time = self.time();
        let Some(life) = self.life(me) else { return };
        let wanted = life.wanted();
        if life.host.is_some() && wanted != life.wants {
            life.wants.clone_from(&wanted);
            self.host(me, |host, around| host.want(time, wanted, around));
        }
    }

    pub(super) fn turn(&mut self, me: Incarnation, number: u64) {
        let disk = self.nodes.get(&me.node).map_or(Disk::Well, |node| node.disk);
        let Some(life) = self.life(me) else { return };
        let Some(worker) = life.worker.as_mut().filter(|worker| worker.number == number) else {
            return;
        };
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
            heard.push((Heard::HoldFailed(reason), Bytes::new()));
        }
        if is_turning {
            let wait = match disk {
                Disk::Slow if has_loaded => self.pick(300, 1500),
                _ => self.pick(0, 6),
            };
            self.after(wait, SimEvent::Turn(me, number));
        }
        let time = self.time();
        for (event, payload) in heard {
            self.host(me, |host, around| host.hear(time, event, &payload, around));
        }
    }

    pub(super) fn kill_worker(&mut self, id: NodeId) {
        let Some(me) = self.nodes.get(&id).and_then(Node::life) else { return };
        self.end_worker(me);
    }

    /// The worker ends, which the host hears of.
    fn end_worker(&mut self, me: Incarnation) {
        let Some(worker) = self.life(me).and_then(|life| life.worker.take()) else { return };
        self.after(MS, SimEvent::Exited(me, worker.number));
    }

    pub(super) fn worker_exited(&mut self, me: Incarnation, number: u64) {
        let time = self.time();
        if self.life(me).is_some_and(|life| life.workers == number) {
            self.host(me, |host, around| host.worker_ended(time, "it was killed", around));
        }
    }

    /// The host dies with its worker, and has forgotten everything; its supervisor starts another one.
    pub(super) fn lose_host(&mut self, id: NodeId) {
        let wait = self.pick(20, 150);
        let Some(me) = self.nodes.get(&id).and_then(Node::life) else { return };
        let Some(life) = self.life(me) else { return };
        (life.host, life.worker) = (None, None);
        life.shard =
            ShardReport { state: ShardState::Restarting, ..ShardReport::starting(&model()) };
        self.after(Duration::ZERO, SimEvent::Changed(me));
        self.after(wait, SimEvent::StartHost(me));
    }

    pub(super) fn start_host(&mut self, me: Incarnation) {
        let time = self.time();
        let Some(life) = self.life(me).filter(|life| life.host.is_none()) else { return };
        life.wants = life.wanted();
        life.host = Some(new_host(time, me, life.wants.clone()));
        self.host(me, |host, around| host.start(time, around));
    }

    pub(super) fn start_worker(&mut self, me: Incarnation) {
        let time = self.time();
        if self.life(me).is_some_and(|life| life.worker.is_none()) {
            self.host(me, |host, around| host.start(time, around));
        }
    }

    pub(super) fn send_to_owner(&mut self, me: Incarnation, header: DataHeader) {
        let owner = header.owner.node;
        drop(self.send(me, owner, Packet::Data(header, Bytes::new())));
    }
}

/// The node around a host.
pub(super) struct Around<'a> {
    world: &'a mut World,
    me: Incarnation,
}

impl Around<'_> {
    fn life(&self) -> Option<&Life> {
        self.world.nodes.get(&self.me.node)?.life_of(self.me)
    }
}

impl HostRuntime for Around<'_> {
    fn start_worker(&mut self) -> Result<Option<u32>, String> {
        let pipe = Pipe::default();
        let stage = Box::new(FakeStage::open(&model_config()));
        let worker = Worker::new(stage, pipe.clone(), now);
        let life = self.world.life(self.me).ok_or("the node is gone")?;
        life.workers += 1;
        let (number, inbox, is_turning) = (life.workers, VecDeque::new(), false);
        life.worker = Some(SimulatedWorker { worker, pipe, inbox, is_turning, number });
        Ok(Some(1))
    }

    fn kill_worker(&mut self, _: &str) {
        self.world.end_worker(self.me);
    }

    fn command(&mut self, command: Command, payload: Bytes) -> bool {
        let wait = self.world.pick(0, 3);
        // To a worker that has just died it is lost with everything else.
        let Some(life) = self.world.life(self.me) else { return true };
        let Some(worker) = &mut life.worker else { return true };
        let number = worker.number;
        worker.inbox.push_back((command, payload));
        if !std::mem::replace(&mut worker.is_turning, true) {
            self.world.after(wait, SimEvent::Turn(self.me, number));
        }
        true
    }

    fn start_after(&mut self, wait: Duration) {
        self.world.after(wait, SimEvent::StartWorker(self.me));
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

    fn view(&self) -> View {
        self.life().map(|life| life.view.clone()).unwrap_or_default()
    }

    fn geometry(&self) -> Option<Geometry> {
        Some(geometry())
    }

    fn changed(&mut self, report: &ShardReport) {
        if let Some(life) = self.world.life(self.me) {
            life.shard.clone_from(report);
        }
        self.world.after(Duration::ZERO, SimEvent::Changed(self.me));
    }

    fn busy(&mut self, _: bool) {}

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
