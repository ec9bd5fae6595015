//! The scheduler's decisions: plans, epochs, prepare and commit. No clock, no I/O.
//!
//! The live member with the lowest id plans. It sends every node of a new plan `Prepare`; when all have loaded their
//! layers it sends everybody `Commit`. A node that cannot is left out for a while, longer each time (`failures`), and
//! the rest planned anew. A plan that is given up while it is prepared is called off with `Abort`; without its
//! planner it is called off by itself. Every other member adopts what it is told, and what it sees in reports, if its
//! epoch is higher than what it knows.
//!
//! A plan that is not possible any more is replaced at once, if a single node is lost by the layout
//! that was worked out for that loss. One that still is gives way to a division that takes at least
//! 15 % less time per token, once that has been so for a while.

mod choice;
mod failures;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use planaria_config::{Epoch, Incarnation, ModelName, NodeId};
use planaria_protocol::plan::{Plan, PlanParts, ShardKey};
use planaria_protocol::state::{ModelState, ShardState};
use planaria_protocol::wire::{Control, NotPrepared};

use super::agreement::Agreement;
use super::placement::{Layout, Placed, Settled, Sizing};
use super::problem::{Failovers, PlacementProblem};
use crate::membership::View;
use failures::Failures;

/// What the scheduler is told.
#[derive(Debug, Clone)]
pub enum SchedulerEvent {
    /// Somebody came, went, or reported something new.
    Members(View),
    /// A planner wants layers loaded.
    Prepare {
        /// Who asks.
        from: NodeId,
        /// What for.
        plan: Box<Plan>,
    },
    /// This node's shards for a plan are loaded, or cannot be.
    ShardsLoaded {
        /// The plan's epoch.
        epoch: Epoch,
        /// `Err` says why not.
        result: Result<(), String>,
    },
    /// A node answered this planner.
    Prepared {
        /// Who.
        from: NodeId,
        /// The plan's epoch.
        epoch: Epoch,
        /// `Err` says why not.
        result: Result<(), NotPrepared>,
    },
    /// A plan is in force.
    Commit(Box<Plan>),
    /// A planner gives up what it had prepared.
    Abort {
        /// Who.
        from: NodeId,
        /// The plan's epoch.
        epoch: Epoch,
    },
    /// Layouts were found, or not.
    Placed {
        /// Which problem they solve.
        number: u64,
        /// A layout for each desired model, or why there is none.
        placed: Placements,
    },
    /// What to do if a node dies was worked out.
    FailoversPlanned {
        /// The number of the question.
        number: u64,
        /// The answer.
        failovers: Failovers,
        /// What this node would need then, and can hold besides what it has.
        standby: Vec<ShardKey>,
    },
    /// Time passed.
    Tick,
}

/// What the scheduler wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum SchedulerAction {
    /// Tell a member, possibly this one.
    Send {
        /// Whom.
        to: NodeId,
        /// What.
        message: Box<Message>,
    },
    /// Have this node's workers load their part of the plan, then tell `ShardsLoaded`.
    LoadShards(Box<Plan>),
    /// What was prepared under this epoch is not needed.
    Abandon(Epoch),
    /// Route by this plan from now on and remember it.
    Adopt(Box<Plan>),
    /// Find layouts for all desired models, then tell `Placed`.
    Place(Box<PlacementProblem>),
    /// Work out what to do if a node dies, then tell `FailoversPlanned`.
    PlanFailovers(Box<PlacementProblem>),
    /// Have this node's workers keep these shards, and no others, for plans that may come.
    Standby(Vec<ShardKey>),
}

/// The part of the control protocol that the scheduler speaks.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// See [`Control::Prepare`].
    Prepare(Plan),
    /// See [`Control::Prepared`].
    Prepared(Epoch, Result<(), NotPrepared>),
    /// See [`Control::Commit`].
    Commit(Plan),
    /// See [`Control::Abort`].
    Abort(Epoch),
}

impl From<Message> for Control {
    fn from(message: Message) -> Self {
        match message {
            Message::Prepare(plan) => Self::Prepare(Box::new(plan)),
            Message::Prepared(epoch, result) => Self::Prepared { epoch, result },
            Message::Commit(plan) => Self::Commit(Box::new(plan)),
            Message::Abort(epoch) => Self::Abort { epoch },
        }
    }
}

/// Nodes that start within this time of each other are planned for together. Longer would only
/// delay the first answer.
const SETTLE: Duration = Duration::from_millis(400);

/// How often a node that has not answered is asked again: its answer may have been lost with a
/// link.
const RESEND: Duration = Duration::from_secs(1);

/// How long a node that could not load a model is left out of it, unless it restarts.
const EXCLUDED: Duration = Duration::from_secs(30);

/// How often what was measured is looked at again.
const APPRAISE: Duration = Duration::from_secs(5);

/// How patient the scheduler is.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Wait this long after a member came before planning, so that nodes that start together
    /// are planned for together.
    pub settle: Duration,
    /// Ask a node that has not answered again after this long: a message can be lost with a link.
    pub resend: Duration,
    /// A node that has not loaded its layers by then is left out.
    pub load: Duration,
    /// A node that failed is left out of that model for this long, then for twice as long, and so on.
    pub excluded: Duration,
    /// A division must be better than the one in force for so long before it is adopted.
    pub dwell: Duration,
    /// What was measured is looked at again after this long.
    pub appraise: Duration,
}

impl Timeouts {
    /// As nodes are, but for what their settings say.
    #[must_use]
    pub const fn with(load: Duration, dwell: Duration) -> Self {
        Self { settle: SETTLE, resend: RESEND, load, excluded: EXCLUDED, dwell, appraise: APPRAISE }
    }
}

/// A layout for each desired model, or why there is none.
pub type Placements = BTreeMap<ModelName, Result<Placed, String>>;

/// The state.
#[derive(Debug)]
pub struct Scheduler {
    me: NodeId,
    sizing: Sizing,
    timeouts: Timeouts,
    view: View,
    /// The highest epoch seen anywhere.
    highest: Epoch,
    /// The plan in force, by model.
    plans: BTreeMap<ModelName, Plan>,
    /// What this planner dealt out last, under which epoch.
    settled: BTreeMap<ModelName, (Epoch, Settled)>,
    /// The newest plan that this node has begun to load, by model.
    begun: BTreeMap<ModelName, Plan>,
    /// Plans that were begun and are not in force, and the life of the planner of each.
    prepared: BTreeMap<Epoch, (ModelName, Option<Incarnation>)>,
    /// Plans of this planner that wait for answers.
    preparing: BTreeMap<ModelName, Preparing>,
    /// Who must not hold which model.
    failures: Failures,
    /// Why a model has no layout.
    obstacles: BTreeMap<ModelName, String>,
    /// Why a model's layout does not follow its pins.
    unpinned: BTreeMap<ModelName, String>,
    /// When to plan next, if something changed.
    plan_at: Option<Instant>,
    /// When to look again whether there is something better than what is in force.
    appraise_at: Option<Instant>,
    /// Since when there has been.
    better_since: BTreeMap<ModelName, Instant>,
    /// What to do if a node dies.
    failovers: Failovers,
    /// What that was worked out from, or is being.
    failover_problem: Option<Box<PlacementProblem>>,
    /// What layouts are being found for.
    placing: Option<Box<PlacementProblem>>,
    /// Problems that there were.
    problems: u64,
}

#[derive(Debug)]
struct Preparing {
    plan: Plan,
    waiting: BTreeSet<NodeId>,
    ask_again: Instant,
    deadline: Instant,
}

impl Scheduler {
    /// Begins with the plans that the node remembers. They are not in force: the incarnations
    /// that they name are gone. Their epochs count, so that new ones are higher.
    #[must_use]
    pub fn new(me: NodeId, sizing: Sizing, timeouts: Timeouts, remembered: &[Plan]) -> Self {
        let highest = remembered.iter().map(Plan::epoch).max();
        Self {
            me,
            sizing,
            timeouts,
            view: View::default(),
            highest: highest.unwrap_or(Epoch { counter: 0, planner: me }),
            plans: BTreeMap::new(),
            settled: BTreeMap::new(),
            begun: BTreeMap::new(),
            prepared: BTreeMap::new(),
            preparing: BTreeMap::new(),
            failures: Failures::new(timeouts.excluded),
            obstacles: BTreeMap::new(),
            unpinned: BTreeMap::new(),
            plan_at: None,
            appraise_at: None,
            better_since: BTreeMap::new(),
            failovers: Failovers::new(),
            failover_problem: None,
            placing: None,
            problems: 0,
        }
    }

    /// Takes in an event.
    pub fn on(&mut self, now: Instant, event: SchedulerEvent) -> Vec<SchedulerAction> {
        let mut actions = Vec::new();
        match event {
            SchedulerEvent::Members(view) => self.on_members(now, view, &mut actions),
            SchedulerEvent::Prepare { from, plan } => self.on_prepare(from, *plan, &mut actions),
            SchedulerEvent::ShardsLoaded { epoch, result } => actions.push(SchedulerAction::Send {
                to: epoch.planner,
                message: Box::new(Message::Prepared(epoch, result.map_err(NotPrepared::Unable))),
            }),
            SchedulerEvent::Prepared { from, epoch, result } => {
                self.on_prepared(now, from, epoch, result, &mut actions);
            }
            SchedulerEvent::Commit(plan) => self.adopt(now, *plan, &mut actions),
            SchedulerEvent::Abort { from, epoch } if from == epoch.planner => {
                if self.prepared.remove(&epoch).is_some() {
                    actions.push(SchedulerAction::Abandon(epoch));
                }
            }
            SchedulerEvent::Abort { .. } => {}
            SchedulerEvent::FailoversPlanned { number, failovers, standby } => {
                // Answers come in any order.
                if self.failover_problem.as_ref().is_some_and(|asked| asked.number == number) {
                    self.failovers = failovers;
                    actions.push(SchedulerAction::Standby(standby));
                }
            }
            SchedulerEvent::Placed { number, placed } => {
                self.on_placed(now, number, placed, &mut actions);
            }
            SchedulerEvent::Tick => {}
        }
        self.give_up_waiting(now, &mut actions);
        self.ask_again(now, &mut actions);
        if self.planning_is_due(now) {
            (self.plan_at, self.appraise_at) = (None, None);
            let problem = Box::new(self.problem());
            self.placing = Some(problem.clone());
            actions.push(SchedulerAction::Place(problem));
        }
        actions
    }

    /// When `Tick` is wanted next, if nothing else happens.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let deadlines = self.preparing.values().map(|p| p.deadline.min(p.ask_again));
        let forgiven = self.failures.wake_at();
        let planning = self.plan_at.into_iter().chain(self.appraise_at);
        let planning = planning.filter(|_| self.placing.is_none());
        deadlines.chain(forgiven).chain(planning).min()
    }

    /// The models that are wanted.
    pub fn desired(&self) -> impl Iterator<Item = &ModelName> {
        self.view.desired().keys()
    }

    /// The highest epoch that this node has seen.
    #[must_use]
    pub const fn highest(&self) -> Epoch {
        self.highest
    }

    /// Why no plan could be made for a model when that was tried last, if none could. One may be in
    /// force all the same.
    #[must_use]
    pub fn obstacle(&self, model: &ModelName) -> Option<&str> {
        self.obstacles.get(model).map(String::as_str)
    }

    /// Why the plan in force does not follow the pins of a model, if there are any and it does not:
    /// what was found when this node looked for a plan last. Another node's plan may follow them
    /// before this one has looked again.
    #[must_use]
    pub fn unpinned(&self, model: &ModelName) -> Option<&str> {
        let follows_pins = self.plan(model).is_some_and(|plan| self.view.follows_pins(plan));
        self.unpinned.get(model).filter(|_| !follows_pins).map(String::as_str)
    }

    fn planning_is_due(&self, now: Instant) -> bool {
        let due = [self.plan_at, self.appraise_at].into_iter().flatten().any(|at| at <= now);
        // One after the other: what has changed meanwhile is looked at when the answer is there.
        due && self.placing.is_none()
    }

    /// The failover plans of a model, for each node that holds layers of it: its layout without that
    /// node, or `None` if there is none. Empty until it is known.
    pub fn failovers(
        &self,
        model: &ModelName,
    ) -> impl Iterator<Item = (NodeId, Option<&Layout>)> + use<'_> {
        let plan = self.plan(model);
        let nodes = plan.into_iter().flat_map(Plan::nodes);
        let model = plan.map(Plan::model);
        nodes.filter_map(move |node| {
            let layout = self.failovers.get(&node)?.get(model?)?;
            Some((node, layout.as_ref()))
        })
    }

    /// The plan in force for a model, if all its incarnations live.
    #[must_use]
    pub fn plan(&self, model: &ModelName) -> Option<&Plan> {
        self.plans.get(model).filter(|plan| self.view.is_alive_plan(plan))
    }

    /// The plans in force, of models that are wanted, none of whose incarnations is over. One of
    /// them may not have been seen yet by this node.
    pub fn plans(&self) -> impl Iterator<Item = &Plan> {
        let is_over = |plan: &Plan| {
            !self.view.desired().contains_key(plan.model())
                || self.view.losses(plan).next().is_some()
        };
        self.plans.values().filter(move |plan| !is_over(plan))
    }

    /// Whether a model can answer, and if not, why.
    #[must_use]
    pub fn state(&self, model: &ModelName) -> (ModelState, String) {
        if let Some(plan) = self.plan(model) {
            let idle = plan.members().find_map(|(life, stage)| {
                let member = self.view.member(life.node)?;
                let shard = member.shard(plan.model(), stage);
                let name = self.view.name(life.node);
                match shard.map(|shard| (shard.state_of(stage.layers), &shard.reason)) {
                    Some((ShardState::Ready, _)) => None,
                    Some((ShardState::Restarting, _)) => {
                        Some(format!("the worker of {name} restarts"))
                    }
                    Some((ShardState::Failed, reason)) => {
                        let known = self.failures.words(life, model);
                        let reason = known.as_ref().unwrap_or(reason);
                        Some(format!("{name} gave up its layers: {reason}"))
                    }
                    // Everybody answered that its layers are loaded before the plan came into force.
                    // What a member last told of itself may be older than that.
                    _ if !member.report.plans.contains(plan) => None,
                    Some((ShardState::Loading, _)) | None => {
                        Some(format!("{name} loads its layers"))
                    }
                }
            });
            return match idle {
                None => (ModelState::Ready, String::new()),
                Some(reason) => (ModelState::Loading, reason),
            };
        }
        if let Some(preparing) = self.preparing.get(model) {
            let names: Vec<_> =
                preparing.waiting.iter().map(|node| self.view.name(*node)).collect();
            return (ModelState::Loading, format!("waiting for {} to load", names.join(", ")));
        }
        match self.obstacles.get(model) {
            Some(reason) => (ModelState::Unavailable, reason.clone()),
            None => (ModelState::Loading, "a plan is being made".to_owned()),
        }
    }

    fn on_members(&mut self, now: Instant, view: View, actions: &mut Vec<SchedulerAction>) {
        let epochs = view.alive().filter_map(|member| member.report.highest_epoch);
        self.highest = epochs.fold(self.highest, Epoch::max);
        let seen: Vec<Plan> =
            view.alive().flat_map(|member| member.report.plans.iter().cloned()).collect();
        let changed = view.placement_facts() != self.view.placement_facts();
        let has_lost = |plan: &Plan| {
            let was_whole = self.view.is_alive_plan(plan);
            view.has_lost(plan) || (was_whole && !view.is_alive_plan(plan))
        };
        let lost = self.plans.values().any(has_lost)
            || self.preparing.values().any(|preparing| !view.is_alive_plan(&preparing.plan));
        // Whoever asks for a model again has perhaps mended what was wrong with it.
        let asked: Vec<ModelName> = view.asked_since(&self.view).cloned().collect();
        self.view = view;
        for plan in seen {
            self.adopt(now, plan, actions);
        }
        // At once: until there are other layouts, the answers that it waits for would bring it into force.
        let broken = self.preparing.iter().filter(|(_, p)| !self.view.is_alive_plan(&p.plan));
        let broken: Vec<ModelName> = broken.map(|(model, _)| model.clone()).collect();
        for model in broken {
            self.call_off(&model, actions);
        }
        self.abandon_orphans(actions);
        self.learn_contents();
        let broken = self.note_failed_shards(now);
        let repaired = self.failures.look(&self.view, &asked);
        if lost || broken || repaired {
            self.plan_at = Some(now);
            // What is being found for those who were there is not waited for.
            self.placing = None;
        } else if changed || !self.obstacles.is_empty() {
            let settled = now + self.timeouts.settle;
            self.plan_at = Some(self.plan_at.map_or(settled, |at| at.min(settled)));
        } else if self.appraise_at.is_none() && self.is_planner() {
            self.appraise_at = Some(now + self.timeouts.appraise);
        }
    }

    /// Completes what plans in force know of their files by what all their nodes say alike: they have loaded
    /// them.
    fn learn_contents(&mut self) {
        for plan in self.plans.values_mut() {
            let mut said = plan.lives().map(|life| {
                let held = self.view.member(life.node)?.held(plan.model())?;
                held.content.filter(|_| held.digest == plan.parts().digest)
            });
            let first = said.next().flatten();
            let common = said.fold(first, |common, said| Some(common?.common(&said?)));
            if let Some(common) = common {
                plan.learn(&common);
            }
        }
    }

    /// Which files a model is, as far as its members agree.
    #[must_use]
    pub fn agreement(&self, model: &ModelName) -> Option<Agreement> {
        Agreement::of(&self.view, model, self.plans.get(model))
    }

    /// A node that gave up a shard of a plan in force must not hold it in the next one.
    fn note_failed_shards(&mut self, now: Instant) -> bool {
        let mut broken = false;
        for plan in self.plans.values() {
            for (life, stage) in plan.members() {
                let member = self.view.member(life.node);
                // It failed over files that it has no more; whether it has the model is another question.
                let member = member.filter(|member| member.has_files_of(plan) != Some(false));
                let Some(member) = member else {
                    continue;
                };
                let shard = member.shard(plan.model(), stage);
                let failed = shard.filter(|s| s.state_of(stage.layers) == ShardState::Failed);
                // What it told before it heard of the plan may be older than what it loaded for that.
                let Some(shard) = failed.filter(|_| member.report.plans.contains(plan)) else {
                    continue;
                };
                let preparing = self.preparing.get(plan.model());
                if preparing.is_some_and(|p| p.plan.stage_of(life.node).is_some()) {
                    // It is being tried again.
                    continue;
                }
                broken |= self.failures.note(now, member, plan.model(), shard.reason.clone());
            }
        }
        broken
    }

    /// Lets go of what was prepared for planners that are over: nobody will say that it is in force.
    fn abandon_orphans(&mut self, actions: &mut Vec<SchedulerAction>) {
        let is_over = |epoch: &Epoch, planner: Option<Incarnation>| {
            let seen = self.view.state_of(epoch.planner);
            seen.is_some_and(|(seen, state)| planner.is_some_and(|it| seen > it) || state.is_over())
        };
        let orphans = self.prepared.iter().filter(|(epoch, (_, life))| is_over(epoch, *life));
        let orphans: Vec<Epoch> = orphans.map(|(epoch, _)| *epoch).collect();
        for epoch in orphans {
            self.prepared.remove(&epoch);
            actions.push(SchedulerAction::Abandon(epoch));
        }
    }

    fn on_prepare(&mut self, from: NodeId, plan: Plan, actions: &mut Vec<SchedulerAction>) {
        self.highest = self.highest.max(plan.epoch());
        let known = [&self.plans, &self.begun].map(|plans| plans.get(plan.model()));
        let known = known.into_iter().flatten().max_by_key(|known| known.epoch());
        // The same plan again is a question that was asked twice.
        if let Some(known) = known.filter(|known| known.epoch() >= plan.epoch() && **known != plan)
        {
            let answer =
                Message::Prepared(plan.epoch(), Err(NotPrepared::StaleEpoch(known.epoch())));
            actions.push(SchedulerAction::Send { to: from, message: Box::new(answer) });
            return;
        }
        // Its planner has yet to hear that one of its nodes is over. It asks again, or plans anew.
        if self.view.losses(&plan).next().is_some() {
            return;
        }
        self.begun.insert(plan.model().clone(), plan.clone());
        let in_force = self.plans.get(plan.model()).map(Plan::epoch);
        if in_force.is_none_or(|in_force| in_force < plan.epoch()) {
            // Who has just begun may hear of a plan before it hears of the planner.
            let life = self.view.state_of(from).map(|(life, _)| life);
            self.prepared.insert(plan.epoch(), (plan.model().clone(), life));
        }
        actions.push(SchedulerAction::LoadShards(Box::new(plan)));
    }

    fn on_prepared(
        &mut self,
        now: Instant,
        from: NodeId,
        epoch: Epoch,
        result: Result<(), NotPrepared>,
        actions: &mut Vec<SchedulerAction>,
    ) {
        let Some((model, preparing)) =
            self.preparing.iter_mut().find(|(_, preparing)| preparing.plan.epoch() == epoch)
        else {
            return;
        };
        let model = model.clone();
        match result {
            Ok(()) => {
                preparing.waiting.remove(&from);
                if let Some(member) = self.view.member(from) {
                    self.failures.succeeded(now, member.incarnation, &model);
                }
                if preparing.waiting.is_empty()
                    && let Some(ready) = self.preparing.remove(&model)
                {
                    let everybody = self.view.alive().map(|member| member.incarnation.node);
                    actions.extend(everybody.map(|to| SchedulerAction::Send {
                        to,
                        message: Box::new(Message::Commit(ready.plan.clone())),
                    }));
                }
            }
            Err(NotPrepared::StaleEpoch(epoch)) => {
                self.highest = self.highest.max(epoch);
                self.call_off(&model, actions);
                self.plan_at = Some(now);
            }
            Err(NotPrepared::Unable(reason)) => {
                self.call_off(&model, actions);
                if let Some(member) = self.view.member(from) {
                    self.failures.note(now, member, &model, reason);
                }
                self.plan_at = Some(now);
            }
        }
    }

    fn adopt(&mut self, now: Instant, plan: Plan, actions: &mut Vec<SchedulerAction>) {
        self.highest = self.highest.max(plan.epoch());
        if !self.view.desired().contains_key(plan.model()) {
            // Removed, or the wish for it comes with the report that names the plan again.
            return;
        }
        let known = self.plans.get(plan.model()).map(Plan::epoch);
        if known.is_none_or(|known| plan.epoch() > known) {
            let overtaken = self
                .preparing
                .get(plan.model())
                .is_some_and(|preparing| preparing.plan.epoch() < plan.epoch());
            if overtaken {
                self.call_off(plan.model(), actions);
            }
            // What was prepared under an earlier epoch will not come into force any more.
            self.prepared
                .retain(|epoch, (model, _)| model != plan.model() || *epoch > plan.epoch());
            self.plans.insert(plan.model().clone(), plan.clone());
            // Another planner may have made it from a view that is not this one's. But who has just come
            // is seen by some before others: two planners that are not among each other's members yet
            // would otherwise overtake each other's plans as fast as they can. Of one's own several may come
            // into force one after the other.
            let is_last = plan.epoch().planner == self.me && self.preparing.is_empty();
            let again = if is_last { now } else { now + self.timeouts.settle };
            self.plan_at = Some(self.plan_at.map_or(again, |at| at.min(again)));
            actions.push(SchedulerAction::Adopt(Box::new(plan)));
        }
    }

    /// Leaves out nodes that did not load in time, and lets those in again whose time is over.
    fn give_up_waiting(&mut self, now: Instant, actions: &mut Vec<SchedulerAction>) {
        let late: Vec<ModelName> = self
            .preparing
            .iter()
            .filter(|(_, preparing)| preparing.deadline <= now)
            .map(|(model, _)| model.clone())
            .collect();
        for model in late {
            let Some(preparing) = self.call_off(&model, actions) else {
                continue;
            };
            for node in preparing.waiting {
                if let Some(member) = self.view.member(node) {
                    let reason = "did not load its layers in time".to_owned();
                    self.failures.note(now, member, &model, reason);
                }
            }
            self.plan_at = Some(now);
        }
        if self.failures.pass(now) {
            self.plan_at = Some(now);
        }
    }

    /// Gives up what this planner has others prepare for a model.
    fn call_off(
        &mut self,
        model: &ModelName,
        actions: &mut Vec<SchedulerAction>,
    ) -> Option<Preparing> {
        let preparing = self.preparing.remove(model)?;
        let epoch = preparing.plan.epoch();
        let abort = |to| SchedulerAction::Send { to, message: Box::new(Message::Abort(epoch)) };
        actions.extend(preparing.plan.nodes().map(abort));
        Some(preparing)
    }

    fn ask_again(&mut self, now: Instant, actions: &mut Vec<SchedulerAction>) {
        for preparing in self.preparing.values_mut() {
            if preparing.ask_again <= now {
                preparing.ask_again = now + self.timeouts.resend;
                let Preparing { plan, waiting, .. } = &*preparing;
                actions.extend(waiting.iter().map(|to| prepare(*to, plan)));
            }
        }
    }

    /// Layouts were found for what there was to place. If that is not what there is now, they are of no use.
    fn on_placed(
        &mut self,
        now: Instant,
        number: u64,
        placed: Placements,
        actions: &mut Vec<SchedulerAction>,
    ) {
        let Some(asked) = self.placing.take_if(|asked| asked.number == number) else {
            return;
        };
        if asked.is_same_as(&self.problem()) {
            self.plan_anew(now, placed, actions);
            actions.extend(self.plan_failovers());
        } else {
            // Whoever has to settle first has said when.
            self.plan_at.get_or_insert(now);
        }
    }

    /// Makes plans for all models whose layout should differ from what is in force.
    fn plan_anew(&mut self, now: Instant, placed: Placements, actions: &mut Vec<SchedulerAction>) {
        self.obstacles.clear();
        self.unpinned.clear();
        let unwanted: Vec<ModelName> =
            self.preparing.keys().filter(|model| !placed.contains_key(model)).cloned().collect();
        for model in unwanted {
            self.call_off(&model, actions);
        }
        self.plans.retain(|model, _| placed.contains_key(model));
        self.settled.retain(|model, _| placed.contains_key(model));
        self.begun.retain(|model, _| placed.contains_key(model));
        self.better_since.retain(|model, _| placed.contains_key(model));
        for (model, placed) in placed {
            if let Ok(Placed { unpinned: Some(reason), .. }) = &placed {
                self.unpinned.insert(model.clone(), reason.clone());
            }
            match placed {
                Err(reason) => {
                    self.call_off(&model, actions);
                    self.obstacles.insert(model, reason);
                }
                Ok(placed) if !placed.fits_beside && self.is_left(&model) => {
                    let reason = "others have no memory for it beside what they hold".to_owned();
                    self.obstacles.insert(model, reason);
                }
                Ok(placed) if self.is_planner() => {
                    let contenders = placed.contenders.clone();
                    let found = Settled { layout: placed.layout.clone(), contenders };
                    if let Some(layout) = self.choose(now, &model, placed) {
                        // The layout of a failover plan was partitioned among other members.
                        let settled = Some(found).filter(|found| found.layout == layout);
                        self.prepare(now, model, layout, settled, actions);
                    }
                }
                Ok(_) => {
                    // Another node plans; what this one had begun is void.
                    self.call_off(&model, actions);
                }
            }
        }
    }

    /// What is in force, or being prepared in its place, if it is as this planner dealt it out.
    fn settled(&self) -> BTreeMap<ModelName, Settled> {
        let current = |model: &ModelName| {
            let preparing = self.preparing.get(model).map(|preparing| &preparing.plan);
            preparing.or_else(|| self.plans.get(model)).map(Plan::epoch)
        };
        let settled =
            self.settled.iter().filter(|(model, (epoch, _))| current(model) == Some(*epoch));
        settled.map(|(model, (_, settled))| (model.clone(), settled.clone())).collect()
    }

    fn is_planner(&self) -> bool {
        self.view.alive().map(|member| member.incarnation.node).min() == Some(self.me)
    }

    fn prepare(
        &mut self,
        now: Instant,
        model: ModelName,
        layout: Layout,
        settled: Option<Settled>,
        actions: &mut Vec<SchedulerAction>,
    ) {
        let epoch = self.highest.next(self.me);
        let plan = Plan::new(PlanParts {
            epoch,
            model: model.clone(),
            digest: layout.digest,
            layers: layout.layers,
            strategy: layout.strategy,
            context: layout.context,
            max_sequences: layout.max_sequences,
            stages: layout.stages,
            content: Some(layout.content),
            takes_over: layout.takes_over,
        });
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => {
                self.obstacles.insert(model, error.to_string());
                return;
            }
        };
        let same = |other: &Plan| other.same_layout(&plan);
        let in_force = self.plan(&model).filter(|plan| same(plan) && !self.has_failed(plan));
        let in_force = in_force.map(Plan::epoch);
        let on_its_way = self.preparing.get(&model).map(|p| &p.plan).filter(|plan| same(plan));
        let known = in_force.or_else(|| on_its_way.map(Plan::epoch));
        match settled {
            Some(settled) => {
                self.settled.insert(model.clone(), (known.unwrap_or(epoch), settled));
            }
            None => {
                self.settled.remove(&model);
            }
        }
        if known.is_none() || in_force.is_some() {
            self.call_off(&model, actions);
        }
        if known.is_some() {
            return;
        }
        self.highest = epoch;
        actions.extend(plan.nodes().map(|to| prepare(to, &plan)));
        let waiting = plan.nodes().collect();
        self.preparing.insert(
            model,
            Preparing {
                plan,
                waiting,
                ask_again: now + self.timeouts.resend,
                deadline: now + self.timeouts.load,
            },
        );
    }
}

impl Scheduler {
    /// Who is left out of a model, and why.
    #[must_use]
    pub fn left_out(&self, model: &ModelName) -> Vec<String> {
        let excluded = self.failures.excluded().into_iter().filter(|((_, of), _)| of == model);
        excluded.map(|((life, _), why)| format!("{}: {why}", self.view.name(life.node))).collect()
    }

    /// Whether a node has given up its layers of a plan in force: prepared anew, it tries again.
    fn has_failed(&self, plan: &Plan) -> bool {
        plan.members().any(|(life, stage)| {
            let member = self.view.member(life.node);
            let shard = member
                .filter(|member| member.report.plans.contains(plan))
                .and_then(|member| member.shard(plan.model(), stage));
            shard.is_some_and(|shard| shard.state_of(stage.layers) == ShardState::Failed)
        })
    }
}

fn prepare(to: NodeId, plan: &Plan) -> SchedulerAction {
    let message = Box::new(Message::Prepare(plan.clone()));
    SchedulerAction::Send { to, message }
}

#[cfg(test)]
mod tests;
