//! Actor: all shards of this node.
//!
//! Parent: root. Children: one [`host`](super::host) per shard (one-for-one). Loads what plans
//! ask for, keeps what plans in force want, and stops what nobody wants any more and no sequence
//! uses. When it dies all workers die, and are loaded again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Epoch, ModelName, NodeId};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::host::{HostActor, HostArgs, HostMessage, WorkerHandle};
use crate::cluster_view::ShardState;
use crate::context::Context;
use crate::membership::View;
use crate::plan::Plan;
use crate::router::ShardKey;
use crate::slot::Slot;
use crate::supervision::{Restarts, Verdict, row};
use crate::wire::ShardReport;

/// How long a shard must have been idle and unwanted before it is stopped: longer than a frame
/// that was sent under the last plan can be on its way.
const GRACE: Duration = Duration::from_secs(2);

/// A planner gives up on a plan that is not loaded within the load timeout, and says so to nobody: what
/// was prepared for it is let go so much later.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// How often unwanted shards are looked for.
const TICK: Duration = Duration::from_millis(500);

/// Speaks to workers.
#[derive(Debug, Clone)]
pub struct WorkersHandle(pub(crate) Slot<WorkersMessage>);

impl WorkersHandle {
    pub(crate) fn vacant() -> Self {
        Self(Slot::vacant())
    }

    /// Load this node's part of a plan, then tell the scheduler.
    pub fn load(&self, plan: Arc<Plan>) {
        self.0.tell(WorkersMessage::Load(plan));
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

    pub(super) fn changed(&self, key: ShardKey, report: ShardReport) {
        self.0.tell(WorkersMessage::Changed(key, report));
    }

    pub(super) fn busy(&self, key: ShardKey, busy: bool) {
        self.0.tell(WorkersMessage::Busy(key, busy));
    }
}

/// What workers is told.
#[derive(Debug)]
pub enum WorkersMessage {
    /// Load this node's part of a plan.
    Load(Arc<Plan>),
    /// These plans are in force.
    InForce(Vec<Plan>),
    /// Keep these shards for plans that may come.
    Standby(Vec<ShardKey>),
    /// The cluster changed.
    Members(View),
    /// A shard's state changed.
    Changed(ShardKey, ShardReport),
    /// A shard has sequences, or none any more.
    Busy(ShardKey, bool),
    /// Start the host of a shard again.
    Start(ShardKey),
    /// Time passed.
    Tick,
}

/// The actor.
#[derive(Debug)]
pub struct WorkersActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    context: Arc<Context>,
    shards: BTreeMap<ShardKey, Shard>,
    /// Plans whose loading the scheduler waits for.
    awaited: Vec<Arc<Plan>>,
    /// The newest plan that each planner has had prepared for each model, and when, until it or a newer
    /// one is in force: the planner may wait long for another node. Two may plan while they do not know
    /// of each other yet, and either plan may be the one that comes into force.
    prepared: BTreeMap<(ModelName, NodeId), (Arc<Plan>, Instant)>,
    /// The models that the cluster was last asked to serve.
    desired: BTreeSet<ModelName>,
    wanted: Vec<ShardKey>,
    /// For plans that may come.
    standby: Vec<ShardKey>,
}

#[derive(Debug)]
struct Shard {
    host: Option<ActorCell>,
    handle: Option<WorkerHandle>,
    report: ShardReport,
    busy: bool,
    idle_since: Instant,
    restarts: Restarts,
}

impl Actor for WorkersActor {
    type Msg = WorkersMessage;
    type State = State;
    type Arguments = Arc<Context>;

    async fn pre_start(
        &self,
        myself: ActorRef<WorkersMessage>,
        context: Arc<Context>,
    ) -> Result<State, ActorProcessingErr> {
        context.router.remove_workers();
        // After a restart of this actor the plans in force want their shards again.
        let table = context.plans.borrow().clone();
        let in_force: Vec<_> = table.models.into_values().filter_map(|model| model.plan).collect();
        let plans = in_force.iter().map(|plan| Plan::clone(plan)).collect();
        myself.cast(WorkersMessage::InForce(plans))?;
        for plan in in_force {
            if ShardKey::of(&plan, context.me.node).is_some() {
                myself.cast(WorkersMessage::Load(plan))?;
            }
        }
        myself.send_interval(TICK, || WorkersMessage::Tick);
        Ok(State {
            context,
            shards: BTreeMap::new(),
            awaited: Vec::new(),
            prepared: BTreeMap::new(),
            desired: BTreeSet::new(),
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
        match message {
            WorkersMessage::Load(plan) => state.load(&myself, plan).await?,
            WorkersMessage::InForce(plans) => state.in_force(&myself, &plans).await?,
            WorkersMessage::Standby(shards) => {
                for key in &shards {
                    if !state.shards.contains_key(key) {
                        tracing::info!(model = %key.model, layers = %key.layers, "standby");
                        state.start(&myself, key.clone()).await?;
                    }
                }
                state.standby = shards;
            }
            WorkersMessage::Members(view) => {
                for shard in state.shards.values().filter_map(|shard| shard.handle.as_ref()) {
                    shard.members(view.clone());
                }
                state.desire(&view);
            }
            WorkersMessage::Changed(key, report) => {
                if let Some(shard) = state.shards.get_mut(&key) {
                    shard.report = report;
                    state.answer();
                    state.tell();
                }
            }
            WorkersMessage::Busy(key, busy) => {
                if let Some(shard) = state.shards.get_mut(&key) {
                    shard.busy = busy;
                    shard.idle_since = Instant::now();
                }
            }
            WorkersMessage::Start(key) => {
                if state.shards.contains_key(&key) {
                    state.start(&myself, key).await?;
                }
            }
            WorkersMessage::Tick => state.stop_unwanted(),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<WorkersMessage>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorTerminated(dead, _, _)
        | SupervisionEvent::ActorFailed(dead, _) = event
        {
            state.host_died(&myself, &dead);
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<WorkersMessage>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.context.router.remove_workers();
        Ok(())
    }
}

impl State {
    async fn load(
        &mut self,
        myself: &ActorRef<WorkersMessage>,
        plan: Arc<Plan>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(key) = ShardKey::of(&plan, self.context.me.node) else {
            self.context
                .handles
                .scheduler
                .shards_loaded(plan.epoch(), Err("the plan has no stage for it".to_owned()));
            return Ok(());
        };
        let is_lost = self
            .shards
            .get(&key)
            .is_none_or(|shard| shard.report.state == ShardState::Failed && !shard.busy);
        if is_lost {
            self.stop(&key);
            self.start(myself, key).await?;
        }
        let planner = (plan.model().clone(), plan.epoch().planner);
        let newest = self.prepared.get(&planner);
        if newest.is_none_or(|(newest, _)| newest.epoch() <= plan.epoch()) {
            self.prepared.insert(planner, (Arc::clone(&plan), Instant::now()));
        }
        if !self.awaited.contains(&plan) {
            self.awaited.push(plan);
        }
        self.answer();
        Ok(())
    }

    async fn start(
        &mut self,
        myself: &ActorRef<WorkersMessage>,
        key: ShardKey,
    ) -> Result<(), ActorProcessingErr> {
        let args = HostArgs { context: Arc::clone(&self.context), key: key.clone() };
        let (host, _) = Actor::spawn_linked(None, HostActor, args, myself.get_cell()).await?;
        self.adopt_host(key, host);
        self.tell();
        Ok(())
    }

    fn adopt_host(&mut self, key: ShardKey, host: ActorRef<HostMessage>) {
        let cell = host.get_cell();
        let handle = WorkerHandle::new(host);
        self.context.router.add_worker(key.clone(), handle.clone());
        let report = ShardReport::starting(&key.model, key.layers);
        let shard = self.shards.entry(key).or_insert_with(|| Shard {
            host: None,
            handle: None,
            report,
            busy: false,
            idle_since: Instant::now(),
            restarts: Restarts::new(row("worker").intensity),
        });
        shard.host = Some(cell);
        shard.handle = Some(handle);
    }

    /// What was prepared for a model that was removed since will never be in force. (For one that
    /// this node has yet to hear of, it may.)
    fn desire(&mut self, view: &View) {
        let desired: BTreeSet<ModelName> = view.desired().keys().cloned().collect();
        let removed = |model: &ModelName| self.desired.contains(model) && !desired.contains(model);
        self.prepared.retain(|(model, _), _| !removed(model));
        self.desired = desired;
    }

    async fn in_force(
        &mut self,
        myself: &ActorRef<WorkersMessage>,
        plans: &[Plan],
    ) -> Result<(), ActorProcessingErr> {
        let me = self.context.me;
        self.wanted = plans.iter().filter_map(|plan| ShardKey::of(plan, me.node)).collect();
        self.prepared.retain(|(model, _), (prepared, _)| {
            !plans.iter().any(|plan| plan.model() == model && plan.epoch() >= prepared.epoch())
        });
        // What was prepared may have been collected before the plan came into force after all.
        for plan in plans {
            let is_mine = plan.stage_of(me.node).is_some_and(|(_, own)| own.incarnation == me);
            if let Some(key) = ShardKey::of(plan, me.node).filter(|_| is_mine)
                && !self.shards.contains_key(&key)
            {
                self.start(myself, key).await?;
            }
        }
        Ok(())
    }

    /// Tells the scheduler of every awaited plan whose shard is loaded or lost.
    fn answer(&mut self) {
        let me = self.context.me.node;
        let scheduler = &self.context.handles.scheduler;
        let shards = &self.shards;
        self.awaited.retain(|plan| {
            let shard = ShardKey::of(plan, me).and_then(|key| shards.get(&key));
            let result = match shard.map(|shard| (shard.report.state, &shard.report.reason)) {
                Some((ShardState::Ready, _)) => Ok(()),
                Some((ShardState::Failed, reason)) => Err(reason.clone()),
                Some((ShardState::Loading | ShardState::Restarting, _)) => return true,
                None => Err("the shard was given up".to_owned()),
            };
            let epoch: Epoch = plan.epoch();
            scheduler.shards_loaded(epoch, result);
            false
        });
    }

    fn host_died(&mut self, myself: &ActorRef<WorkersMessage>, dead: &ActorCell) {
        let found = self.shards.iter_mut().find(|(_, shard)| {
            shard.host.as_ref().is_some_and(|host| host.get_id() == dead.get_id())
        });
        let Some((key, shard)) = found else { return };
        shard.host = None;
        shard.handle = None;
        shard.busy = false;
        shard.report.pid = None;
        self.context.router.remove_worker(key);
        match shard.restarts.on_death(Instant::now()) {
            Verdict::RestartAfter(wait) => {
                self.context.restarts.count(row("worker"));
                tracing::error!(model = %key.model, layers = %key.layers, "a host died");
                shard.report.state = ShardState::Restarting;
                let key = key.clone();
                myself.send_after(wait, || WorkersMessage::Start(key));
            }
            Verdict::GiveUp => {
                shard.report.state = ShardState::Failed;
                shard.report.reason = "its host keeps dying".to_owned();
            }
        }
        self.answer();
        self.tell();
    }

    fn stop_unwanted(&mut self) {
        let me = self.context.me.node;
        let given_up = self.context.settings.load_timeout + GIVEN_UP;
        self.prepared.retain(|_, (_, since)| since.elapsed() < given_up);
        let prepared: Vec<_> =
            self.prepared.values().filter_map(|(plan, _)| ShardKey::of(plan, me)).collect();
        let wanted = |key: &ShardKey| {
            self.wanted.contains(key) || prepared.contains(key) || self.standby.contains(key)
        };
        let unwanted: Vec<_> = self
            .shards
            .iter()
            .filter(|(key, shard)| {
                !wanted(key) && !shard.busy && shard.idle_since.elapsed() > GRACE
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in &unwanted {
            tracing::info!(model = %key.model, layers = %key.layers, "shard is not needed any more");
            self.stop(key);
        }
        // What is wanted now starts its grace anew once it is not.
        for (key, shard) in &mut self.shards {
            if self.wanted.contains(key) || prepared.contains(key) || self.standby.contains(key) {
                shard.idle_since = Instant::now();
            }
        }
        if !unwanted.is_empty() {
            self.tell();
        }
    }

    fn stop(&mut self, key: &ShardKey) {
        self.context.router.remove_worker(key);
        if let Some(host) = self.shards.remove(key).and_then(|shard| shard.host) {
            host.stop(None);
        }
    }

    fn tell(&self) {
        let reports = self.shards.values().map(|shard| shard.report.clone()).collect();
        self.context.handles.membership.own_shards(reports);
    }
}
