//! Actor: what this node holds of one model, computed by a worker process that it keeps alive.
//!
//! Parent: workers (one-for-one). Children: the process. The process may die at any time: the owners
//! of its sequences are told, and it is started again in place with backoff; past its intensity, or when
//! layers cannot be loaded, they are given up, and the scheduler plans without them. What was given up is
//! tried again after a growing wait, and at once when somebody asks. When the actor dies, so does the
//! process.

mod spans;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use planaria_config::{Incarnation, LayerRange, NodeId, SequenceId, Settings};
use planaria_control::membership::View;
use planaria_control::supervision::{ActorKind, Tally};
use planaria_engine::geometry::Geometry;
use planaria_engine::processor::Processor;
use planaria_pipeline::stage::host::{Host, HostRuntime, WorkerTimeouts};
use planaria_pipeline::stage::sequences::StepEffects;
use planaria_protocol::pipe::{Command, GroupRank, StepTaken, WorkerEvent};
use planaria_protocol::plan::{Plan, RankAssignment, WorkerKey};
use planaria_protocol::state::ShardState;
use planaria_protocol::wire::{DataBody, DataHeader, ShardReport};
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use planaria_telemetry::wall_clock::{time_of_day_after, unix_micros};
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

    /// Another rank waits for the worker in vain.
    pub fn accuse(&self) {
        drop(self.0.cast(HostMessage::Accused));
    }

    /// The worker is another rank from now on.
    pub fn join(&self, key: WorkerKey, layers: Vec<LayerRange>) {
        drop(self.0.cast(HostMessage::Join(Box::new(key), layers)));
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
    /// Be the rank of this worker, and hold these layers.
    Join(Box<WorkerKey>, Vec<LayerRange>),
    /// Another rank waits for the worker in vain.
    Accused,
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
    /// The number by which its supervisor knows it.
    pub number: u64,
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
    host: Host,
    around: Around,
}

/// The node around the host, and its worker.
#[derive(Debug)]
struct Around {
    inbox: ActorRef<HostMessage>,
    deps: Deps,
    key: WorkerKey,
    number: u64,
    files: PinnedFiles,
    worker: Option<Worker>,
    /// How often the worker was started; tells the words of a dead worker from a living one's.
    life: u64,
    /// What it holds, as far as was told.
    report: ShardReport,
    loading_since: Instant,
    /// When the worker last said something.
    heard_at: SystemTime,
}

impl Actor for HostActor {
    type Msg = HostMessage;
    type State = State;
    type Arguments = HostArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<HostMessage>,
        HostArgs { deps, key, number, layers, files }: HostArgs,
    ) -> Result<State, ActorProcessingErr> {
        let watch = Watch::new(ActorKind::Worker);
        let _handling = watch.starting();
        let settings = &deps.settings;
        let log_bytes = usize::try_from(settings.boundary_logs.0).unwrap_or(usize::MAX);
        let timeouts = WorkerTimeouts { step: settings.step_timeout, load: settings.load_timeout };
        let (now, named) = (Instant::now(), (deps.me, settings.name.clone()));
        let host = Host::new(now, named, &key, layers, timeouts, log_bytes);
        let report = host.report().clone();
        let (inbox, worker, life, loading_since) = (myself.clone(), None, 0, now);
        let heard_at = SystemTime::now();
        let around = Around {
            inbox,
            deps,
            key,
            number,
            files,
            worker,
            life,
            report,
            loading_since,
            heard_at,
        };
        let mut state = State { watch, host, around };
        state.host.start(now, &mut state.around);
        myself.send_interval(TICK, || HostMessage::Tick);
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<HostMessage>,
        message: HostMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        let State { host, around, .. } = state;
        let now = Instant::now();
        match message {
            HostMessage::Frame(came, plan, header, payload) => {
                host.take((came, now), &plan, &header, payload, around);
            }
            HostMessage::Release(sequence, attempt) => host.release(now, sequence, attempt, around),
            HostMessage::Hold(layers) => host.want(now, layers, around),
            HostMessage::Join(key, layers) => {
                around.key = *key;
                host.join(now, &around.key.clone(), layers, around);
            }
            HostMessage::Accused => host.accuse(now),
            HostMessage::Members(view) => host.members(now, &view, around),
            HostMessage::Heard(life, HeardFromWorker(heard)) if life == around.life => {
                match heard {
                    Heard::Event(event, payload) => {
                        around.log(&event);
                        around.heard_at = SystemTime::now();
                        host.hear(now, event, &payload, around);
                    }
                    Heard::Unreadable(error) => {
                        around.kill_worker(&format!("its words make no sense: {error}"));
                    }
                    Heard::Exited(status) => {
                        let how = status.map_or_else(|error| error.to_string(), process::words);
                        around.worker = None;
                        tracing::error!(model = %around.key.model, layers = %around.report.held, how,
                        sequences = host.sequences().len(), "worker ended");
                        host.worker_ended(now, &how, around);
                    }
                }
            }
            HostMessage::Heard(..) => {}
            HostMessage::Start => host.start(now, around),
            HostMessage::TryAgain => host.retry(now, around),
            HostMessage::Tick => host.tick(now, around),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<HostMessage>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.host.end(Instant::now(), &mut state.around);
        let Around { deps, key, .. } = &state.around;
        deps.metrics.kv_cache_usage(key.model.as_str(), None);
        Ok(())
    }
}

impl HostRuntime for Around {
    fn start_worker(&mut self, rank: Option<GroupRank>) -> Result<Option<u32>, String> {
        self.life += 1;
        self.loading_since = Instant::now();
        let (inbox, life) = (self.inbox.clone(), self.life);
        let hear = move |heard| {
            // Without an inbox the host is gone, and this worker is being killed.
            drop(inbox.cast(HostMessage::Heard(life, HeardFromWorker(heard))));
        };
        let router = rank.is_some().then(|| Arc::clone(&self.deps.router));
        let worker = Worker::start(&self.deps.settings, self.deps.processor, router, hear);
        let worker = worker.map_err(|error| {
            tracing::error!(model = %self.key.model, %error, "a worker could not be started");
            error.to_string()
        })?;
        let pid = worker.pid();
        tracing::info!(model = %self.key.model, pid, "worker started");
        let model_dir = self.deps.settings.models_dir.join(self.key.model.as_str());
        // The same bytes may lie in other files by now.
        self.files.follow(&self.deps.inventory.borrow());
        let files = Box::new(self.files.of(self.key.digest));
        if rank.is_some() {
            self.deps.router.add_rank(self.key.clone(), worker.commands());
        }
        worker.send(&Command::Open(model_dir, files, rank), Bytes::new());
        self.worker = Some(worker);
        Ok(pid)
    }

    fn attempts_from(&self) -> u64 {
        unix_micros()
    }

    fn kill_worker(&mut self, why: &str) {
        if self.worker.as_mut().is_some_and(Worker::kill) {
            let layers = &self.report.held;
            tracing::error!(model = %self.key.model, %layers, why, "killing worker");
        }
    }

    fn command(&mut self, command: Command, payload: Bytes) -> bool {
        if matches!(command, Command::Hold(_)) {
            self.loading_since = Instant::now();
        }
        self.worker.as_ref().is_some_and(|worker| worker.send(&command, payload))
    }

    fn start_after(&mut self, wait: Duration) {
        self.inbox.send_after(wait, || HostMessage::Start);
    }

    fn send(&mut self, to: NodeId, header: DataHeader, payload: Bytes) -> Result<(), String> {
        if let DataBody::Failed(error) = &header.body {
            tracing::warn!(sequence = %header.sequence, epoch = %header.epoch, %error,
                "a segment was rejected");
        }
        self.deps.router.send(to, header, payload).map_err(|error| error.to_string())
    }

    fn send_all(
        &mut self,
        to: NodeId,
        frames: Vec<(DataHeader, Bytes)>,
        failed: impl FnOnce(String) -> DataHeader + Send + 'static,
    ) {
        let router = Arc::clone(&self.deps.router);
        tokio::spawn(async move {
            if let Err(error) = router.send_all(to, frames).await {
                router.send_to_owner(failed(error.to_string()));
            }
        });
    }

    fn send_to_owner(&mut self, header: DataHeader) {
        self.deps.router.send_to_owner(header);
    }

    fn is_dead(&self, life: Incarnation) -> bool {
        self.deps.view.borrow().is_dead(life)
    }

    fn knows_group(&self, ranks: &[RankAssignment]) -> bool {
        self.deps.router.knows_group(ranks)
    }

    fn view(&self) -> View {
        self.deps.view.borrow().clone()
    }

    fn geometry(&self) -> Option<Geometry> {
        let inventory = self.deps.inventory.borrow();
        inventory.get(&self.key.model).map(|held| held.geometry.clone())
    }

    fn changed(&mut self, report: &ShardReport) {
        let was_ready = self.report.state == ShardState::Ready;
        if report.state == ShardState::Ready && (!was_ready || report.held != self.report.held) {
            let took = self.loading_since.elapsed();
            tracing::info!(model = %self.key.model, layers = %report.held, ?took,
                memory = report.memory_bytes, "layers loaded");
        }
        if report.state == ShardState::Failed && report.reason != self.report.reason {
            tracing::error!(model = %self.key.model, reason = report.reason,
                "given up until it is tried again");
        }
        if self.report.state == ShardState::Failed && report.state != ShardState::Failed {
            tracing::info!(model = %self.key.model, reason = self.report.reason, "trying again");
        }
        self.report.clone_from(report);
        self.deps.workers.changed(self.key.clone(), self.number, report.clone());
    }

    fn busy(&mut self, busy: bool) {
        self.deps.workers.busy(self.key.clone(), self.number, busy);
    }

    fn restarted(&mut self) {
        self.deps.restarts.count(ActorKind::Worker);
    }

    fn look_for_files(&mut self) {
        self.deps.inventory_actor.look();
    }

    fn time_after(&self, wait: Duration) -> String {
        time_of_day_after(wait)
    }

    fn computed(&mut self, effects: &StepEffects) {
        self.deps.metrics.stage_forward(self.key.model.as_str(), effects.took);
        if effects.step.is_first {
            let StepTaken { exchanges, exchange_micros, .. } = effects.step;
            let waited = Duration::from_micros(exchange_micros.into());
            self.deps.metrics.exchanges(self.key.model.as_str(), exchanges, waited);
        }
        if effects.of.trace.is_some() {
            let spans = spans::of_result(&self.deps.settings.name, self.heard_at, effects);
            spans.for_each(|span| self.deps.traces.take(span));
        }
    }

    fn unfinished<'a>(
        &mut self,
        reason: &str,
        pieces: impl Iterator<Item = (&'a DataHeader, LayerRange, Range<u32>, Duration)>,
    ) {
        let name = &self.deps.settings.name;
        let spans = spans::of_unfinished(name, SystemTime::now(), reason, pieces);
        spans.for_each(|span| self.deps.traces.take(span));
    }

    fn kv_usage(&mut self, ratio: f64) {
        self.deps.metrics.kv_cache_usage(self.key.model.as_str(), Some(ratio));
    }
}

impl Around {
    fn log(&self, event: &WorkerEvent) {
        let model = &self.key.model;
        match event {
            WorkerEvent::Loading { done, total } => tracing::debug!(%model, done, total, "loading"),
            WorkerEvent::HoldFailed(reason) => {
                tracing::error!(%model, reason, "a layer cannot be loaded");
            }
            WorkerEvent::OpenFailed(reason) => {
                tracing::error!(%model, reason, "the model cannot be opened");
            }
            WorkerEvent::GroupOver(reason) => {
                tracing::warn!(%model, reason, "the exchange with other nodes failed");
            }
            WorkerEvent::Failed(reason) => {
                tracing::error!(%model, layers = %self.report.held, reason, "the backend failed");
            }
            _ => {}
        }
    }
}
