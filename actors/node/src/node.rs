//! Actor: the root of a node's supervision tree, and how a node starts and ends.
//!
//! Children, in the order of [`PARTS`]: ledger, links, discovery, membership, capabilities, scheduler,
//! workers, sequences, inventory, desired, gateway. Rest-for-one: when one dies, it and all that were
//! started after it are stopped and started again. Too many deaths melt the node down.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use planaria_control::supervision::{ActorKind, PARTS, Restarts, Verdict, restart_range};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::capabilities::CapabilitiesActor;
use crate::desired::DesiredActor;
use crate::discovery::DiscoveryActor;
use crate::gateway_actor::{GatewayActor, GatewayArgs};
use crate::inventory::InventoryActor;
use crate::ledger::LedgerActor;
use crate::links::LinksActor;
use crate::membership::MembershipActor;
use crate::parts::Parts;
use crate::scheduler::SchedulerActor;
use crate::sequence::SequencesActor;
use crate::worker::WorkersActor;

/// How long a part may take to stop before it is killed: the gateway lets running answers end.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// A running node.
#[derive(Debug)]
pub struct Node {
    root: ActorRef<RootMessage>,
    outcome: oneshot::Receiver<Outcome>,
}

/// How a node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was asked to stop, and did.
    Stopped,
    /// Parts of it kept dying; the last one is named.
    MeltedDown(ActorKind),
}

/// What a node starts from.
pub struct NodeArgs {
    /// All of it.
    pub parts: Arc<Parts>,
    /// Where the API listens.
    pub api: TcpListener,
    /// Where its connections are served: not where frames travel, which nobody is to delay.
    pub api_threads: Handle,
    /// What the API needs.
    pub gateway: planaria_gateway::State,
}

impl Node {
    /// Starts all parts.
    ///
    /// # Errors
    /// When a part could not even start once.
    pub fn start(args: NodeArgs) -> BoxFuture<'static, Result<Self, ractor::SpawnErr>> {
        // Boxed, as `planaria_gateway::serve` is, so that the tree is compiled in this crate.
        Box::pin(async move {
            let (tell, outcome) = oneshot::channel();
            let (root, _) = Actor::spawn(None, RootActor, (args, tell)).await?;
            Ok(Self { root, outcome })
        })
    }

    /// Asks the node to stop: it takes no new requests, lets answers end for a while, and ends.
    pub fn stop(&self) {
        drop(self.root.cast(RootMessage::Stop));
    }

    /// Resolves when the node has ended.
    pub async fn ended(&mut self) -> Outcome {
        let outcome = (&mut self.outcome).await;
        outcome.unwrap_or(Outcome::MeltedDown(ActorKind::Root))
    }
}

/// What the root is told.
#[derive(Debug)]
pub enum RootMessage {
    /// End.
    Stop,
    /// Start this child and all after it.
    StartFrom(usize),
}

#[derive(Debug)]
struct RootActor;

struct RootState {
    args: NodeArgs,
    children: Vec<Child>,
    restarts: Restarts,
    outcome: Option<oneshot::Sender<Outcome>>,
}

struct Child {
    actor: ActorKind,
    cell: Option<ActorCell>,
}

impl Actor for RootActor {
    type Msg = RootMessage;
    type State = RootState;
    type Arguments = (NodeArgs, oneshot::Sender<Outcome>);

    async fn pre_start(
        &self,
        myself: ActorRef<RootMessage>,
        (args, outcome): Self::Arguments,
    ) -> Result<RootState, ActorProcessingErr> {
        let mut state = RootState {
            args,
            children: PARTS.map(|actor| Child { actor, cell: None }).into(),
            restarts: Restarts::new(ActorKind::Ledger.row().intensity),
            outcome: Some(outcome),
        };
        for index in 0..state.children.len() {
            state.start(&myself, index).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<RootMessage>,
        message: RootMessage,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RootMessage::Stop => state.end(&myself, Outcome::Stopped).await,
            RootMessage::StartFrom(first) => {
                for index in first..state.children.len() {
                    if let Err(error) = state.start(&myself, index).await {
                        state.child_died(&myself, index, &error.to_string()).await;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<RootMessage>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let (dead, how) = match event {
            SupervisionEvent::ActorTerminated(dead, _, reason) => {
                (dead, reason.unwrap_or_else(|| "it stopped".to_owned()))
            }
            SupervisionEvent::ActorFailed(dead, error) => (dead, error.to_string()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {
                return Ok(());
            }
        };
        let is_dead =
            |child: &Child| child.cell.as_ref().is_some_and(|c| c.get_id() == dead.get_id());
        if let Some(index) = state.children.iter().position(is_dead) {
            state.child_died(&myself, index, &how).await;
        }
        Ok(())
    }
}

impl RootState {
    async fn start(
        &mut self,
        myself: &ActorRef<RootMessage>,
        index: usize,
    ) -> Result<(), ActorProcessingErr> {
        let Some(child) = self.children.get_mut(index).filter(|child| child.cell.is_none()) else {
            return Ok(());
        };
        let root = myself.get_cell();
        let parts = Arc::clone(&self.args.parts);
        let handles = &parts.handles;
        let cell = match child.actor {
            ActorKind::Ledger => {
                let (actor, _) =
                    Actor::spawn_linked(None, LedgerActor, parts.for_ledger(), root).await?;
                handles.ledger.0.fill(actor.clone());
                actor.get_cell()
            }
            ActorKind::Links => {
                let (actor, _) =
                    Actor::spawn_linked(None, LinksActor, parts.for_links(), root).await?;
                handles.links.0.fill(actor.clone());
                actor.get_cell()
            }
            ActorKind::Discovery => {
                let (actor, _) =
                    Actor::spawn_linked(None, DiscoveryActor, parts.for_discovery(), root).await?;
                actor.get_cell()
            }
            ActorKind::Membership => {
                let (actor, _) =
                    Actor::spawn_linked(None, MembershipActor, parts.for_membership(), root)
                        .await?;
                handles.membership.0.fill(actor.clone());
                actor.get_cell()
            }
            ActorKind::Capabilities => {
                let (actor, _) =
                    Actor::spawn_linked(None, CapabilitiesActor, parts.for_capabilities(), root)
                        .await?;
                handles.capabilities.0.fill(actor.clone());
                actor.get_cell()
            }
            ActorKind::Scheduler => {
                let (actor, _) =
                    Actor::spawn_linked(None, SchedulerActor, parts.for_scheduler(), root).await?;
                handles.scheduler.0.fill(actor.clone());
                actor.get_cell()
            }
            ActorKind::Workers => {
                let (actor, _) =
                    Actor::spawn_linked(None, WorkersActor, parts.for_workers(), root).await?;
                handles.workers.0.fill(actor.clone());
                actor.get_cell()
            }
            ActorKind::Sequences => {
                let (actor, _) =
                    Actor::spawn_linked(None, SequencesActor, parts.for_sequences(), root).await?;
                handles.sequences.0.fill(actor.clone());
                actor.get_cell()
            }
            ActorKind::Inventory => {
                let (actor, _) =
                    Actor::spawn_linked(None, InventoryActor, parts.for_inventory(), root).await?;
                handles.inventory.0.fill(actor.clone());
                actor.get_cell()
            }
            ActorKind::Desired => {
                let (actor, _) =
                    Actor::spawn_linked(None, DesiredActor, parts.for_desired(), root).await?;
                handles.desired.0.fill(actor.clone());
                actor.get_cell()
            }
            ActorKind::Gateway => {
                let args = GatewayArgs {
                    listener: self.args.api.try_clone()?,
                    threads: self.args.api_threads.clone(),
                    state: self.args.gateway.clone(),
                };
                let (actor, _) = Actor::spawn_linked(None, GatewayActor, args, root).await?;
                actor.get_cell()
            }
            ActorKind::Root | ActorKind::Peer | ActorKind::Worker | ActorKind::Sequence => {
                return Err(format!("{} is no part of the node", child.actor).into());
            }
        };
        child.cell = Some(cell);
        Ok(())
    }

    async fn child_died(&mut self, myself: &ActorRef<RootMessage>, index: usize, how: &str) {
        let Some(dead) = self.children.get_mut(index) else {
            return;
        };
        dead.cell = None;
        let dead = dead.actor;
        let row = dead.row();
        tracing::error!(actor = dead.name(), how, lost = row.lost, "a part of the node died");
        match self.restarts.on_death(Instant::now()) {
            Verdict::RestartAfter(wait) => {
                self.args.parts.restarts.count(dead);
                let down = restart_range(row.policy, index, self.children.len());
                self.stop(down.clone()).await;
                myself.send_after(wait, move || RootMessage::StartFrom(down.start));
            }
            Verdict::GiveUp => {
                self.end(myself, Outcome::MeltedDown(dead)).await;
            }
        }
    }

    /// Stops children, the last one first.
    async fn stop(&mut self, range: std::ops::Range<usize>) {
        for child in self.children.get_mut(range).unwrap_or_default().iter_mut().rev() {
            let Some(cell) = child.cell.take() else {
                continue;
            };
            if cell.stop_and_wait(None, Some(STOP_PATIENCE)).await.is_err() {
                tracing::warn!(actor = child.actor.name(), "did not stop in time and is killed");
                cell.kill();
            }
        }
    }

    async fn end(&mut self, myself: &ActorRef<RootMessage>, outcome: Outcome) {
        // Those who need others stop first; then the others are told, while there are links.
        let membership =
            self.children.iter().position(|child| child.actor == ActorKind::Membership);
        self.stop(membership.map_or(0, |at| at + 1)..self.children.len()).await;
        self.args.parts.handles.membership.leave().await;
        self.stop(0..self.children.len()).await;
        self.args.parts.endpoint.close("the node is shutting down").await;
        if let Some(tell) = self.outcome.take() {
            // Whoever started the node may not care how it ends.
            drop(tell.send(outcome));
        }
        myself.stop(None);
    }
}

#[cfg(test)]
mod tests;
