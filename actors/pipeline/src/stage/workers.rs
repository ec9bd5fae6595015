//! Which workers a node runs, and which layers each of them is to hold.
//!
//! Plans ask for layers in this order: those in force, those that were prepared, those that may come. A layer that
//! nothing asks for any more is kept for a moment, since a frame under the last plan may be on its way; a worker of
//! which nothing is asked is kept while sequences pass through it. A host that dies is started again after a wait, and
//! given up when it dies too often. Pure: the actor around it, or a simulation, is its [`WorkersRuntime`].

mod runtime;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Epoch, Incarnation, LayerRange, LayerSet, ModelName, NodeId};
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::supervision::{ActorKind, Restarts, Retries, Verdict};
use planaria_protocol::plan::{Plan, ShardKey, WorkerKey};
use planaria_protocol::state::ShardState;
use planaria_protocol::wire::ShardReport;

pub use runtime::{FilesMatch, WorkerNote, WorkersRuntime};

/// How long layers must have been unwanted, and a worker idle, before they are let go of: longer than a
/// frame that was sent under the last plan can be on its way.
const GRACE: Duration = Duration::from_secs(2);

/// A planner of an earlier build gives up on a plan that is not loaded within the load timeout, and says so
/// to nobody: what was prepared for it is let go so much later.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// What a node is told of what it is to hold, and of what it holds.
#[derive(Debug, Clone)]
pub enum WorkersEvent {
    /// Load this node's part of a plan, and tell when it is loaded or cannot be.
    Load(Arc<Plan>),
    /// What was prepared under this epoch is not needed.
    Abort(Epoch),
    /// These plans, and no others, are in force.
    InForce(Vec<Plan>),
    /// Keep these shards, and no others, for plans that may come.
    Standby(Vec<ShardKey>),
    /// The cluster changed.
    Members(View),
    /// A shard is in another state, as the host of this number says.
    Changed(WorkerKey, u64, ShardReport),
    /// Sequences pass through a worker, or none do any more, as the host of this number says.
    Busy(WorkerKey, u64, bool),
    /// The host of this number died, or could not be started, for this reason.
    HostLost(WorkerKey, u64, String),
    /// The wait of a worker whose host died is over.
    StartAgain(WorkerKey),
    /// Time passed.
    Tick,
}

impl WorkersEvent {
    /// What a node is told first that has these plans: those in force before want their shards again.
    pub fn after_start(me: NodeId, table: PlanTable) -> Vec<Self> {
        let plans: Vec<_> = table.models.into_values().filter_map(|model| model.plan).collect();
        let in_force = plans.iter().map(|plan| Plan::clone(plan)).collect();
        let mine = plans.into_iter().filter(|plan| plan.stage_of(me).is_some());
        std::iter::once(Self::InForce(in_force)).chain(mine.map(Self::Load)).collect()
    }
}

/// What a node holds.
#[derive(Debug)]
pub struct Workers {
    me: Incarnation,
    load_timeout: Duration,
    workers: BTreeMap<WorkerKey, Held>,
    /// How many hosts were started.
    started: u64,
    /// Plans whose loading the scheduler waits for.
    awaited: Vec<Arc<Plan>>,
    /// The newest plan that each planner has had prepared for each model, and when, until it or a newer
    /// one is in force: the planner may wait long for another node. Two may plan while they do not know
    /// of each other yet, and either plan may be the one that comes into force.
    prepared: BTreeMap<(ModelName, NodeId), (Arc<Plan>, Instant)>,
    /// The members, as last heard.
    view: View,
    in_force: Vec<ShardKey>,
    /// Ranks of groups that have lost one, in whose place others go on.
    taken_over: BTreeSet<WorkerKey>,
    /// For plans that may come.
    standby: Vec<ShardKey>,
}

/// A worker, as it is looked after.
#[derive(Debug)]
struct Held {
    /// The number of its host, while it has one.
    host: Option<u64>,
    /// The layers that it was told to hold, and when each of them was wanted last.
    told: Vec<(LayerRange, Instant)>,
    report: ShardReport,
    busy: bool,
    idle_since: Instant,
    restarts: Restarts,
    retries: Retries,
}

impl Held {
    fn new(now: Instant, key: &WorkerKey) -> Self {
        Self {
            host: None,
            told: Vec::new(),
            report: ShardReport { ranks: key.ranks.clone(), ..ShardReport::starting(&key.model) },
            busy: false,
            idle_since: now,
            restarts: Restarts::new(ActorKind::Worker.row().intensity),
            retries: Retries::default(),
        }
    }

    fn layers(&self) -> Vec<LayerRange> {
        self.told.iter().map(|(layers, _)| *layers).collect()
    }

    /// It fails for this reason, and is tried again; in how long.
    fn give_up(&mut self, now: Instant, reason: &str, runtime: &impl WorkersRuntime) -> Duration {
        let wait = self.retries.given_up(now);
        let at = runtime.time_after(wait);
        self.report.state = ShardState::Failed;
        self.report.reason = format!("{reason}; it is tried again at {at}");
        wait
    }
}

impl Workers {
    /// No workers, on a node in this life, where a load may take so long.
    #[must_use]
    pub fn new(me: Incarnation, load_timeout: Duration) -> Self {
        Self {
            me,
            load_timeout,
            workers: BTreeMap::new(),
            started: 0,
            awaited: Vec::new(),
            prepared: BTreeMap::new(),
            view: View::default(),
            in_force: Vec::new(),
            taken_over: BTreeSet::new(),
            standby: Vec::new(),
        }
    }

    /// What the node tells of its shards.
    fn reports(&self) -> Vec<ShardReport> {
        self.workers.values().map(|worker| worker.report.clone()).collect()
    }

    /// Takes in an event.
    pub fn on(&mut self, now: Instant, event: WorkersEvent, runtime: &mut impl WorkersRuntime) {
        match event {
            WorkersEvent::Load(plan) => self.load(now, plan, runtime),
            WorkersEvent::Abort(epoch) => self.abort(epoch),
            WorkersEvent::InForce(plans) => self.follow(now, &plans, runtime),
            WorkersEvent::Standby(shards) => {
                self.standby = shards;
                self.hold(now, runtime);
            }
            WorkersEvent::Members(view) => self.members(now, view, runtime),
            WorkersEvent::Changed(key, host, report) => {
                if let Some(worker) = self.of_host(&key, host) {
                    worker.report = report;
                    self.answer(runtime);
                    self.tell(runtime);
                }
            }
            WorkersEvent::Busy(key, host, busy) => {
                if let Some(worker) = self.of_host(&key, host) {
                    worker.busy = busy;
                    worker.idle_since = now;
                    self.tell_busy(runtime);
                }
            }
            WorkersEvent::HostLost(key, host, how) => {
                self.host_lost(now, (&key, host), &how, runtime);
            }
            WorkersEvent::StartAgain(key) => {
                // It may have been stopped meanwhile, or tried sooner.
                if self.workers.get(&key).is_some_and(|worker| worker.host.is_none()) {
                    self.start(now, &key, runtime);
                }
            }
            WorkersEvent::Tick => {
                let given_up = self.load_timeout + GIVEN_UP;
                self.prepared.retain(|_, (_, since)| now.duration_since(*since) < given_up);
                self.hold(now, runtime);
                self.stop_unwanted(now, runtime);
            }
        }
    }

    fn load(&mut self, now: Instant, plan: Arc<Plan>, runtime: &mut impl WorkersRuntime) {
        let Some(key) = ShardKey::of(&plan, self.me.node) else {
            runtime.loaded(plan.epoch(), Err("the plan has no stage for it".to_owned()));
            return;
        };
        let is_lost = |worker: &Held| {
            let has_failed = worker.report.state == ShardState::Failed;
            has_failed && (!worker.busy || worker.report.pid.is_none())
        };
        if self.workers.get(&key.worker).is_some_and(is_lost) {
            // Its files, or what kept it from loading them, may have changed.
            self.stop(&key.worker, runtime);
        }
        match runtime.files_for(&key.worker, &plan) {
            Ok(FilesMatch::Same) => {}
            Ok(FilesMatch::Replaced) => {
                runtime.note(&key.worker, WorkerNote::FilesReplaced);
                self.stop(&key.worker, runtime);
            }
            Err(reason) => {
                runtime.look_for_files();
                runtime.loaded(plan.epoch(), Err(reason));
                return;
            }
        }
        let planner = (plan.model().clone(), plan.epoch().planner);
        let newest = self.prepared.get(&planner);
        if newest.is_none_or(|(newest, _)| newest.epoch() <= plan.epoch()) {
            self.prepared.insert(planner, (Arc::clone(&plan), now));
        }
        self.taken_over.remove(&key.worker);
        if plan.parts().takes_over.is_some() {
            self.take_over(&key.worker, runtime);
        }
        if !self.awaited.contains(&plan) {
            self.awaited.push(plan);
        }
        self.hold(now, runtime);
        self.answer(runtime);
    }

    /// A rank whose group has lost another one becomes the rank that is wanted now, with what it holds of sequences. This node may
    /// hear of that before it hears of the loss.
    fn take_over(&mut self, wanted: &WorkerKey, runtime: &mut impl WorkersRuntime) {
        if self.workers.contains_key(wanted) {
            return;
        }
        let goes_on =
            |key: &WorkerKey, worker: &Held| wanted.is_left_of(key) && worker.host.is_some();
        let found = self.workers.iter().find(|(key, worker)| goes_on(key, worker));
        let Some(key) = found.map(|(key, _)| key.clone()) else { return };
        let Some(mut worker) = self.workers.remove(&key) else { return };
        self.taken_over.insert(key.clone());
        let layers = self.wanted().get(wanted).cloned().unwrap_or_else(|| worker.layers());
        worker.report.ranks.clone_from(&wanted.ranks);
        worker.report.held = LayerSet::EMPTY;
        if worker.report.state == ShardState::Ready {
            worker.report.state = ShardState::Loading;
        }
        self.workers.insert(wanted.clone(), worker);
        runtime.note(wanted, WorkerNote::TakesOver);
        runtime.join(&key, wanted, layers);
    }

    fn abort(&mut self, epoch: Epoch) {
        self.prepared.retain(|_, (plan, _)| plan.epoch() != epoch);
        self.awaited.retain(|plan| plan.epoch() != epoch);
    }

    fn follow(&mut self, now: Instant, plans: &[Plan], runtime: &mut impl WorkersRuntime) {
        let me = self.me;
        // A plan of a former life asks for nothing any more.
        let is_mine = |plan: &&Plan| plan.lives().any(|life| life == me);
        let mine = plans.iter().filter(is_mine);
        self.in_force = mine.filter_map(|plan| ShardKey::of(plan, me.node)).collect();
        // What is not in force any more need not be remembered.
        let in_force = &self.in_force;
        self.taken_over.retain(|key| in_force.iter().any(|shard| shard.worker == *key));
        self.prepared.retain(|(model, _), (prepared, _)| {
            !plans.iter().any(|plan| plan.model() == model && plan.epoch() >= prepared.epoch())
        });
        self.hold(now, runtime);
    }

    fn members(&mut self, now: Instant, view: View, runtime: &mut impl WorkersRuntime) {
        for (key, _) in self.workers.iter().filter(|(_, worker)| worker.host.is_some()) {
            runtime.members(key, &view);
        }
        // What was prepared for a model that was removed since will never be in force. (For one that
        // this node has yet to hear of, it may.)
        let is_removed = |model: &ModelName| {
            self.view.desired().contains_key(model) && !view.desired().contains_key(model)
        };
        self.prepared.retain(|(model, _), _| !is_removed(model));
        let before = std::mem::replace(&mut self.view, view);
        let asked: BTreeSet<&ModelName> = self.view.asked_since(&before).collect();
        let is_given_up = |worker: &Held| worker.report.state == ShardState::Failed;
        let given_up = self.workers.iter().filter(|(_, worker)| is_given_up(worker));
        let again: Vec<(WorkerKey, bool)> = given_up
            .filter(|(key, _)| asked.contains(&key.model))
            .map(|(key, worker)| (key.clone(), worker.host.is_some()))
            .collect();
        for (key, has_host) in again {
            if has_host {
                runtime.try_again(&key);
            } else {
                self.start(now, &key, runtime);
            }
        }
    }

    /// The worker whose host has this number. What was told by a former one does not count.
    fn of_host(&mut self, key: &WorkerKey, host: u64) -> Option<&mut Held> {
        self.workers.get_mut(key).filter(|worker| worker.host == Some(host))
    }

    fn host_lost(
        &mut self,
        now: Instant,
        (key, host): (&WorkerKey, u64),
        how: &str,
        runtime: &mut impl WorkersRuntime,
    ) {
        let Some(worker) = self.of_host(key, host) else { return };
        worker.host = None;
        worker.busy = false;
        worker.report.pid = None;
        worker.report.held = LayerSet::EMPTY;
        runtime.forget_host(key);
        let wait = match worker.restarts.on_death(now) {
            Verdict::RestartAfter(wait) => {
                worker.report.state = ShardState::Restarting;
                runtime.restarted();
                runtime.note(key, WorkerNote::HostDied(how));
                wait
            }
            Verdict::GiveUp => {
                let wait = worker.give_up(now, &format!("its host keeps dying: {how}"), runtime);
                runtime.note(key, WorkerNote::GivenUp(how, wait));
                wait
            }
        };
        runtime.start_after(wait, key);
        self.answer(runtime);
        self.tell(runtime);
    }

    /// What each worker is to hold: first what plans in force need, then what was prepared, then what
    /// may be needed.
    fn wanted(&self) -> BTreeMap<WorkerKey, Vec<LayerRange>> {
        let me = self.me.node;
        let prepared = self.prepared.values().filter_map(|(plan, _)| ShardKey::of(plan, me));
        let mut wanted: BTreeMap<WorkerKey, Vec<LayerRange>> = BTreeMap::new();
        let all = self.in_force.iter().cloned().chain(prepared).chain(self.standby.iter().cloned());
        for ShardKey { worker, layers } in all.filter(|it| !self.taken_over.contains(&it.worker)) {
            let of_worker = wanted.entry(worker).or_default();
            if !of_worker.contains(&layers) {
                of_worker.push(layers);
            }
        }
        wanted
    }

    /// Has every worker hold what is wanted now, and for a while what was wanted until now.
    fn hold(&mut self, now: Instant, runtime: &mut impl WorkersRuntime) {
        for (key, wanted) in self.wanted() {
            let is_new = !self.workers.contains_key(&key);
            let worker = self.workers.entry(key.clone()).or_insert_with(|| Held::new(now, &key));
            let from: LayerSet = worker.layers().into_iter().collect();
            let kept = worker.told.iter().filter(|(layers, last)| {
                !wanted.contains(layers) && now.duration_since(*last) <= GRACE
            });
            let kept: Vec<_> = kept.copied().collect();
            worker.told = wanted.into_iter().map(|layers| (layers, now)).chain(kept).collect();
            let layers: LayerSet = worker.layers().into_iter().collect();
            if !is_new && from == layers {
                continue;
            }
            runtime.note(&key, WorkerNote::Holds { from: &from, layers: &layers });
            if is_new {
                self.start(now, &key, runtime);
            } else if worker.host.is_some() {
                runtime.hold(&key, worker.layers());
            }
        }
    }

    fn start(&mut self, now: Instant, key: &WorkerKey, runtime: &mut impl WorkersRuntime) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        self.started += 1;
        match runtime.start_host(key, self.started, worker.layers()) {
            Ok(()) => worker.host = Some(self.started),
            Err(reason) => {
                let wait = worker.give_up(now, &reason, runtime);
                runtime.note(key, WorkerNote::GivenUp(&reason, wait));
                runtime.start_after(wait, key);
                self.answer(runtime);
            }
        }
        self.tell(runtime);
    }

    /// Tells the scheduler of every awaited plan whose layers are loaded or lost.
    fn answer(&mut self, runtime: &mut impl WorkersRuntime) {
        let (me, workers, taken_over) = (self.me.node, &self.workers, &self.taken_over);
        self.awaited.retain(|plan| {
            // Its planner has made another one meanwhile.
            if WorkerKey::of(plan, me).is_some_and(|key| taken_over.contains(&key)) {
                return false;
            }
            let known = ShardKey::of(plan, me)
                .and_then(|key| workers.get(&key.worker).map(|worker| (worker, key.layers)));
            let state = known.map(|(w, layers)| (w.report.state_of(layers), &w.report.reason));
            let result = match state {
                Some((ShardState::Ready, _)) => Ok(()),
                Some((ShardState::Failed, reason)) => Err(reason.clone()),
                Some((ShardState::Loading | ShardState::Restarting, _)) => return true,
                None => Err("its layers were given up".to_owned()),
            };
            runtime.loaded(plan.epoch(), result);
            false
        });
    }

    /// Stops workers of which nothing is wanted.
    fn stop_unwanted(&mut self, now: Instant, runtime: &mut impl WorkersRuntime) {
        let wanted = self.wanted();
        for (key, worker) in &mut self.workers {
            if wanted.contains_key(key) {
                // What is wanted now starts its grace anew once it is not.
                worker.idle_since = now;
            }
        }
        let is_unwanted =
            |worker: &Held| !worker.busy && now.duration_since(worker.idle_since) > GRACE;
        let unwanted = self.workers.iter().filter(|(_, worker)| is_unwanted(worker));
        let unwanted: Vec<_> = unwanted.map(|(key, _)| key.clone()).collect();
        for key in &unwanted {
            runtime.note(key, WorkerNote::Unwanted);
            self.stop(key, runtime);
        }
        if !unwanted.is_empty() {
            self.tell(runtime);
        }
    }

    fn stop(&mut self, key: &WorkerKey, runtime: &mut impl WorkersRuntime) {
        self.workers.remove(key);
        runtime.stop_host(key);
    }

    fn tell_busy(&self, runtime: &mut impl WorkersRuntime) {
        runtime.busy(self.workers.values().any(|worker| worker.busy));
    }

    fn tell(&self, runtime: &mut impl WorkersRuntime) {
        self.tell_busy(runtime);
        runtime.reports(self.reports());
    }
}

#[cfg(test)]
mod tests;
