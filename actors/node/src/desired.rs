//! Actor: keeps the desired state of the cluster.
//!
//! Parent: root. Children: none. Changes come from the API and from peers' reports; what holds is
//! published to the node's parts and, through membership, to the peers. When it dies, a change
//! that was not acknowledged may be lost; the map is on disk and at every peer. A disk that refuses is
//! asked again once the store is open again.

use std::collections::BTreeMap;
use std::time::Duration;

use planaria_config::{ModelName, NodeId};
use planaria_control::desired::{ChangeError, Desired, DesiredAction, DesiredEvent};
use planaria_control::scheduler::PlanTable;
use planaria_control::supervision::ActorKind;
use planaria_protocol::desired::map::{DesiredMap, DesiredSpec, Entry};
use planaria_protocol::state::ModelState;
use planaria_storage::Store;
use planaria_telemetry::wall_clock::unix_millis;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::watch;

use crate::inventory::InventoryHandle;
use crate::ledger;
use crate::mailbox::Mailbox;
use crate::membership::MembershipHandle;
use crate::watchdog::{PULSE, Watch};

/// A change waits for one write to the disk. A disk that takes longer is not well, and whoever
/// asked should hear of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The node.
    pub me: NodeId,
    /// Where changes are written before they are acknowledged.
    pub store: Store,
    /// The plans in force.
    pub plans: watch::Receiver<PlanTable>,
    /// What the cluster is to serve, which this actor keeps.
    pub wanted: watch::Sender<DesiredMap>,
    /// Tells peers.
    pub membership: MembershipHandle,
    /// Looks for files of what is wanted now.
    pub inventory: InventoryHandle,
}

/// Speaks to the desired state.
#[derive(Debug, Clone)]
pub struct DesiredHandle(pub(crate) Mailbox<DesiredMessage>);

impl DesiredHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
    }

    /// Has the cluster serve a model, or (`None`) serve it no longer. On return the change is on
    /// this node's disk.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change(
        &self,
        model: ModelName,
        wanted: Option<DesiredSpec>,
    ) -> Result<Entry, ChangeError> {
        let asked = self.0.ask(PATIENCE, |reply| DesiredMessage::Change(model, wanted, reply));
        asked.await.unwrap_or(Err(ChangeError::Unanswered))
    }

    /// A peer's map.
    pub fn heard(&self, map: DesiredMap) {
        self.0.tell(DesiredMessage::Heard(map));
    }
}

/// What the desired state is told.
#[derive(Debug)]
pub enum DesiredMessage {
    /// Somebody asks for a change.
    Change(ModelName, Option<DesiredSpec>, RpcReplyPort<Result<Entry, ChangeError>>),
    /// A change is on disk, or is not.
    Stored(u64, Result<(), String>),
    /// Of these models, what was to be on disk is not.
    Refused(Vec<ModelName>),
    /// The store takes something again.
    StoreReady,
    /// A peer's map.
    Heard(DesiredMap),
    /// Time passed.
    Pulse,
}

/// The actor.
#[derive(Debug)]
pub struct DesiredActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    desired: Desired,
    waiting: BTreeMap<u64, RpcReplyPort<Result<Entry, ChangeError>>>,
    tickets: u64,
    /// The store says when it takes something again.
    is_waiting_for_the_store: bool,
}

impl Actor for DesiredActor {
    type Msg = DesiredMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<DesiredMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        myself.send_interval(PULSE, || DesiredMessage::Pulse);
        let map = deps.wanted.borrow().clone();
        let desired = Desired::new(deps.me, unix_millis(), map);
        Ok(State {
            watch: Watch::new(ActorKind::Desired),
            deps,
            desired,
            waiting: BTreeMap::new(),
            tickets: 0,
            is_waiting_for_the_store: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<DesiredMessage>,
        message: DesiredMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        let event = match message {
            DesiredMessage::Change(model, wanted, reply) => {
                state.tickets += 1;
                state.waiting.insert(state.tickets, reply);
                let plans = state.deps.plans.borrow();
                let known = plans.models.get(&model);
                let again = known.is_some_and(|known| known.state != ModelState::Ready);
                DesiredEvent::Change { ticket: state.tickets, model, wanted, again }
            }
            DesiredMessage::Stored(ticket, result) => DesiredEvent::Stored { ticket, result },
            DesiredMessage::Refused(models) => DesiredEvent::Refused(models),
            DesiredMessage::StoreReady => {
                state.is_waiting_for_the_store = false;
                DesiredEvent::DiskReady
            }
            DesiredMessage::Heard(map) => DesiredEvent::Heard(map),
            DesiredMessage::Pulse => return Ok(()),
        };
        for action in state.desired.on(unix_millis(), event) {
            state.act(&myself, action);
        }
        state.wait_for_the_store(&myself);
        Ok(())
    }
}

impl State {
    fn act(&mut self, myself: &ActorRef<DesiredMessage>, action: DesiredAction) {
        match action {
            DesiredAction::Store { ticket, put, forget } => {
                let myself = myself.clone();
                let models = put.iter().map(|(model, _)| model).chain(&forget).cloned().collect();
                ledger::store_desired(&self.deps.store, &put, &forget, move |result| {
                    let result = result.map_err(|error| error.to_string());
                    let message = match (ticket, result) {
                        (Some(ticket), result) => DesiredMessage::Stored(ticket, result),
                        (None, Ok(())) => return,
                        (None, Err(error)) => {
                            tracing::error!(
                                error,
                                "what peers want served could not be stored; \
                                it is once the store is open again"
                            );
                            DesiredMessage::Refused(models)
                        }
                    };
                    // Without the actor nobody waits any more.
                    drop(myself.cast(message));
                });
            }
            DesiredAction::Publish(map) => {
                self.log(&map);
                self.deps.wanted.send_replace(map.clone());
                self.deps.membership.own_desired(map);
                // A new model may have been put into the folder just now.
                self.deps.inventory.look();
            }
            DesiredAction::Answer { ticket, result } => {
                if let Some(reply) = self.waiting.remove(&ticket) {
                    // Whoever asked may have left.
                    drop(reply.send(result));
                }
            }
            DesiredAction::Distrust(model, entry) => {
                let ahead = entry.stamp.at().unwrap_or(0).saturating_sub(unix_millis()) / 1000;
                tracing::warn!(%model, peer = ?entry.stamp.node(), seconds = ahead,
                    "a change was made by a machine whose clock is far ahead: it holds, and this \
                     node's clock does not follow; set that machine's clock");
            }
        }
    }

    /// Has the store say when it takes what it refused.
    fn wait_for_the_store(&mut self, myself: &ActorRef<DesiredMessage>) {
        if self.is_waiting_for_the_store || !self.desired.is_behind() {
            return;
        }
        self.is_waiting_for_the_store = true;
        let myself = myself.clone();
        // Without the actor nobody waits any more.
        self.deps.store.when_ready(move || drop(myself.cast(DesiredMessage::StoreReady)));
    }

    fn log(&self, map: &DesiredMap) {
        let before = self.deps.wanted.borrow();
        for (model, entry) in map.entries() {
            if before.get(model) == Some(*entry) {
                continue;
            }
            let peer = entry.stamp.node();
            match entry.wanted {
                Some(wanted) => tracing::info!(%model, ?peer, ?wanted, "model wanted"),
                None => tracing::info!(%model, ?peer, "model removed"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
