//! Actor: all that this node holds.
//!
//! Parent: root. Children: one [`HostActor`] per model (one-for-one). Has them load what plans
//! ask for, keep what plans in force want, and let go of what nobody wants any more and no sequence
//! uses. When it dies all workers die, and are loaded again.

mod host;
mod pinned;
pub mod probe;
mod process;

pub use process::{LOG_FORMAT_VARIABLE, LOG_VARIABLE};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Epoch, Incarnation, LayerRange, LayerSet, ModelName, NodeId};
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::supervision::{ActorKind, Restarts, Retries, Tally, Verdict};
use planaria_protocol::plan::{Plan, ShardKey, WorkerKey};
use planaria_protocol::state::ShardState;
use planaria_protocol::wire::ShardReport;
use planaria_telemetry::wall_clock::time_of_day_after;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use crate::inventory::{Inventory, InventoryHandle};
use crate::mailbox::Mailbox;
use crate::membership::MembershipHandle;
use crate::router::Router;
use crate::scheduler::SchedulerHandle;
use crate::watchdog::Watch;
use crate::worker::pinned::PinnedFiles;
use host::{HostArgs, HostMessage};

pub use host::{Deps as HostDeps, HostActor, WorkerHandle};

/// How long layers must have been unwanted, and a worker idle, before they are let go of: longer than a
/// frame that was sent under the last plan can be on its way.
const GRACE: Duration = Duration::from_secs(2);

/// A planner of an earlier build gives up on a plan that is not loaded within the load timeout, and says so
/// to nobody: what was prepared for it is let go so much later.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// How often unwanted shards are looked for.
const TICK: Duration = Duration::from_millis(500);

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// This life of this node.
    pub me: Incarnation,
    /// The time that a load may take.
    pub load_timeout: Duration,
    /// The plans in force.
    pub plans: watch::Receiver<PlanTable>,
    /// The models on its disk.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// Whether sequences pass through its layers, which this actor keeps.
    pub busy: watch::Sender<bool>,
    /// Hands frames to workers.
    pub router: Arc<Router>,
    /// How often its parts were started again.
    pub restarts: Arc<Tally>,
    /// Tells peers of shards.
    pub membership: MembershipHandle,
    /// Hears of layers that were loaded, or could not be.
    pub scheduler: SchedulerHandle,
    /// Looks for files that are not there.
    pub inventory_actor: InventoryHandle,
    /// What each host needs.
    pub host: host::Deps,
}

/// Speaks to workers.
#[derive(Debug, Clone)]
pub struct WorkersHandle(pub(crate) Mailbox<WorkersMessage>);

impl WorkersHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
    }

    /// Load this node's part of a plan, then tell the scheduler.
    pub fn load(&self, plan: Arc<Plan>) {
        self.0.tell(WorkersMessage::Load(plan));
    }

    /// What was prepared under this epoch is not needed.
    pub fn abort(&self, epoch: Epoch) {
        self.0.tell(WorkersMessage::Abort(epoch));
    }

    /// These plans, and no others, are in force.
    pub fn in_force(&self, plans: Vec<Plan>) {
        self.0.tell(WorkersMessage::InForce(plans));
    }

    /// Keep these shards, and no others, for plans that may come.
    pub fn standby(&self, shards: Vec<ShardKey>) {
        self.0.tell(WorkersMessage::Standby(shards));
    }

    /// The cluster changed.
    pub fn members(&self, view: View) {
        self.0.tell(WorkersMessage::Members(view));
    }

    /// A worker's shard is in another state.
    pub fn changed(&self, key: WorkerKey, report: ShardReport) {
        self.0.tell(WorkersMessage::Changed(key, report));
    }

    /// Sequences pass through a worker, or none do any more.
    pub fn busy(&self, key: WorkerKey, busy: bool) {
        self.0.tell(WorkersMessage::Busy(key, busy));
    }
}

/// What workers is told.
#[derive(Debug)]
pub enum WorkersMessage {
    /// Load this node's part of a plan.
    Load(Arc<Plan>),
    /// What was prepared under this epoch is not needed.
    Abort(Epoch),
    /// These plans are in force.
    InForce(Vec<Plan>),
    /// Keep these shards for plans that may come.
    Standby(Vec<ShardKey>),
    /// The cluster changed.
    Members(View),
    /// A worker's state changed.
    Changed(WorkerKey, ShardReport),
    /// A worker has sequences, or none any more.
    Busy(WorkerKey, bool),
    /// Start a host again.
    Start(WorkerKey),
    /// Time passed.
    Tick,
}

/// The actor.
#[derive(Debug)]
pub struct WorkersActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    workers: BTreeMap<WorkerKey, Held>,
    /// Plans whose loading the scheduler waits for.
    awaited: Vec<Arc<Plan>>,
    /// The newest plan that each planner has had prepared for each model, and when, until it or a newer
    /// one is in force: the planner may wait long for another node. Two may plan while they do not know
    /// of each other yet, and either plan may be the one that comes into force.
    prepared: BTreeMap<(ModelName, NodeId), (Arc<Plan>, Instant)>,
    /// The cluster when it was last told what to serve.
    desired: View,
    wanted: Vec<ShardKey>,
    /// For plans that may come.
    standby: Vec<ShardKey>,
}

/// A worker, as it is looked after.
#[derive(Debug)]
struct Held {
    host: Option<ActorCell>,
    handle: Option<WorkerHandle>,
    /// The layers that it was told to hold, and when each of them was wanted last.
    told: Vec<(LayerRange, Instant)>,
    /// What its layers are loaded from, once that is known.
    files: Option<PinnedFiles>,
    report: ShardReport,
    busy: bool,
    idle_since: Instant,
    restarts: Restarts,
    retries: Retries,
}

impl Held {
    fn layers(&self) -> Vec<LayerRange> {
        self.told.iter().map(|(layers, _)| *layers).collect()
    }
}

impl Actor for WorkersActor {
    type Msg = WorkersMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<WorkersMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        deps.router.remove_workers();
        // After a restart of this actor the plans in force want their shards again.
        let table = deps.plans.borrow().clone();
        let in_force: Vec<_> = table.models.into_values().filter_map(|model| model.plan).collect();
        let plans = in_force.iter().map(|plan| Plan::clone(plan)).collect();
        myself.cast(WorkersMessage::InForce(plans))?;
        for plan in in_force {
            if ShardKey::of(&plan, deps.me.node).is_some() {
                myself.cast(WorkersMessage::Load(plan))?;
            }
        }
        myself.send_interval(TICK, || WorkersMessage::Tick);
        Ok(State {
            watch: Watch::new(ActorKind::Workers),
            deps,
            workers: BTreeMap::new(),
            awaited: Vec::new(),
            prepared: BTreeMap::new(),
            desired: View::default(),
            wanted: Vec::new(),
            standby: Vec::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<WorkersMessage>,
        message: WorkersMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        match message {
            WorkersMessage::Load(plan) => state.load(&myself, plan).await,
            WorkersMessage::Abort(epoch) => {
                state.prepared.retain(|_, (plan, _)| plan.epoch() != epoch);
                state.awaited.retain(|plan| plan.epoch() != epoch);
            }
            WorkersMessage::InForce(plans) => state.in_force(&myself, &plans).await,
            WorkersMessage::Standby(shards) => {
                state.standby = shards;
                state.hold(&myself).await;
            }
            WorkersMessage::Members(view) => {
                for worker in state.workers.values().filter_map(|worker| worker.handle.as_ref()) {
                    worker.members(view.clone());
                }
                state.desire(&myself, view).await;
            }
            WorkersMessage::Changed(key, report) => {
                if let Some(worker) = state.workers.get_mut(&key) {
                    worker.report = report;
                    state.answer();
                    state.tell();
                }
            }
            WorkersMessage::Busy(key, busy) => {
                if let Some(worker) = state.workers.get_mut(&key) {
                    worker.busy = busy;
                    worker.idle_since = Instant::now();
                }
                state.tell_busy();
            }
            WorkersMessage::Start(key) => {
                // It may have been stopped meanwhile, or tried sooner.
                if state.workers.get(&key).is_some_and(|worker| worker.host.is_none()) {
                    state.start(&myself, key).await;
                }
            }
            WorkersMessage::Tick => {
                state.give_up_on_plans();
                state.hold(&myself).await;
                state.stop_unwanted();
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<WorkersMessage>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (dead, how) = match event {
            SupervisionEvent::ActorTerminated(dead, _, reason) => {
                (dead, reason.unwrap_or_else(|| "it stopped".to_owned()))
            }
            SupervisionEvent::ActorFailed(dead, error) => (dead, error.to_string()),
            _ => return Ok(()),
        };
        let is_dead =
            |worker: &Held| worker.host.as_ref().is_some_and(|host| host.get_id() == dead.get_id());
        let found = state.workers.iter().find(|(_, worker)| is_dead(worker));
        if let Some(key) = found.map(|(key, _)| key.clone()) {
            state.host_lost(&myself, &key, &how);
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<WorkersMessage>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.deps.router.remove_workers();
        Ok(())
    }
}

impl State {
    async fn load(&mut self, myself: &ActorRef<WorkersMessage>, plan: Arc<Plan>) {
        let Some(key) = ShardKey::of(&plan, self.deps.me.node) else {
            self.deps
                .scheduler
                .shards_loaded(plan.epoch(), Err("the plan has no stage for it".to_owned()));
            return;
        };
        let is_lost = |worker: &Held| {
            let has_failed = worker.report.state == ShardState::Failed;
            has_failed && (!worker.busy || worker.report.pid.is_none())
        };
        if self.workers.get(&key.worker).is_some_and(is_lost) {
            // Its files, or what kept it from loading them, may have changed.
            self.stop(&key.worker);
        }
        if let Err(reason) = self.suit(&key.worker, &plan) {
            self.deps.inventory_actor.look();
            self.deps.scheduler.shards_loaded(plan.epoch(), Err(reason));
            return;
        }
        let planner = (plan.model().clone(), plan.epoch().planner);
        let newest = self.prepared.get(&planner);
        if newest.is_none_or(|(newest, _)| newest.epoch() <= plan.epoch()) {
            self.prepared.insert(planner, (Arc::clone(&plan), Instant::now()));
        }
        if !self.awaited.contains(&plan) {
            self.awaited.push(plan);
        }
        self.hold(myself).await;
        self.answer();
    }

    /// Sees to it that what a worker has loaded, or would load, is what a plan was made for.
    fn suit(&mut self, key: &WorkerKey, plan: &Plan) -> Result<(), String> {
        let inventory = self.deps.inventory.borrow().clone();
        let files = self.workers.get_mut(key).and_then(|worker| worker.files.as_mut());
        let Some(files) = files else {
            return PinnedFiles::now(&inventory, key)?.suit(plan);
        };
        files.follow(&inventory);
        if files.suit(plan).is_err() {
            PinnedFiles::now(&inventory, key)?.suit(plan)?;
            tracing::info!(model = %key.model, "its files were replaced: what was loaded is let go");
            self.stop(key);
        }
        Ok(())
    }

    /// What each worker is to hold: first what plans in force need, then what was prepared, then what
    /// may be needed.
    fn wants(&self) -> BTreeMap<WorkerKey, Vec<LayerRange>> {
        let me = self.deps.me.node;
        let prepared = self.prepared.values().filter_map(|(plan, _)| ShardKey::of(plan, me));
        let mut wants: BTreeMap<WorkerKey, Vec<LayerRange>> = BTreeMap::new();
        let all = self.wanted.iter().cloned().chain(prepared).chain(self.standby.iter().cloned());
        for ShardKey { worker, layers } in all {
            let of_worker = wants.entry(worker).or_default();
            if !of_worker.contains(&layers) {
                of_worker.push(layers);
            }
        }
        wants
    }

    /// Has every worker hold what is wanted now, and for a while what was wanted until now.
    async fn hold(&mut self, myself: &ActorRef<WorkersMessage>) {
        let (now, wants) = (Instant::now(), self.wants());
        for (key, wanted) in wants {
            let is_new = !self.workers.contains_key(&key);
            let report = ShardReport::starting(&key.model);
            let worker = self.workers.entry(key.clone()).or_insert_with(|| Held {
                host: None,
                handle: None,
                told: Vec::new(),
                files: None,
                report,
                busy: false,
                idle_since: now,
                restarts: Restarts::new(ActorKind::Worker.row().intensity),
                retries: Retries::default(),
            });
            let before = worker.layers();
            let kept = worker.told.iter().filter(|(layers, last)| {
                !wanted.contains(layers) && now.duration_since(*last) <= GRACE
            });
            let kept: Vec<_> = kept.copied().collect();
            worker.told = wanted.into_iter().map(|layers| (layers, now)).chain(kept).collect();
            let layers = worker.layers();
            let (old, new): (LayerSet, LayerSet) =
                (before.into_iter().collect(), layers.iter().copied().collect());
            if is_new {
                tracing::info!(model = %key.model, layers = %new, "to be held");
                self.start(myself, key).await;
            } else if old != new {
                tracing::info!(model = %key.model, from = %old, layers = %new, "to be held");
                if let Some(handle) = &worker.handle {
                    handle.hold(layers);
                }
            }
        }
    }

    async fn start(&mut self, myself: &ActorRef<WorkersMessage>, key: WorkerKey) {
        let layers = self.workers.get(&key).map(Held::layers).unwrap_or_default();
        let pinned = self.workers.get(&key).and_then(|worker| worker.files.clone());
        let now = || PinnedFiles::now(&self.deps.inventory.borrow(), &key);
        let files = match pinned.map_or_else(now, Ok) {
            Ok(files) => files,
            Err(reason) => {
                if let Some(worker) = self.workers.get_mut(&key) {
                    worker.report.state = ShardState::Failed;
                    worker.report.reason = reason;
                }
                self.tell();
                return;
            }
        };
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.files = Some(files.clone());
        }
        let args = HostArgs { deps: self.deps.host.clone(), key: key.clone(), layers, files };
        match Actor::spawn_linked(None, HostActor, args, myself.get_cell()).await {
            Ok((host, _)) => {
                self.adopt_host(key, host);
                self.tell();
            }
            Err(error) => self.host_lost(myself, &key, &error.to_string()),
        }
    }

    fn adopt_host(&mut self, key: WorkerKey, host: ActorRef<HostMessage>) {
        let cell = host.get_cell();
        let handle = WorkerHandle::new(host);
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.host = Some(cell);
            worker.handle = Some(handle.clone());
        }
        self.deps.router.add_worker(key, handle);
    }

    /// What was prepared for a model that was removed since will never be in force. (For one that
    /// this node has yet to hear of, it may.)
    async fn desire(&mut self, myself: &ActorRef<WorkersMessage>, view: View) {
        let is_removed = |model: &ModelName| {
            self.desired.desired().contains_key(model) && !view.desired().contains_key(model)
        };
        self.prepared.retain(|(model, _), _| !is_removed(model));
        let before = std::mem::replace(&mut self.desired, view);
        let asked: BTreeSet<&ModelName> = self.desired.asked_since(&before).collect();
        let given_up = self.workers.iter().filter(|(key, worker)| {
            worker.report.state == ShardState::Failed && asked.contains(&key.model)
        });
        let given_up: Vec<WorkerKey> = given_up.map(|(key, _)| key.clone()).collect();
        for key in given_up {
            match self.workers.get(&key).and_then(|worker| worker.handle.as_ref()) {
                Some(host) => host.try_again(),
                None => self.start(myself, key).await,
            }
        }
    }

    async fn in_force(&mut self, myself: &ActorRef<WorkersMessage>, plans: &[Plan]) {
        let me = self.deps.me;
        // A plan of a former life asks for nothing any more.
        let is_mine =
            |plan: &&Plan| plan.stage_of(me.node).is_some_and(|(_, own)| own.incarnation == me);
        let mine = plans.iter().filter(is_mine);
        self.wanted = mine.filter_map(|plan| ShardKey::of(plan, me.node)).collect();
        self.prepared.retain(|(model, _), (prepared, _)| {
            !plans.iter().any(|plan| plan.model() == model && plan.epoch() >= prepared.epoch())
        });
        self.hold(myself).await;
    }

    /// Tells the scheduler of every awaited plan whose layers are loaded or lost.
    fn answer(&mut self) {
        let me = self.deps.me.node;
        let scheduler = &self.deps.scheduler;
        let workers = &self.workers;
        self.awaited.retain(|plan| {
            let known = ShardKey::of(plan, me)
                .and_then(|key| workers.get(&key.worker).map(|worker| (worker, key.layers)));
            let state = known.map(|(w, layers)| (w.report.state_of(layers), &w.report.reason));
            let result = match state {
                Some((ShardState::Ready, _)) => Ok(()),
                Some((ShardState::Failed, reason)) => Err(reason.clone()),
                Some((ShardState::Loading | ShardState::Restarting, _)) => return true,
                None => Err("its layers were given up".to_owned()),
            };
            let epoch: Epoch = plan.epoch();
            scheduler.shards_loaded(epoch, result);
            false
        });
    }

    /// A host died, or could not be started.
    fn host_lost(&mut self, myself: &ActorRef<WorkersMessage>, key: &WorkerKey, how: &str) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        worker.host = None;
        worker.handle = None;
        worker.busy = false;
        worker.report.pid = None;
        worker.report.held = LayerSet::EMPTY;
        self.deps.router.remove_worker(key);
        match worker.restarts.on_death(Instant::now()) {
            Verdict::RestartAfter(wait) => {
                self.deps.restarts.count(ActorKind::Worker);
                tracing::error!(model = %key.model, how, "a host died");
                worker.report.state = ShardState::Restarting;
                let key = key.clone();
                myself.send_after(wait, || WorkersMessage::Start(key));
            }
            Verdict::GiveUp => {
                let wait = worker.retries.given_up(Instant::now());
                let at = time_of_day_after(wait);
                tracing::error!(model = %key.model, how, ?wait, "given up until it is tried again");
                worker.report.state = ShardState::Failed;
                worker.report.reason =
                    format!("its host keeps dying: {how}; it is tried again at {at}");
                let key = key.clone();
                myself.send_after(wait, || WorkersMessage::Start(key));
            }
        }
        self.answer();
        self.tell();
    }

    fn give_up_on_plans(&mut self) {
        let given_up = self.deps.load_timeout + GIVEN_UP;
        self.prepared.retain(|_, (_, since)| since.elapsed() < given_up);
    }

    /// Stops workers of which nothing is wanted.
    fn stop_unwanted(&mut self) {
        let wants = self.wants();
        for (key, worker) in &mut self.workers {
            if wants.contains_key(key) {
                // What is wanted now starts its grace anew once it is not.
                worker.idle_since = Instant::now();
            }
        }
        let is_unwanted = |worker: &Held| !worker.busy && worker.idle_since.elapsed() > GRACE;
        let unwanted = self.workers.iter().filter(|(_, worker)| is_unwanted(worker));
        let unwanted: Vec<_> = unwanted.map(|(key, _)| key.clone()).collect();
        for key in &unwanted {
            tracing::info!(model = %key.model, "nothing of it is needed any more");
            self.stop(key);
        }
        if !unwanted.is_empty() {
            self.tell();
        }
    }

    fn stop(&mut self, key: &WorkerKey) {
        self.deps.router.remove_worker(key);
        if let Some(host) = self.workers.remove(key).and_then(|worker| worker.host) {
            host.stop(None);
        }
    }

    fn tell_busy(&self) {
        let busy = self.workers.values().any(|worker| worker.busy);
        self.deps.busy.send_if_modified(|known| std::mem::replace(known, busy) != busy);
    }

    fn tell(&self) {
        self.tell_busy();
        let reports = self.workers.values().map(|worker| worker.report.clone()).collect();
        self.deps.membership.own_shards(reports);
    }
}

#[cfg(test)]
mod tests;
