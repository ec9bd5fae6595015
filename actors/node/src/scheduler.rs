//! Actor: carries out what the scheduler decides, and publishes the plans in force.
//!
//! Parent: root. Children: none. When it dies, the plans in force come back from the peers'
//! reports; a plan in preparation is lost and made again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Epoch, Incarnation, NodeId, Settings};
use planaria_control::cluster_view::{ClusterView, RecoveryView, assemble};
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::scheduler::machine::{Message, Scheduler, SchedulerEvent, Timeouts};
use planaria_control::scheduler::placement::Sizing;
use planaria_control::scheduler::problem::PlacementProblem;
use planaria_control::scheduler::runtime::{SchedulerRuntime, carry_out};
use planaria_control::supervision::ActorKind;
use planaria_protocol::plan::{Plan, ShardKey};
use planaria_protocol::wire::NotPrepared;
use planaria_storage::Store;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use crate::essential::Essential;
use crate::ledger::{self, LedgerHandle};
use crate::mailbox::Mailbox;
use crate::membership::{MembershipHandle, send_control};
use crate::router::{Router, Undeliverable};
use crate::watchdog::Watch;
use crate::worker::WorkersHandle;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);

/// What is in force is told when all events that wait are taken in, and at the latest after this time.
const PUBLISH: Duration = Duration::from_millis(50);

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// This life of this node.
    pub me: Incarnation,
    /// How this node plans.
    pub settings: Arc<Settings>,
    /// The plans that it followed in a former life.
    pub store: Store,
    /// The members.
    pub view: watch::Receiver<View>,
    /// What its sequences have been through.
    pub recoveries: watch::Receiver<Vec<RecoveryView>>,
    /// The plans in force, which this actor keeps.
    pub plans: watch::Sender<PlanTable>,
    /// The cluster as clients see it, which this actor keeps.
    pub cluster: watch::Sender<Arc<ClusterView>>,
    /// Lets frames travel under plans.
    pub router: Arc<Router>,
    /// Writes down plans.
    pub ledger: LedgerHandle,
    /// Tells peers of plans.
    pub membership: MembershipHandle,
    /// Load what plans ask for.
    pub workers: WorkersHandle,
}

/// Speaks to the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerHandle(pub(crate) Mailbox<SchedulerMessage>);

impl SchedulerHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
    }

    /// The cluster changed.
    pub fn members(&self, view: View) {
        self.tell(SchedulerEvent::Members(view));
    }

    /// A planner wants layers loaded.
    pub fn prepare(&self, from: NodeId, plan: Box<Plan>) {
        self.tell(SchedulerEvent::Prepare { from, plan });
    }

    /// A node answered.
    pub fn prepared(&self, from: NodeId, epoch: Epoch, result: Result<(), NotPrepared>) {
        self.tell(SchedulerEvent::Prepared { from, epoch, result });
    }

    /// A plan is in force.
    pub fn commit(&self, plan: Box<Plan>) {
        self.tell(SchedulerEvent::Commit(plan));
    }

    /// A planner gives up what it had prepared.
    pub fn abort(&self, from: NodeId, epoch: Epoch) {
        self.tell(SchedulerEvent::Abort { from, epoch });
    }

    /// This node's shards for a plan are loaded, or cannot be.
    pub fn shards_loaded(&self, epoch: Epoch, result: Result<(), String>) {
        self.tell(SchedulerEvent::ShardsLoaded { epoch, result });
    }

    fn tell(&self, event: SchedulerEvent) {
        self.0.tell(SchedulerMessage::Event(event));
    }
}

/// What the scheduler is told.
#[derive(Debug)]
pub enum SchedulerMessage {
    /// Something happened.
    Event(SchedulerEvent),
    /// All that had happened when this was asked for is taken in.
    Publish,
}

/// The actor.
#[derive(Debug)]
pub struct SchedulerActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    scheduler: Scheduler,
    view: View,
    around: Around,
    /// Since when something has happened that the other parts were not told of. With many models events come
    /// faster than all could be told what follows from each.
    unpublished: Option<Instant>,
    /// Whether `Publish` is on its way.
    publishing: bool,
}

/// The node around the scheduler.
#[derive(Debug)]
struct Around {
    inbox: ActorRef<SchedulerMessage>,
    deps: Deps,
    /// What the other parts were last told: the plans in force, and the highest epoch.
    known: (Vec<Plan>, Option<Epoch>),
}

impl Actor for SchedulerActor {
    type Msg = SchedulerMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<SchedulerMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        let settings = &deps.settings;
        let sizing = Sizing::of(settings);
        // The worker gives up first and says why; the scheduler waits longer, for nodes that say nothing.
        let load = settings.load_timeout + Duration::from_secs(5);
        let timeouts = Timeouts::with(load, settings.replan_after);
        let scheduler = Scheduler::new(deps.me.node, sizing, timeouts, &ledger::plans(&deps.store));
        let view = deps.view.borrow().clone();
        let around = Around { inbox: myself.clone(), deps, known: (Vec::new(), None) };
        let mut state = State {
            watch: Watch::new(ActorKind::Scheduler),
            scheduler,
            view: View::default(),
            around,
            unpublished: None,
            publishing: false,
        };
        state.take(SchedulerEvent::Members(view));
        state.publish();
        myself.send_interval(TICK, || SchedulerMessage::Event(SchedulerEvent::Tick));
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<SchedulerMessage>,
        message: SchedulerMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        let SchedulerMessage::Event(event) = message else {
            state.publishing = false;
            if state.unpublished.is_some() {
                state.publish();
            }
            return Ok(());
        };
        let idle = matches!(event, SchedulerEvent::Tick)
            && state.scheduler.wake_at().is_none_or(|at| at > Instant::now());
        if !idle {
            state.take(event);
            let since = *state.unpublished.get_or_insert_with(Instant::now);
            if since.elapsed() > PUBLISH {
                state.publish();
            } else if !state.publishing {
                state.publishing = true;
                myself.cast(SchedulerMessage::Publish)?;
            }
        }
        Ok(())
    }
}

impl State {
    fn take(&mut self, event: SchedulerEvent) {
        if let SchedulerEvent::Members(view) = &event {
            self.view = view.clone();
        }
        let actions = self.scheduler.on(Instant::now(), event);
        carry_out(self.around.deps.me.node, actions, &mut self.around);
        let in_force = self.scheduler.plans().cloned().collect();
        self.around.follow(in_force, self.scheduler.highest());
    }

    fn publish(&mut self) {
        self.unpublished = None;
        let table = self.scheduler.plan_table();
        let Deps { me, settings, recoveries, .. } = &self.around.deps;
        let recoveries = recoveries.borrow().clone();
        let cluster: ClusterView = assemble(*me, settings, &self.view, &table, recoveries);
        self.around.deps.plans.send_if_modified(|known| replace(known, table));
        self.around.deps.cluster.send_if_modified(|known| replace(known, Arc::new(cluster)));
    }
}

impl SchedulerRuntime for Around {
    fn cast(&mut self, event: SchedulerEvent) {
        // The only way this fails is that this actor ends.
        drop(self.inbox.cast(SchedulerMessage::Event(event)));
    }

    fn send(&mut self, to: NodeId, message: Message) {
        let sent = match self.deps.router.link(to) {
            Some(link) => send_control(&link, &message.into()),
            None => Err(Undeliverable::NoLink(to)),
        };
        match sent {
            // An earlier build lets go of what it has prepared by itself.
            Ok(()) | Err(Undeliverable::NotUnderstood(_)) => {}
            // The loss of the link leads to another plan.
            Err(error) => {
                tracing::warn!(peer = ?to, %error, "a scheduler's message was not sent");
            }
        }
    }

    fn prepare(&mut self, plan: Arc<Plan>) {
        tracing::info!(model = %plan.model(), epoch = %plan.epoch(), %plan, "preparing");
        // Frames under this plan can come before the news that it is in force.
        self.deps.router.prepare(&plan);
        self.deps.workers.load(plan);
    }

    fn abandon(&mut self, epoch: Epoch) {
        tracing::info!(%epoch, "what was prepared is not needed");
        self.deps.router.abort(epoch);
        self.deps.workers.abort(epoch);
    }

    fn adopt(&mut self, plan: Plan) {
        tracing::info!(model = %plan.model(), epoch = %plan.epoch(), %plan, "in force");
        self.deps.ledger.remember_plan(Arc::new(plan));
    }

    fn place(&mut self, problem: Box<PlacementProblem>) {
        // The scheduler waits for it: a search that panics takes it along, and one that does not end is found.
        let essential = Essential::to(self.inbox.get_cell());
        let watch = Watch::new(ActorKind::Scheduler);
        work_out(&self.inbox, move || {
            let _essential = essential;
            let _handling = watch.handling();
            problem.placed()
        });
    }

    fn plan_failovers(&mut self, problem: Box<PlacementProblem>) {
        let me = self.deps.me.node;
        work_out(&self.inbox, move || problem.failovers_planned(me));
    }

    fn standby(&mut self, shards: Vec<ShardKey>) {
        if self.deps.settings.standby {
            self.deps.workers.standby(shards);
        }
    }
}

impl Around {
    /// Has the other parts of the node keep to the plans in force.
    fn follow(&mut self, in_force: Vec<Plan>, highest: Epoch) {
        // Always: a node that was lost for a moment may be back, or the news came before its first report.
        self.deps.router.follow(in_force.iter());
        let known = (in_force, Some(highest));
        if known.0 != self.known.0 {
            self.deps.workers.in_force(known.0.clone());
        }
        if known != self.known {
            self.deps.membership.own_plans(known.0.clone(), known.1);
            self.known = known;
        }
    }
}

/// Has a thread of its own find out what takes long.
fn work_out(
    myself: &ActorRef<SchedulerMessage>,
    work: impl FnOnce() -> SchedulerEvent + Send + 'static,
) {
    let inbox = myself.clone();
    tokio::task::spawn_blocking(move || {
        // Without an inbox the node is ending.
        drop(inbox.cast(SchedulerMessage::Event(work())));
    });
}

fn replace<T: PartialEq>(known: &mut T, new: T) -> bool {
    let changed = *known != new;
    if changed {
        *known = new;
    }
    changed
}

#[cfg(test)]
mod tests;
