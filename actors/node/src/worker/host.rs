//! Actor: what this node holds of one model, computed by a worker process that it keeps alive.
//!
//! Parent: workers (one-for-one). Children: the process. The process may die at any time: the owners
//! of its sequences are told, and it is started again in place with backoff; past its intensity, or when
//! layers cannot be loaded, they are given up, and the scheduler plans without them. What was given up is
//! tried again after a growing wait, and at once when somebody asks. When the actor dies, so does the
//! process.

mod spans;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use planaria_config::{LayerRange, LayerSet, NodeId, SequenceId, Settings};
use planaria_control::membership::View;
use planaria_control::supervision::{ActorKind, Restarts, Retries, Tally, Verdict};
use planaria_engine::processor::Processor;
use planaria_engine::stage::MemoryUse;
use planaria_pipeline::stage::adoption::Adoption;
use planaria_pipeline::stage::sequences::{Orphan, Sequences, Taken};
use planaria_protocol::generation::GenerationError;
use planaria_protocol::pipe::{Command, Computed, Event, Status};
use planaria_protocol::plan::{Plan, WorkerKey};
use planaria_protocol::state::ShardState;
use planaria_protocol::wire::{DataBody, DataHeader, ShardReport, ShardWork};
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use planaria_telemetry::wall_clock::time_of_day_after;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use super::pinned::PinnedFiles;
use super::process::{self, Heard, Worker};
use crate::inventory::{Inventory, InventoryHandle};
use crate::router::Router;
use crate::watchdog::Watch;
use crate::worker::WorkersHandle;

/// How often the host looks whether the worker is stuck.
const TICK: Duration = Duration::from_millis(250);

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The node.
    pub me: NodeId,
    /// Its settings.
    pub settings: Arc<Settings>,
    /// How its workers compute on a processor.
    pub processor: Processor,
    /// The models on its disk.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// The members.
    pub view: watch::Receiver<View>,
    /// Sends frames on.
    pub router: Arc<Router>,
    /// How often its parts were started again.
    pub restarts: Arc<Tally>,
    /// Counts steps.
    pub metrics: Arc<Metrics>,
    /// Where spans go.
    pub traces: Traces,
    /// Supervises the host.
    pub workers: WorkersHandle,
    /// Looks for files that are not there.
    pub inventory_actor: InventoryHandle,
}

/// Speaks to a host.
#[derive(Debug, Clone)]
pub struct WorkerHandle(ActorRef<HostMessage>);

impl WorkerHandle {
    /// Speaks to this host.
    #[must_use]
    pub const fn new(host: ActorRef<HostMessage>) -> Self {
        Self(host)
    }

    /// Takes a frame for these layers, sent under `plan`.
    pub fn take(&self, plan: Arc<Plan>, header: DataHeader, payload: Bytes) {
        // A host that is gone has told its sequences.
        drop(self.0.cast(HostMessage::Frame(Instant::now(), plan, header, payload)));
    }

    /// Forgets a sequence up to and with the attempt of this frame, if it is known.
    pub fn release(&self, header: &DataHeader) {
        drop(self.0.cast(HostMessage::Release(header.sequence, header.attempt)));
    }

    /// Holds these layers from now on, those first that are needed first, and besides them only what
    /// open sequences need.
    pub fn hold(&self, layers: Vec<LayerRange>) {
        drop(self.0.cast(HostMessage::Hold(layers)));
    }

    /// What was given up is worth another try.
    pub fn try_again(&self) {
        drop(self.0.cast(HostMessage::TryAgain));
    }

    /// The cluster changed.
    pub fn members(&self, view: View) {
        drop(self.0.cast(HostMessage::Members(view)));
    }
}

/// What a host is told.
#[derive(Debug)]
pub enum HostMessage {
    /// Hold these layers.
    Hold(Vec<LayerRange>),
    /// A frame for these layers, and when it came.
    Frame(Instant, Arc<Plan>, DataHeader, Bytes),
    /// Forget a sequence up to and with this attempt.
    Release(SequenceId, u16),
    /// The cluster changed.
    Members(View),
    /// Something came from the worker of this life.
    Heard(u64, HeardFromWorker),
    /// Start the worker again.
    Start,
    /// What was given up is worth another try.
    TryAgain,
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
    pub deps: Deps,
    /// The model.
    pub key: WorkerKey,
    /// The layers that are to be held at first, those first that are needed first.
    pub layers: Vec<LayerRange>,
    /// The files that they are loaded from, in all lives of the worker.
    pub files: PinnedFiles,
}

/// The actor.
#[derive(Debug)]
pub struct HostActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    key: WorkerKey,
    files: PinnedFiles,
    /// The layers that are wanted, those first that are needed first.
    wanted: Vec<LayerRange>,
    /// What the worker was told to hold.
    told_to_hold: Vec<LayerRange>,
    /// How often the worker was started; tells the words of a dead worker from a living one's.
    life: u64,
    worker: Option<Worker>,
    started: Instant,
    restarts: Restarts,
    sequences: Sequences,
    /// The plan that the worker goes by.
    adoption: Adoption,
    /// What the supervisor knows of whether there are sequences.
    told_busy: bool,
    /// Whether the worker is not to be started again before it is time to.
    gone: bool,
    /// When what was given up is tried again.
    retries: Retries,
    retry_at: Option<Instant>,
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
        HostArgs { deps, key, layers, files }: HostArgs,
    ) -> Result<State, ActorProcessingErr> {
        let watch = Watch::new(ActorKind::Worker);
        let _handling = watch.starting();
        let report = ShardReport::starting(&key.model);
        let log_bytes = usize::try_from(deps.settings.boundary_logs.0).unwrap_or(usize::MAX);
        let mut state = State {
            sequences: Sequences::new(deps.me, log_bytes),
            wanted: layers,
            told_to_hold: Vec::new(),
            adoption: Adoption::default(),
            told_busy: false,
            gone: false,
            retries: Retries::default(),
            retry_at: None,
            told: report.clone(),
            restarts: Restarts::new(ActorKind::Worker.row().intensity),
            life: 0,
            worker: None,
            started: Instant::now(),
            watch,
            deps,
            key,
            files,
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
        let _handling = state.watch.handling();
        match message {
            HostMessage::Frame(came, plan, header, payload) => {
                state.take(came, &plan, &header, payload);
            }
            HostMessage::Release(sequence, attempt) => state.release(sequence, attempt),
            HostMessage::Hold(layers) => {
                state.wanted = layers;
                // Files may have changed since it was given up.
                state.try_again(&myself);
                state.hold();
            }
            HostMessage::Members(view) => {
                for orphan in state.sequences.orphans(&view) {
                    let Orphan { header, lost, is_over } = orphan;
                    // The owner may still be linked to whom this node has lost.
                    state.refuse(&header, &format!("it has lost {}", view.name(lost)));
                    if is_over {
                        state.release(header.sequence, header.attempt);
                    }
                }
            }
            HostMessage::Heard(life, HeardFromWorker(heard)) if life == state.life => {
                state.hear(&myself, heard);
            }
            HostMessage::Heard(..) => {}
            HostMessage::Start => state.start(&myself),
            HostMessage::TryAgain => state.try_again(&myself),
            HostMessage::Tick => {
                if state.retry_at.is_some_and(|at| at <= Instant::now()) {
                    state.try_again(&myself);
                }
                state.look_for_stuck_worker();
                state.forget_given_up();
                state.hold();
                state.report.work.queue = state.sequences.under_way();
                state.tell_changes();
            }
        }
        state.grant();
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<HostMessage>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.fail_all("its shard was given up");
        state.dismiss("its shard was given up");
        state.deps.metrics.kv_cache_usage(state.key.model.as_str(), None);
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
        match Worker::start(&self.deps.settings, self.deps.processor, hear) {
            Ok(worker) => {
                self.report.pid = worker.pid();
                tracing::info!(model = %self.key.model, pid = worker.pid(), "worker started");
                let model_dir = self.deps.settings.models_dir.join(self.key.model.as_str());
                // The same bytes may lie in other files by now.
                self.files.follow(&self.deps.inventory.borrow());
                let files = Box::new(self.files.of(self.key.digest));
                worker.send(Command::Open(model_dir, files), Bytes::new());
                self.worker = Some(worker);
                self.told_to_hold.clear();
                self.hold();
                self.tell_state(self.report.state, String::new());
            }
            Err(error) => self.worker_ended(myself, &format!("it could not be started: {error}")),
        }
    }

    /// Tells the worker what to hold, if that is something else than before: what is wanted, and what
    /// open sequences pass through.
    fn hold(&mut self) {
        let mut layers = self.wanted.clone();
        layers.extend(self.sequences.layers().iter().filter(|used| !self.wanted.contains(used)));
        if layers == self.told_to_hold || self.worker.is_none() {
            return;
        }
        let told: LayerSet = layers.iter().copied().collect();
        // What is to go cannot be counted on from here on.
        self.report.held = self.report.held.within(&told);
        if self.report.held == told {
            self.report.state = ShardState::Ready;
        } else if !told.without(&self.report.held).is_empty() {
            if self.report.state != ShardState::Restarting {
                self.report.state = ShardState::Loading;
                self.report.reason.clear();
            }
            self.started = Instant::now();
        }
        self.told_to_hold.clone_from(&layers);
        self.send(Command::Hold(layers), Bytes::new());
        self.tell_changes();
    }

    fn take(&mut self, came: Instant, plan: &Arc<Plan>, header: &DataHeader, payload: Bytes) {
        let Some((_, stage)) = plan.stage_of(self.deps.me) else {
            return;
        };
        if self.deps.view.borrow().is_dead(header.owner) {
            // Nobody would ever release it.
            tracing::debug!(sequence = %header.sequence, owner = ?header.owner, "dropped a ghost's");
            return;
        }
        if !self.report.held.covers(stage.layers) {
            let reason = match self.report.state {
                ShardState::Loading | ShardState::Ready => "its layers are still being loaded",
                _ => "its worker is being restarted",
            };
            self.refuse(header, reason);
            return;
        }
        match self.sequences.take(came, Arc::clone(plan), header, payload) {
            Taken::Do { commands, kept } => {
                if !self.adoption.goes_by(plan.epoch()) {
                    self.adoption.under(plan, stage.layers, self.kv_bytes(plan, stage.layers));
                    self.adopt();
                    let predicted = self.predicted_bytes(plan);
                    self.report.work.predicted_bytes = predicted.unwrap_or_default();
                }
                for (command, payload) in commands {
                    self.send(command, payload);
                }
                self.send_kept(plan, header, kept);
            }
            Taken::Pass(next, frame) => self.pass(header, next, frame),
            Taken::Drop => {}
            Taken::Tell(body) => self.tell_owner(header, body),
            Taken::Refuse(error) => self.tell_owner(header, DataBody::Failed(error)),
            Taken::Unknown(reason) => self.refuse(header, &reason),
        }
    }

    /// Sends a frame without a payload to another stage.
    fn pass(&self, header: &DataHeader, next: NodeId, frame: DataHeader) {
        if let Err(error) = self.deps.router.send(next, frame, Bytes::new()) {
            self.refuse(header, &format!("the next stage cannot be reached: {error}"));
        }
    }

    /// Sends what was kept to the next stage, as fast as the link takes it.
    fn send_kept(&self, plan: &Plan, header: &DataHeader, kept: Vec<(DataHeader, Bytes)>) {
        let stage = kept.first().and_then(|(header, _)| match &header.body {
            DataBody::Forward(forward) => plan.stage(forward.stage),
            _ => None,
        });
        let Some(next) = stage.map(|stage| stage.incarnation.node) else {
            return;
        };
        let (router, header) = (Arc::clone(&self.deps.router), header.clone());
        let (node, layers, _) = self.words(header.sequence, "");
        tokio::spawn(async move {
            if let Err(error) = router.send_all(next, kept).await {
                let reason = format!("the next stage cannot be reached: {error}");
                let error = GenerationError::NotReady { node, layers, reason };
                router.send_to_owner(to_owner(&header, DataBody::Failed(error)));
            }
        });
    }

    /// Tells the worker what it needs to know of plans, if it does not know it.
    fn adopt(&mut self) {
        let open = self.sequences.plans().map(|(plan, layers)| self.kv_bytes(plan, layers));
        let most = open.max().unwrap_or_default();
        let Some(adopt) = self.adoption.tell(most) else {
            return;
        };
        self.send(adopt, Bytes::new());
    }

    /// What a plan that gives these layers to this node sets aside for KV.
    fn kv_bytes(&self, plan: &Plan, layers: LayerRange) -> u64 {
        let (context, sequences) = (plan.parts().context, plan.parts().max_sequences);
        let tokens = u64::from(context) * u64::from(sequences);
        let inventory = self.deps.inventory.borrow();
        let held = inventory.get(&self.key.model);
        held.map_or(0, |held| held.geometry.kv_bytes(layers, tokens))
    }

    /// What the worker was to take at most, with what it holds.
    fn predicted_bytes(&self, plan: &Plan) -> Option<u64> {
        let (context, sequences) = (plan.parts().context, plan.parts().max_sequences);
        let all = self.told_to_hold.iter().copied().collect();
        let inventory = self.deps.inventory.borrow();
        let held = inventory.get(&self.key.model)?;
        Some(held.geometry.peak_bytes_of(&all, context, sequences))
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
                let how = status.map_or_else(|error| error.to_string(), process::words);
                self.worker_ended(myself, &how);
            }
        }
    }

    fn on_event(&mut self, event: Event, payload: &Bytes) {
        match event {
            Event::Loading { done, total } => {
                tracing::debug!(model = %self.key.model, done, total, "loading");
            }
            Event::Holds { layers, memory } => self.holds(&layers, memory),
            Event::HoldFailed(reason) => {
                tracing::error!(model = %self.key.model, reason, "a layer cannot be loaded");
                self.give_up(&reason);
                // Its files may have changed, and others want to know.
                self.deps.inventory_actor.look();
            }
            // Nobody asked it to measure.
            Event::Probed(_) | Event::Opened => {}
            Event::OpenFailed(reason) => {
                tracing::error!(model = %self.key.model, reason, "the model cannot be opened");
                self.gone = true;
                self.give_up(&reason);
                self.deps.inventory_actor.look();
            }
            Event::Recalled { sequence, attempt, progress } => {
                if let Some(header) = self.sequences.recalled(sequence, attempt, progress) {
                    self.deps.router.send_to_owner(header);
                }
            }
            Event::Status(status) => self.status(status),
            Event::Failed(reason) => {
                tracing::error!(model = %self.key.model, layers = %self.report.held, reason,
                    "the backend failed");
                self.fail_all(&reason);
            }
            Event::Computed(computed) => self.computed(computed, payload),
        }
    }

    /// How much memory its worker takes now.
    const fn takes(&mut self, memory: MemoryUse) {
        let MemoryUse { weights, mapped, kv, prefixes, .. } = memory;
        self.report.memory_bytes = weights + kv + prefixes;
        self.report.mapped_bytes = mapped;
    }

    /// What the worker holds now.
    fn holds(&mut self, layers: &LayerSet, memory: MemoryUse) {
        let told: LayerSet = self.told_to_hold.iter().copied().collect();
        let lacks = told.without(layers);
        let weights = memory.weights;
        self.takes(memory);
        // It may have said so before it heard what it is to hold now.
        let held = layers.within(&told);
        let before = std::mem::replace(&mut self.report.held, held);
        let is_whole =
            |range: &LayerRange| self.report.held.covers(*range) && !before.covers(*range);
        // Layer by layer it is told with what changes often.
        let is_news = lacks.is_empty() || self.told_to_hold.iter().any(is_whole);
        if lacks.is_empty() {
            let took = self.started.elapsed();
            tracing::info!(model = %self.key.model, layers = %self.report.held, ?took,
                bytes = weights, "layers loaded");
        }
        match self.report.state {
            // It said why.
            ShardState::Failed => self.tell_state(ShardState::Failed, self.report.reason.clone()),
            _ if lacks.is_empty() => self.tell_state(ShardState::Ready, String::new()),
            state if is_news => self.tell_state(state, self.report.reason.clone()),
            _ => {}
        }
    }

    fn computed(&mut self, computed: Computed, payload: &Bytes) {
        let follows = self.sequences.computed(Instant::now(), computed, payload);
        let Some(mut follows) = follows else {
            return;
        };
        let came = follows.of.trace.map(|_| SystemTime::now());
        self.deps.metrics.stage_forward(self.key.model.as_str(), follows.took);
        for (to, frame) in std::mem::take(&mut follows.frames) {
            if let DataBody::Failed(error) = &frame.body {
                tracing::warn!(sequence = %frame.sequence, epoch = %frame.epoch, %error,
                    "a segment was rejected");
            }
            if let Err(error) = self.deps.router.send(to, frame, payload.clone()) {
                // It can be tried for as long as the owner likes: no work kills anybody here.
                self.refuse(&follows.of, &format!("the next stage cannot be reached: {error}"));
            }
        }
        if let Some(came) = came {
            // The next stage does not wait for this.
            let spans = spans::of_result(&self.deps.settings.name, came, &follows);
            spans.for_each(|span| self.deps.traces.take(span));
        }
    }

    fn worker_ended(&mut self, myself: &ActorRef<HostMessage>, how: &str) {
        self.worker = None;
        self.adoption.forget();
        self.report.pid = None;
        self.takes(MemoryUse::default());
        let layers = std::mem::take(&mut self.report.held);
        tracing::error!(model = %self.key.model, %layers, how,
            sequences = self.sequences.len(), "worker ended");
        self.fail_all(&format!("its worker process ended: {how}"));
        if self.gone {
            // It said why; starting it again at once would only make it say so again.
            self.tell_state(ShardState::Failed, self.report.reason.clone());
            return;
        }
        match self.restarts.on_death(Instant::now()) {
            Verdict::RestartAfter(wait) => {
                self.deps.restarts.count(ActorKind::Worker);
                self.tell_state(ShardState::Restarting, how.to_owned());
                myself.send_after(wait, || HostMessage::Start);
            }
            Verdict::GiveUp => {
                self.give_up(&format!("its worker keeps dying: {how}"));
            }
        }
    }

    /// Lets those begin that waited, where places are free.
    fn grant(&mut self) {
        // What cannot be computed keeps its turn until it can be.
        if self.worker.is_some() && !self.report.held.is_empty() {
            for header in self.sequences.grants(Instant::now()) {
                self.deps.router.send_to_owner(header);
            }
        }
        if self.told_busy == self.sequences.is_empty() {
            self.tell_busy();
        }
    }

    /// Those that wait for a place are to look for one elsewhere.
    fn dismiss(&mut self, reason: &str) {
        for header in self.sequences.dismiss() {
            self.refuse(&header, reason);
        }
    }

    /// Cannot serve its layers until it is tried again.
    fn give_up(&mut self, reason: &str) {
        let wait = self.retries.given_up(Instant::now());
        self.retry_at = Some(Instant::now() + wait);
        let at = time_of_day_after(wait);
        self.dismiss(reason);
        tracing::error!(model = %self.key.model, reason, ?wait, "given up until it is tried again");
        self.tell_state(ShardState::Failed, format!("{reason}; it is tried again at {at}"));
    }

    /// Tries again what was given up; nothing else is touched.
    fn try_again(&mut self, myself: &ActorRef<HostMessage>) {
        if self.report.state != ShardState::Failed {
            return;
        }
        if self.gone
            && let Some(worker) = &mut self.worker
        {
            // Once it has ended.
            worker.kill();
            self.retry_at = Some(Instant::now());
            return;
        }
        tracing::info!(model = %self.key.model, reason = self.report.reason, "trying again");
        (self.retry_at, self.gone) = (None, false);
        self.told_to_hold.clear();
        if self.worker.is_some() {
            self.report.state = ShardState::Loading;
            self.hold();
        } else {
            self.report.state = ShardState::Restarting;
            self.start(myself);
        }
    }

    fn look_for_stuck_worker(&mut self) {
        let settings = &self.deps.settings;
        let (step_timeout, load_timeout) = (settings.step_timeout, settings.load_timeout);
        let waited = self.sequences.longest_wait(Instant::now());
        if waited > self.sequences.patience(step_timeout) {
            self.kill(&format!("no step came back for {waited:?}"));
        }
        let state = self.report.state;
        let loads = matches!(state, ShardState::Loading | ShardState::Restarting);
        let loads = loads && self.worker.is_some();
        if loads && self.started.elapsed() > load_timeout {
            self.gone = true;
            self.give_up("its layers were not loaded in time");
            self.kill("loading took too long");
        }
    }

    /// Lets go of sequences that nobody will go on with: their owners do not report them any more, or
    /// report nothing of the kind and must have lost patience.
    fn forget_given_up(&mut self) {
        let settings = &self.deps.settings;
        let patience = settings.load_timeout + 2 * settings.step_timeout;
        let now = Instant::now();
        let view = self.deps.view.borrow().clone();
        let mut over = self.sequences.disowned(now, &view);
        over.extend(self.sequences.given_up(now, patience));
        for header in over {
            self.release(header.sequence, header.attempt);
        }
    }

    fn kill(&mut self, why: &str) {
        tracing::error!(model = %self.key.model, layers = %self.report.held, why, "killing worker");
        if let Some(worker) = &mut self.worker {
            worker.kill();
        }
    }

    fn release(&mut self, sequence: SequenceId, attempt: u16) {
        if self.sequences.release(sequence, attempt) && self.worker.is_some() {
            self.send(Command::Release(sequence), Bytes::new());
            self.adopt();
        }
    }

    fn fail_all(&mut self, reason: &str) {
        let pieces = self.sequences.pieces(Instant::now());
        let name = &self.deps.settings.name;
        let spans = spans::of_unfinished(name, SystemTime::now(), reason, pieces);
        spans.for_each(|span| self.deps.traces.take(span));
        for header in self.sequences.interrupt_all() {
            self.fail(&header, reason);
        }
    }

    /// Cannot compute for now.
    fn refuse(&self, header: &DataHeader, reason: &str) {
        let (node, layers, reason) = self.words(header.sequence, reason);
        let error = GenerationError::NotReady { node, layers, reason };
        self.tell_owner(header, DataBody::Failed(error));
    }

    fn fail(&self, header: &DataHeader, reason: &str) {
        let (node, layers, reason) = self.words(header.sequence, reason);
        let stage = self.sequences.stage_of(header.sequence).map(|(stage, _)| stage);
        let error = GenerationError::StageFailed { node, layers, reason, stage };
        self.tell_owner(header, DataBody::Failed(error));
    }

    /// Where something goes wrong: this node, the layers that a sequence passes or else all that are
    /// wanted, and why.
    fn words(&self, sequence: SequenceId, reason: &str) -> (String, String, String) {
        let node = self.deps.settings.name.clone();
        let layers = match self.sequences.stage_of(sequence) {
            Some((_, layers)) => layers.to_string(),
            None => LayerSet::from(self.wanted.clone()).to_string(),
        };
        (node, layers, reason.to_owned())
    }

    fn tell_owner(&self, header: &DataHeader, body: DataBody) {
        self.deps.router.send_to_owner(to_owner(header, body));
    }

    fn tell_state(&mut self, state: ShardState, reason: String) {
        self.report.state = state;
        self.report.reason = reason;
        self.told = self.report.clone();
        self.deps.workers.changed(self.key.clone(), self.report.clone());
    }

    fn status(&mut self, status: Status) {
        let kv = status.memory.kv;
        self.takes(status.memory);
        let kv_bytes = self.adoption.kv_bytes();
        if kv_bytes > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            let ratio = kv as f64 / kv_bytes as f64;
            self.deps.metrics.kv_cache_usage(self.key.model.as_str(), Some(ratio));
        }
        self.report.work = ShardWork {
            predicted_bytes: self.report.work.predicted_bytes,
            peak_bytes: status.peak_bytes,
            busy_micros: status.busy_micros,
            steps: status.steps,
            prompt_tokens: status.prompt_positions,
            reused_tokens: status.reused_positions,
            step_micros: status.step_micros,
            step_layers: status.step_layers,
            queue: self.report.work.queue,
        };
    }

    /// What changes often is told now and then.
    fn tell_changes(&mut self) {
        if self.report != self.told {
            self.tell_state(self.report.state, self.report.reason.clone());
        }
    }

    fn tell_busy(&mut self) {
        self.told_busy = !self.sequences.is_empty();
        self.deps.workers.busy(self.key.clone(), !self.sequences.is_empty());
    }
}

fn to_owner(header: &DataHeader, body: DataBody) -> DataHeader {
    DataHeader { body, ..header.clone() }
}
