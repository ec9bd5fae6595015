//! What the effects of the scheduler are: one interpreter of them, for nodes and for simulated ones.

use std::sync::Arc;

use planaria_config::{Epoch, NodeId};
use planaria_protocol::plan::{Plan, ShardKey};

use super::machine::{Message, SchedulerAction, SchedulerEvent};
use super::problem::PlacementProblem;

/// The node around a scheduler.
pub trait SchedulerRuntime {
    /// Has the scheduler take in an event, behind those that wait already.
    fn cast(&mut self, event: SchedulerEvent);

    /// Tells another node's scheduler something, if it can be reached.
    fn send(&mut self, to: NodeId, message: Message);

    /// Lets frames travel under a plan that is being prepared, and has workers load what it asks for; then the
    /// scheduler is told `ShardsLoaded`.
    fn prepare(&mut self, plan: Arc<Plan>);

    /// What was prepared under this epoch is not needed.
    fn abandon(&mut self, epoch: Epoch);

    /// A plan is in force, and is to be remembered.
    fn adopt(&mut self, plan: Plan);

    /// Has a problem solved, which takes long; then the scheduler is told `Placed`.
    fn place(&mut self, problem: Box<PlacementProblem>);

    /// Has the loss of each node thought through, which takes longer; then it is told `FailoversPlanned`.
    fn plan_failovers(&mut self, problem: Box<PlacementProblem>);

    /// Has workers keep these shards, and no others, for plans that may come.
    fn standby(&mut self, shards: Vec<ShardKey>);
}

/// Carries out the effects of the scheduler of the node `me`.
pub fn carry_out(me: NodeId, actions: Vec<SchedulerAction>, runtime: &mut impl SchedulerRuntime) {
    for action in actions {
        match action {
            SchedulerAction::Send { to, message } if to == me => {
                runtime.cast(message.event_from(me));
            }
            SchedulerAction::Send { to, message } => runtime.send(to, *message),
            SchedulerAction::LoadShards(plan) => runtime.prepare(Arc::new(*plan)),
            SchedulerAction::Abandon(epoch) => runtime.abandon(epoch),
            SchedulerAction::Adopt(plan) => runtime.adopt(*plan),
            SchedulerAction::Place(problem) => runtime.place(problem),
            SchedulerAction::PlanFailovers(problem) => runtime.plan_failovers(problem),
            SchedulerAction::Standby(shards) => runtime.standby(shards),
        }
    }
}

impl Message {
    /// What it is for the scheduler that it was sent to.
    #[must_use]
    pub fn event_from(self, from: NodeId) -> SchedulerEvent {
        match self {
            Self::Prepare(plan) => SchedulerEvent::Prepare { from, plan: Box::new(plan) },
            Self::Prepared(epoch, result) => SchedulerEvent::Prepared { from, epoch, result },
            Self::Commit(plan) => SchedulerEvent::Commit(Box::new(plan)),
            Self::Abort(epoch) => SchedulerEvent::Abort { from, epoch },
        }
    }
}
