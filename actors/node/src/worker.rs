//! Actor: all that this node holds.
//!
//! Parent: root. Children: one [`HostActor`] per model (one-for-one). [`Workers`] decides what they load, what they
//! keep, and what they let go of. When this actor dies all workers die, and are loaded again.

mod host;
mod pinned;
pub mod probe;
mod process;

pub use process::{LOG_FORMAT_VARIABLE, LOG_VARIABLE};

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Epoch, Incarnation, LayerRange};
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::supervision::{ActorKind, Tally};
use planaria_pipeline::stage::workers::{
    FilesMatch, WorkerNote, Workers, WorkersEvent, WorkersRuntime,
};
use planaria_protocol::plan::{Plan, ShardKey, WorkerKey};
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
use host::HostArgs;

pub use host::{Deps as HostDeps, HostActor, WorkerHandle};

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
pub struct WorkersHandle(pub(crate) Mailbox<WorkersEvent>);

impl WorkersHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
    }

    /// Load this node's part of a plan, then tell the scheduler.
    pub fn load(&self, plan: Arc<Plan>) {
        self.0.tell(WorkersEvent::Load(plan));
    }

    /// What was prepared under this epoch is not needed.
    pub fn abort(&self, epoch: Epoch) {
        self.0.tell(WorkersEvent::Abort(epoch));
    }

    /// These plans, and no others, are in force.
    pub fn in_force(&self, plans: Vec<Plan>) {
        self.0.tell(WorkersEvent::InForce(plans));
    }

    /// Keep these shards, and no others, for plans that may come.
    pub fn standby(&self, shards: Vec<ShardKey>) {
        self.0.tell(WorkersEvent::Standby(shards));
    }

    /// The cluster changed.
    pub fn members(&self, view: View) {
        self.0.tell(WorkersEvent::Members(view));
    }

    /// The host of this number says that its shard is in another state.
    pub fn changed(&self, key: WorkerKey, host: u64, report: ShardReport) {
        self.0.tell(WorkersEvent::Changed(key, host, report));
    }

    /// The host of this number says that sequences pass through its worker, or that none do any more.
    pub fn busy(&self, key: WorkerKey, host: u64, busy: bool) {
        self.0.tell(WorkersEvent::Busy(key, host, busy));
    }
}

/// The actor.
#[derive(Debug)]
pub struct WorkersActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    workers: Workers,
    around: Around,
}

/// The node around its workers.
#[derive(Debug)]
struct Around {
    inbox: ActorRef<WorkersEvent>,
    deps: Deps,
    hosts: BTreeMap<WorkerKey, RunningHost>,
    /// What the layers of each worker are loaded from, in all lives of its host.
    files: BTreeMap<WorkerKey, PinnedFiles>,
    /// Hosts that are to be started.
    to_start: Vec<HostArgs>,
}

#[derive(Debug)]
struct RunningHost {
    number: u64,
    cell: ActorCell,
    handle: WorkerHandle,
}

impl Actor for WorkersActor {
    type Msg = WorkersEvent;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<WorkersEvent>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        deps.router.remove_workers();
        let table = deps.plans.borrow().clone();
        for event in WorkersEvent::after_start(deps.me.node, table) {
            myself.cast(event)?;
        }
        myself.send_interval(TICK, || WorkersEvent::Tick);
        let workers = Workers::new(deps.me, deps.load_timeout);
        let (hosts, files, to_start) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let around = Around { inbox: myself, deps, hosts, files, to_start };
        Ok(State { watch: Watch::new(ActorKind::Workers), workers, around })
    }

    async fn handle(
        &self,
        _: ActorRef<WorkersEvent>,
        event: WorkersEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        state.workers.on(Instant::now(), event, &mut state.around);
        state.start_hosts().await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<WorkersEvent>,
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
        let mut hosts = state.around.hosts.iter();
        let found = hosts.find(|(_, host)| host.cell.get_id() == dead.get_id());
        if let Some((key, number)) = found.map(|(key, host)| (key.clone(), host.number)) {
            let lost = WorkersEvent::HostLost(key, number, how);
            state.workers.on(Instant::now(), lost, &mut state.around);
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<WorkersEvent>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.around.deps.router.remove_workers();
        Ok(())
    }
}

impl State {
    /// Starts the hosts that were decided on.
    async fn start_hosts(&mut self) {
        for args in std::mem::take(&mut self.around.to_start) {
            let (key, number) = (args.key.clone(), args.number);
            let supervisor = self.around.inbox.get_cell();
            match Actor::spawn_linked(None, HostActor, args, supervisor).await {
                Ok((host, _)) => {
                    let (cell, handle) = (host.get_cell(), WorkerHandle::new(host));
                    self.around.deps.router.add_worker(key.clone(), handle.clone());
                    self.around.hosts.insert(key, RunningHost { number, cell, handle });
                }
                Err(error) => {
                    let lost = WorkersEvent::HostLost(key, number, error.to_string());
                    self.workers.on(Instant::now(), lost, &mut self.around);
                }
            }
        }
    }
}

impl Around {
    fn host(&self, worker: &WorkerKey) -> Option<&WorkerHandle> {
        self.hosts.get(worker).map(|host| &host.handle)
    }
}

impl WorkersRuntime for Around {
    fn files_for(&mut self, worker: &WorkerKey, plan: &Plan) -> Result<FilesMatch, String> {
        let inventory = self.deps.inventory.borrow().clone();
        let on_disk = || PinnedFiles::now(&inventory, worker)?.suit(plan);
        let Some(files) = self.files.get_mut(worker) else {
            return on_disk().map(|()| FilesMatch::Same);
        };
        files.follow(&inventory);
        if files.suit(plan).is_ok() {
            return Ok(FilesMatch::Same);
        }
        on_disk().map(|()| FilesMatch::Replaced)
    }

    fn start_host(
        &mut self,
        worker: &WorkerKey,
        number: u64,
        layers: Vec<LayerRange>,
    ) -> Result<(), String> {
        let files = match self.files.entry(worker.clone()) {
            Entry::Occupied(pinned) => pinned.get().clone(),
            Entry::Vacant(place) => {
                place.insert(PinnedFiles::now(&self.deps.inventory.borrow(), worker)?).clone()
            }
        };
        let (deps, key) = (self.deps.host.clone(), worker.clone());
        self.to_start.push(HostArgs { deps, key, number, layers, files });
        Ok(())
    }

    fn stop_host(&mut self, worker: &WorkerKey) {
        self.deps.router.remove_worker(worker);
        self.files.remove(worker);
        self.to_start.retain(|args| args.key != *worker);
        if let Some(host) = self.hosts.remove(worker) {
            host.cell.stop(None);
        }
    }

    fn forget_host(&mut self, worker: &WorkerKey) {
        self.deps.router.remove_worker(worker);
        self.hosts.remove(worker);
    }

    fn hold(&mut self, worker: &WorkerKey, layers: Vec<LayerRange>) {
        if let Some(host) = self.host(worker) {
            host.hold(layers);
        }
    }

    fn join(&mut self, from: &WorkerKey, to: &WorkerKey, layers: Vec<LayerRange>) {
        self.deps.router.rename_worker(from, to);
        if let Some(files) = self.files.remove(from) {
            self.files.insert(to.clone(), files);
        }
        if let Some(host) = self.hosts.remove(from) {
            host.handle.join(to.clone(), layers);
            self.hosts.insert(to.clone(), host);
        }
    }

    fn try_again(&mut self, worker: &WorkerKey) {
        if let Some(host) = self.host(worker) {
            host.try_again();
        }
    }

    fn members(&mut self, worker: &WorkerKey, view: &View) {
        if let Some(host) = self.host(worker) {
            host.members(view.clone());
        }
    }

    fn start_after(&mut self, wait: Duration, worker: &WorkerKey) {
        let worker = worker.clone();
        self.inbox.send_after(wait, || WorkersEvent::StartAgain(worker));
    }

    fn loaded(&mut self, epoch: Epoch, result: Result<(), String>) {
        self.deps.scheduler.shards_loaded(epoch, result);
    }

    fn reports(&mut self, shards: Vec<ShardReport>) {
        self.deps.membership.own_shards(shards);
    }

    fn busy(&mut self, busy: bool) {
        self.deps.busy.send_if_modified(|known| std::mem::replace(known, busy) != busy);
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

    fn note(&mut self, worker: &WorkerKey, note: WorkerNote<'_>) {
        let model = &worker.model;
        match note {
            WorkerNote::Holds { from, layers } if from.is_empty() => {
                tracing::info!(%model, %layers, "to be held");
            }
            WorkerNote::Holds { from, layers } => {
                tracing::info!(%model, %from, %layers, "to be held");
            }
            WorkerNote::FilesReplaced => {
                tracing::info!(%model, "its files were replaced: what was loaded is let go");
            }
            WorkerNote::TakesOver => {
                tracing::info!(%model, "takes over units of a node that its group has lost");
            }
            WorkerNote::HostDied(how) => tracing::error!(%model, how, "a host died"),
            WorkerNote::GivenUp(how, wait) => {
                tracing::error!(%model, how, ?wait, "given up until it is tried again");
            }
            WorkerNote::Unwanted => tracing::info!(%model, "nothing of it is needed any more"),
        }
    }
}

#[cfg(test)]
mod tests;
