//! What a host does around its sequences and its worker.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use planaria_config::{Incarnation, LayerRange, LayerSet, NodeId};
use planaria_engine::fake::FakeStage;
use planaria_pipeline::stage::adoption::Adoption;
use planaria_pipeline::stage::sequences::{Follows, Sequences, Taken};
use planaria_protocol::generation::GenerationError;
use planaria_protocol::pipe::{Command, Event as Heard, FRAME_CAP};
use planaria_protocol::plan::Plan;
use planaria_protocol::wire::{DataBody, DataHeader};
use planaria_transport::{Frame, decode_message};
use planaria_worker::child::Worker;

use super::node::Node;
use super::oracle::model_config;
use super::{Happening, Packet, World, now};

/// What a node holds, as its host keeps it.
pub(super) struct Host {
    pub(super) sequences: Sequences,
    pub(super) worker: Option<SimulatedWorker>,
    /// Which one it is.
    pub(super) number: u64,
    pub(super) told: Vec<LayerRange>,
    pub(super) held: LayerSet,
    pub(super) adoption: Adoption,
}

pub(super) struct SimulatedWorker {
    worker: Worker<Pipe>,
    pipe: Pipe,
    inbox: VecDeque<(Command, Bytes)>,
    is_turning: bool,
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

impl Host {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            sequences: Sequences::new(node, 1 << 20),
            worker: None,
            number: 0,
            told: Vec::new(),
            held: LayerSet::EMPTY,
            adoption: Adoption::default(),
        }
    }

    /// Bytes of KV that its worker keeps.
    pub(super) fn kv(&self) -> u64 {
        self.worker.as_ref().map_or(0, |worker| worker.worker.memory().kv)
    }
}

impl World {
    pub(super) fn take(
        &mut self,
        me: Incarnation,
        plan: &Arc<Plan>,
        header: &DataHeader,
        payload: Bytes,
    ) {
        let time = self.time();
        let Some(life) = self.life(me) else { return };
        let view = &life.view;
        let computes = matches!(header.body, DataBody::Forward(_) | DataBody::Resume { .. });
        let over = view.losses(plan).next();
        if let Some(over) = over.filter(|_| computes) {
            let what = format!("{me:?} computes for {}, in which {over:?} is over", plan.epoch());
            self.oracle.violate(what);
            return;
        }
        let Some((_, stage)) = plan.stage_of(me.node) else { return };
        if view.is_dead(header.owner) {
            return;
        }
        if !life.host.held.covers(stage.layers) {
            self.refuse(me, header, "its layers are not there");
            return;
        }
        match life.host.sequences.take(time, Arc::clone(plan), header, payload) {
            Taken::Do { commands, kept } => {
                if !life.host.adoption.goes_by(plan.epoch()) {
                    life.host.adoption.under(plan, stage.layers, 0);
                    if let Some(adopt) = life.host.adoption.tell(0) {
                        self.command(me, adopt, Bytes::new());
                    }
                }
                for (command, payload) in commands {
                    self.command(me, command, payload);
                }
                for (frame, rows) in kept {
                    let DataBody::Forward(forward) = &frame.body else { continue };
                    let Some(next) = plan.stage(forward.stage) else { continue };
                    let next = next.incarnation.node;
                    if let Err(error) = self.send(me, next, Packet::Data(frame, rows)) {
                        self.refuse(me, header, &error);
                    }
                }
            }
            Taken::Pass(next, frame) => {
                if let Err(error) = self.send(me, next, Packet::Data(frame, Bytes::new())) {
                    self.refuse(me, header, &error);
                }
            }
            Taken::Drop => {}
            Taken::Tell(body) => self.send_to_owner(me, DataHeader { body, ..header.clone() }),
            Taken::Refuse(error) => {
                let body = DataBody::Failed(error);
                self.send_to_owner(me, DataHeader { body, ..header.clone() });
            }
            Taken::Unknown(reason) => self.refuse(me, header, &reason),
        }
    }

    pub(super) fn command(&mut self, me: Incarnation, command: Command, payload: Bytes) {
        let wait = self.pick(0, 3);
        let Some(life) = self.life(me) else { return };
        let number = life.host.number;
        let Some(worker) = &mut life.host.worker else { return };
        worker.inbox.push_back((command, payload));
        if !std::mem::replace(&mut worker.is_turning, true) {
            self.after(wait, Happening::Turn(me, number));
        }
    }

    pub(super) fn turn(&mut self, me: Incarnation, number: u64) {
        let wait = self.pick(0, 6);
        let Some(life) = self.life(me) else { return };
        let Some(worker) = life.host.worker.as_mut().filter(|_| life.host.number == number) else {
            return;
        };
        for command in worker.inbox.drain(..) {
            worker.worker.take(command).unwrap();
        }
        worker.is_turning = worker.worker.turn().unwrap();
        if worker.is_turning {
            self.after(wait, Happening::Turn(me, number));
        }
        let Some(life) = self.life(me) else { return };
        let heard = life.host.worker.as_ref().map(|worker| worker.pipe.take());
        for (event, payload) in heard.unwrap_or_default() {
            self.hear(me, event, &payload);
        }
    }

    pub(super) fn hear(&mut self, me: Incarnation, event: Heard, payload: &Bytes) {
        let time = self.time();
        let Some(life) = self.life(me) else { return };
        match event {
            Heard::Holds { layers, .. } => {
                life.host.held = layers.within(&life.host.told.iter().copied().collect());
                self.see_itself(me);
                self.answer(me);
            }
            Heard::Recalled { sequence, attempt, progress } => {
                if let Some(header) = life.host.sequences.recalled(sequence, attempt, progress) {
                    self.send_to_owner(me, header);
                }
            }
            Heard::Computed(computed) => {
                let follows = life.host.sequences.computed(time, computed, payload);
                let Some(Follows { of, frames, .. }) = follows else { return };
                for (to, frame) in frames {
                    let rows = match &frame.body {
                        DataBody::Forward(_) => payload.clone(),
                        _ => Bytes::new(),
                    };
                    if let Err(error) = self.send(me, to, Packet::Data(frame, rows)) {
                        self.refuse(me, &of, &error);
                    }
                }
            }
            Heard::Loading { .. } | Heard::Status(_) => {}
            other => self.oracle.violate(format!("a worker says {other:?}")),
        }
    }

    pub(super) fn hold(&mut self, me: Incarnation) {
        let Some(life) = self.life(me) else { return };
        let mut layers = life.wanted();
        let used = life.host.sequences.layers().into_iter();
        let used: Vec<LayerRange> = used.filter(|used| !layers.contains(used)).collect();
        layers.extend(used);
        if life.host.worker.is_some() && layers != life.host.told {
            life.host.told.clone_from(&layers);
            life.host.held = life.host.held.within(&layers.iter().copied().collect());
            self.command(me, Command::Hold(layers), Bytes::new());
        }
    }

    pub(super) fn kill_worker(&mut self, id: NodeId) {
        let Some(me) = self.nodes.get(&id).and_then(Node::life) else { return };
        let Some(life) = self.life(me).filter(|life| life.host.worker.is_some()) else { return };
        for header in life.host.sequences.interrupt_all() {
            self.fail(me, &header, "its worker was killed");
        }
        self.lose_worker(me);
    }

    pub(super) fn lose_host(&mut self, id: NodeId) {
        let Some(me) = self.nodes.get(&id).and_then(Node::life) else { return };
        let Some(life) = self.life(me).filter(|life| life.host.worker.is_some()) else { return };
        life.host =
            Host { number: life.host.number, worker: life.host.worker.take(), ..Host::new(id) };
        self.lose_worker(me);
    }

    fn lose_worker(&mut self, me: Incarnation) {
        let wait = self.pick(20, 150);
        let Some(life) = self.life(me) else { return };
        life.host.worker = None;
        life.host.held = LayerSet::EMPTY;
        life.host.told.clear();
        life.host.adoption.forget();
        let number = life.host.number + 1;
        self.see_itself(me);
        self.after(wait, Happening::StartWorker(me, number));
    }

    pub(super) fn start_worker(&mut self, me: Incarnation, number: u64) {
        let Some(life) = self.life(me).filter(|life| life.host.worker.is_none()) else { return };
        let pipe = Pipe::default();
        let stage = Box::new(FakeStage::open(&model_config()));
        let worker = Worker::new(stage, pipe.clone(), now);
        let (inbox, is_turning) = (VecDeque::new(), false);
        life.host.worker = Some(SimulatedWorker { worker, pipe, inbox, is_turning });
        life.host.number = number;
        self.hold(me);
        self.see_itself(me);
    }

    pub(super) fn release(&mut self, me: Incarnation, header: &DataHeader) {
        let (sequence, attempt) = (header.sequence, header.attempt);
        let Some(life) = self.life(me) else { return };
        if life.host.sequences.release(sequence, attempt) {
            self.command(me, Command::Release(sequence), Bytes::new());
            self.hold(me);
        }
        self.grant(me);
    }

    /// Lets those begin that waited, where places are free.
    pub(super) fn grant(&mut self, me: Incarnation) {
        let time = self.time();
        let Some(life) = self.life(me) else { return };
        if life.host.worker.is_none() || life.host.held.is_empty() {
            return;
        }
        for header in life.host.sequences.grants(time) {
            self.send_to_owner(me, header);
        }
    }

    pub(super) fn refuse(&mut self, me: Incarnation, header: &DataHeader, reason: &str) {
        let (node, layers, reason) = (me.node.short(), String::new(), reason.to_owned());
        let body = DataBody::Failed(GenerationError::NotReady { node, layers, reason });
        self.send_to_owner(me, DataHeader { body, ..header.clone() });
    }

    pub(super) fn fail(&mut self, me: Incarnation, header: &DataHeader, reason: &str) {
        let (node, layers, reason) = (me.node.short(), String::new(), reason.to_owned());
        let stage = self.life(me).and_then(|life| life.host.sequences.stage_of(header.sequence));
        let stage = stage.map(|(stage, _)| stage);
        let body = DataBody::Failed(GenerationError::StageFailed { node, layers, reason, stage });
        self.send_to_owner(me, DataHeader { body, ..header.clone() });
    }

    pub(super) fn send_to_owner(&mut self, me: Incarnation, header: DataHeader) {
        let owner = header.owner.node;
        drop(self.send(me, owner, Packet::Data(header, Bytes::new())));
    }
}
