//! Actor: keeps the desired state of the cluster.
//!
//! Parent: root. Children: none. Changes come from the API and from peers' reports; what holds is
//! published to the node's parts and, through membership, to the peers. When it dies, a change
//! that was not acknowledged may be lost; the map is on disk and at every peer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use planaria_config::ModelName;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::machine::{Action, ChangeError, Desired, Event};
use super::map::{DesiredMap, Entry, Wanted};
use crate::cluster_view::ModelState;
use crate::context::Context;
use crate::ledger;
use crate::slot::Slot;
use crate::wall_clock::unix_millis;
use crate::watchdog::at_work;

/// A change waits for one write to the disk. A disk that takes longer is not well, and whoever
/// asked should hear of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Speaks to the desired state.
#[derive(Debug, Clone)]
pub struct DesiredHandle(pub(crate) Slot<DesiredMessage>);

impl DesiredHandle {
    pub(crate) fn vacant() -> Self {
        Self(Slot::vacant())
    }

    /// Has the cluster serve a model, or (`None`) serve it no longer. On return the change is on
    /// this node's disk.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change(
        &self,
        model: ModelName,
        wanted: Option<Wanted>,
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
    Change(ModelName, Option<Wanted>, RpcReplyPort<Result<Entry, ChangeError>>),
    /// A change is on disk, or is not.
    Stored(u64, Result<(), String>),
    /// A peer's map.
    Heard(DesiredMap),
}

/// The actor.
#[derive(Debug)]
pub struct DesiredActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    context: Arc<Context>,
    desired: Desired,
    waiting: BTreeMap<u64, RpcReplyPort<Result<Entry, ChangeError>>>,
    tickets: u64,
}

impl Actor for DesiredActor {
    type Msg = DesiredMessage;
    type State = State;
    type Arguments = Arc<Context>;

    async fn pre_start(
        &self,
        _: ActorRef<DesiredMessage>,
        context: Arc<Context>,
    ) -> Result<State, ActorProcessingErr> {
        let map = context.desired.borrow().clone();
        let desired = Desired::new(context.me.node, unix_millis(), map);
        Ok(State { context, desired, waiting: BTreeMap::new(), tickets: 0 })
    }

    async fn handle(
        &self,
        myself: ActorRef<DesiredMessage>,
        message: DesiredMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _at_work = at_work("desired");
        let event = match message {
            DesiredMessage::Change(model, wanted, reply) => {
                state.tickets += 1;
                state.waiting.insert(state.tickets, reply);
                let plans = state.context.plans.borrow();
                let known = plans.models.get(&model);
                let again = known.is_some_and(|known| known.state != ModelState::Ready);
                Event::Change { ticket: state.tickets, model, wanted, again }
            }
            DesiredMessage::Stored(ticket, result) => Event::Stored { ticket, result },
            DesiredMessage::Heard(map) => Event::Heard(map),
        };
        for action in state.desired.on(unix_millis(), event) {
            state.act(&myself, action);
        }
        Ok(())
    }
}

impl State {
    fn act(&mut self, myself: &ActorRef<DesiredMessage>, action: Action) {
        match action {
            Action::Store { ticket, put, forget } => {
                let myself = myself.clone();
                ledger::store_desired(&self.context.store, &put, &forget, move |result| {
                    if let Err(error) = &result {
                        tracing::error!(%error, "the desired state could not be stored");
                    }
                    if let Some(ticket) = ticket {
                        let result = result.map_err(|error| error.to_string());
                        // Without the actor nobody waits any more.
                        drop(myself.cast(DesiredMessage::Stored(ticket, result)));
                    }
                });
            }
            Action::Publish(map) => {
                self.log(&map);
                self.context.desired.send_replace(map.clone());
                self.context.handles.membership.own_desired(map);
                // A new model may have been put into the folder just now.
                self.context.handles.inventory.look();
            }
            Action::Answer { ticket, result } => {
                if let Some(reply) = self.waiting.remove(&ticket) {
                    // Whoever asked may have left.
                    drop(reply.send(result));
                }
            }
            Action::Distrust(model, entry) => {
                let ahead = entry.stamp.at().unwrap_or(0).saturating_sub(unix_millis()) / 1000;
                tracing::warn!(%model, peer = ?entry.stamp.node(), seconds = ahead,
                    "a change was made by a machine whose clock is far ahead: it holds, and this \
                     node's clock does not follow; set that machine's clock");
            }
        }
    }

    fn log(&self, map: &DesiredMap) {
        let before = self.context.desired.borrow();
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
