//! Actor: one shard of this node, computed by a worker process that it keeps alive.
//!
//! Parent: workers (one-for-one). Children: the process. The process may die at any time: its
//! sequences are told, and it is started again in place with backoff; past its intensity the
//! shard is given up, and the scheduler plans without it. When the actor dies, so does the
//! process.

mod sequences;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{Epoch, SequenceId};
use planaria_engine::stage::MemoryUse;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::process::{Heard, Worker};
use super::protocol::{Command, Computed, Event, Status};
use crate::cluster_view::ShardState;
use crate::context::Context;
use crate::generation::GenerationError;
use crate::membership::View;
use crate::plan::Plan;
use crate::router::ShardKey;
use crate::supervision::{Restarts, Verdict, row};
use crate::wire::{DataBody, DataHeader, ShardReport, ShardWork};
use sequences::{Sequences, Taken};

/// How often the host looks whether the worker is stuck.
const TICK: Duration = Duration::from_millis(250);

/// Speaks to a host.
#[derive(Debug, Clone)]
pub struct WorkerHandle(ActorRef<HostMessage>);

impl WorkerHandle {
    pub(super) const fn new(host: ActorRef<HostMessage>) -> Self {
        Self(host)
    }

    /// Takes a frame for this shard, sent under `plan`.
    pub fn take(&self, plan: Arc<Plan>, header: DataHeader, payload: Bytes) {
        // A host that is gone has told its sequences.
        drop(self.0.cast(HostMessage::Frame(plan, header, payload)));
    }

    pub(super) fn members(&self, view: View) {
        drop(self.0.cast(HostMessage::Members(view)));
    }
}

/// What a host is told.
#[derive(Debug)]
pub enum HostMessage {
    /// A frame for this shard.
    Frame(Arc<Plan>, DataHeader, Bytes),
    /// The cluster changed.
    Members(View),
    /// Something came from the worker of this life.
    Heard(u64, HeardFromWorker),
    /// Start the worker again.
    Start,
    /// Time passed.
    Tick,
}

/// Something came from the worker.
#[derive(Debug)]
pub struct HeardFromWorker(Heard);

/// What a host starts from.
#[derive(Debug)]
pub struct HostArgs {
    /// The node.
    pub context: Arc<Context>,
    /// The shard.
    pub key: ShardKey,
}

/// The actor.
#[derive(Debug)]
pub struct HostActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    context: Arc<Context>,
    key: ShardKey,
    /// How often the worker was started; tells the words of a dead worker from a living one's.
    life: u64,
    worker: Option<Worker>,
    started: Instant,
    restarts: Restarts,
    sequences: Sequences,
    /// The plan that the worker was told of last.
    adopted: Option<Epoch>,
    report: ShardReport,
    /// What the supervisor knows of the report.
    told: ShardReport,
}

impl Actor for HostActor {
    type Msg = HostMessage;
    type State = State;
    type Arguments = HostArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<HostMessage>,
        HostArgs { context, key }: HostArgs,
    ) -> Result<State, ActorProcessingErr> {
        let report = ShardReport::starting(&key.model, key.layers);
        let mut state = State {
            sequences: Sequences::default(),
            adopted: None,
            told: report.clone(),
            restarts: Restarts::new(row("worker").intensity),
            life: 0,
            worker: None,
            started: Instant::now(),
            context,
            key,
            report,
        };
        state.start(&myself);
        myself.send_interval(TICK, || HostMessage::Tick);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<HostMessage>,
        message: HostMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HostMessage::Frame(plan, header, payload) => state.take(&plan, &header, payload),
            HostMessage::Members(view) => {
                for (header, lost) in state.sequences.orphans(&view) {
                    // The owner may still be linked to whom this node has lost.
                    state.refuse(&header, &format!("it has lost {}", view.name(lost)));
                    state.release(header.sequence, header.attempt);
                }
            }
            HostMessage::Heard(life, HeardFromWorker(heard)) if life == state.life => {
                state.hear(&myself, heard);
            }
            HostMessage::Heard(..) => {}
            HostMessage::Start => state.start(&myself),
            HostMessage::Tick => {
                state.look_for_stuck_worker();
                state.report.work.queue = state.sequences.under_way();
                state.tell_changes();
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<HostMessage>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.fail_all("its shard was given up");
        Ok(())
    }
}

impl State {
    fn start(&mut self, myself: &ActorRef<HostMessage>) {
        self.life += 1;
        self.sequences.forget_history();
        self.started = Instant::now();
        let (inbox, life) = (myself.clone(), self.life);
        let hear = move |heard| {
            // Without an inbox the host is gone, and this worker is being killed.
            drop(inbox.cast(HostMessage::Heard(life, HeardFromWorker(heard))));
        };
        match Worker::start(hear) {
            Ok(worker) => {
                self.report.pid = worker.pid();
                tracing::info!(model = %self.key.model, layers = %self.key.layers,
                    pid = worker.pid(), "worker started");
                let model_dir = self.context.model_dir(&self.key.model);
                worker.send(Command::Load { model_dir, layers: self.key.layers }, Bytes::new());
                self.worker = Some(worker);
                self.tell_state(self.report.state, String::new());
            }
            Err(error) => self.worker_ended(myself, &format!("it could not be started: {error}")),
        }
    }

    fn take(&mut self, plan: &Arc<Plan>, header: &DataHeader, payload: Bytes) {
        if let DataBody::Release { .. } = header.body {
            self.release(header.sequence, header.attempt);
            return;
        }
        if self.report.state != ShardState::Ready {
            let reason = match self.report.state {
                ShardState::Loading => "its layers are still being loaded",
                _ => "its worker is being restarted",
            };
            self.refuse(header, reason);
            return;
        }
        let was_idle = self.sequences.is_empty();
        match self.sequences.take(Instant::now(), Arc::clone(plan), header) {
            Taken::Compute { anew, command } => {
                if self.adopted != Some(plan.epoch()) {
                    self.adopted = Some(plan.epoch());
                    let adopt = self.adopt(plan);
                    self.send(adopt, Bytes::new());
                }
                if anew {
                    self.send(Command::Release(header.sequence), Bytes::new());
                }
                self.send(Command::Compute(*command), payload);
            }
            Taken::Drop => {}
            Taken::Refuse(error) => self.tell_owner(header, DataBody::Failed(error)),
            Taken::Unknown(reason) => self.refuse(header, &reason),
        }
        if was_idle {
            self.tell_busy();
        }
    }

    /// What the worker needs to know of a plan.
    fn adopt(&mut self, plan: &Plan) -> Command {
        let (context, sequences) = (plan.parts().context, plan.parts().max_sequences);
        let mut kv_bytes = 0;
        if let Some(held) = self.context.inventory.borrow().get(&self.key.model) {
            let tokens = u64::from(context) * u64::from(sequences);
            kv_bytes = held.geometry.kv_bytes(self.key.layers, tokens);
            self.report.work.predicted_bytes =
                held.geometry.peak_bytes(self.key.layers, context, sequences);
        }
        let stages = u16::try_from(plan.stages().len()).unwrap_or(u16::MAX);
        Command::Adopt { stages, kv_bytes }
    }

    fn send(&mut self, command: Command, payload: Bytes) {
        if !self.worker.as_ref().is_some_and(|worker| worker.send(command, payload)) {
            self.kill("it does not take commands any more");
        }
    }

    fn hear(&mut self, myself: &ActorRef<HostMessage>, heard: Heard) {
        match heard {
            Heard::Event(event, payload) => self.on_event(event, &payload),
            Heard::Unreadable(error) => self.kill(&format!("its words make no sense: {error}")),
            Heard::Exited(status) => {
                let how = match status {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                };
                self.worker_ended(myself, &how);
            }
        }
    }

    fn on_event(&mut self, event: Event, payload: &Bytes) {
        match event {
            Event::Loading { done, total } => {
                tracing::debug!(model = %self.key.model, layers = %self.key.layers, done, total,
                    "loading");
            }
            Event::Loaded { memory, .. } => {
                let took = self.started.elapsed();
                tracing::info!(model = %self.key.model, layers = %self.key.layers, ?took,
                    bytes = memory.weights, "layers loaded");
                self.report.memory_bytes = memory.weights + memory.kv;
                self.tell_state(ShardState::Ready, String::new());
            }
            // Nobody asked it to measure.
            Event::Probed(_) => {}
            Event::LoadFailed(reason) => self.tell_state(ShardState::Failed, reason),
            Event::Status(status) => self.status(status),
            Event::Failed(reason) => {
                tracing::error!(model = %self.key.model, layers = %self.key.layers, reason,
                    "the backend failed");
                self.fail_all(&reason);
            }
            Event::Computed(computed) => self.computed(computed, payload),
        }
    }

    fn computed(&mut self, computed: Computed, payload: &Bytes) {
        let me = self.context.me.node;
        let Some((header, frames)) = self.sequences.computed(Instant::now(), me, computed) else {
            return;
        };
        for (to, frame) in frames {
            if let DataBody::Failed(error) = &frame.body {
                tracing::warn!(sequence = %frame.sequence, epoch = %frame.epoch, %error,
                    "a segment was rejected");
            }
            if let Err(error) = self.context.router.send(to, frame, payload.clone()) {
                self.fail(&header, &format!("the next stage cannot be reached: {error}"));
            }
        }
    }

    fn worker_ended(&mut self, myself: &ActorRef<HostMessage>, how: &str) {
        self.worker = None;
        self.adopted = None;
        self.report.pid = None;
        self.report.memory_bytes = 0;
        tracing::error!(model = %self.key.model, layers = %self.key.layers, how,
            sequences = self.sequences.len(), "worker ended");
        self.fail_all(&format!("its worker process ended: {how}"));
        if self.report.state == ShardState::Failed {
            // It said why; starting it again would only make it say so again.
            self.tell_state(ShardState::Failed, self.report.reason.clone());
            return;
        }
        match self.restarts.on_death(Instant::now()) {
            Verdict::RestartAfter(wait) => {
                self.context.restarts.count(row("worker"));
                self.tell_state(ShardState::Restarting, how.to_owned());
                myself.send_after(wait, || HostMessage::Start);
            }
            Verdict::GiveUp => {
                self.tell_state(ShardState::Failed, format!("its worker keeps dying: {how}"));
            }
        }
    }

    fn look_for_stuck_worker(&mut self) {
        let settings = &self.context.settings;
        let now = Instant::now();
        if self.report.state == ShardState::Ready {
            let waited = self.sequences.longest_wait(now);
            if waited > self.sequences.patience(settings.step_timeout) {
                self.kill(&format!("no step came back for {waited:?}"));
            }
        } else if self.worker.is_some() && self.started.elapsed() > settings.load_timeout {
            self.report.state = ShardState::Failed;
            self.report.reason = "its layers were not loaded in time".to_owned();
            self.kill("loading took too long");
        }
    }

    fn kill(&mut self, why: &str) {
        tracing::error!(model = %self.key.model, layers = %self.key.layers, why, "killing worker");
        if let Some(worker) = &mut self.worker {
            worker.kill();
        }
    }

    fn release(&mut self, sequence: SequenceId, attempt: u16) {
        if self.sequences.release(sequence, attempt) {
            if self.worker.is_some() {
                self.send(Command::Release(sequence), Bytes::new());
            }
            if self.sequences.is_empty() {
                self.tell_busy();
            }
        }
    }

    fn fail_all(&mut self, reason: &str) {
        for header in self.sequences.drain() {
            self.fail(&header, reason);
        }
        self.tell_busy();
    }

    /// Cannot compute for now.
    fn refuse(&self, header: &DataHeader, reason: &str) {
        let (node, layers, reason) = self.words(reason);
        let error = GenerationError::NotReady { node, layers, reason };
        self.tell_owner(header, DataBody::Failed(error));
    }

    fn fail(&self, header: &DataHeader, reason: &str) {
        let (node, layers, reason) = self.words(reason);
        let error = GenerationError::StageFailed { node, layers, reason };
        self.tell_owner(header, DataBody::Failed(error));
    }

    /// Where something goes wrong: this node, its layers, and why.
    fn words(&self, reason: &str) -> (String, String, String) {
        let node = self.context.settings.name.clone();
        (node, self.key.layers.to_string(), reason.to_owned())
    }

    fn tell_owner(&self, header: &DataHeader, body: DataBody) {
        self.context.router.send_to_owner(DataHeader {
            epoch: header.epoch,
            sequence: header.sequence,
            owner: header.owner,
            attempt: header.attempt,
            position: header.position,
            body,
        });
    }

    fn tell_state(&mut self, state: ShardState, reason: String) {
        self.report.state = state;
        self.report.reason = reason;
        self.told = self.report.clone();
        self.context.handles.workers.changed(self.key.clone(), self.report.clone());
    }

    fn status(&mut self, status: Status) {
        let MemoryUse { weights, kv, prefixes, .. } = status.memory;
        self.report.memory_bytes = weights + kv + prefixes;
        self.report.work = ShardWork {
            predicted_bytes: self.report.work.predicted_bytes,
            peak_bytes: status.peak_bytes,
            busy_micros: status.busy_micros,
            steps: status.steps,
            prompt_tokens: status.prompt_positions,
            reused_tokens: status.reused_positions,
            step_micros: status.step_micros,
            queue: self.report.work.queue,
        };
    }

    /// What changes often is told now and then.
    fn tell_changes(&mut self) {
        if self.report != self.told {
            self.tell_state(self.report.state, self.report.reason.clone());
        }
    }

    fn tell_busy(&self) {
        self.context.handles.workers.busy(self.key.clone(), !self.sequences.is_empty());
    }
}
