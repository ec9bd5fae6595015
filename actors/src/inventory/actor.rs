//! Actor: looks into the models folder of this machine.
//!
//! Parent: root. Children: none; a look runs on a blocking thread, one at a time. What is found is
//! published to the node's parts and, through membership, to the peers. When it dies nothing is
//! lost: the folder is read again.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::Inventory;
use crate::context::Context;
use crate::slot::Slot;
use crate::watchdog::at_work;

/// How often the folder is looked into when nobody asks: soon enough for a person who has copied a
/// model and wonders, and a few hundred file names are read in a millisecond.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Headers of a new model on a slow disk are read in a few seconds. Whoever waits goes on with
/// what was known before.
const PATIENCE: Duration = Duration::from_secs(10);

/// Speaks to the inventory.
#[derive(Debug, Clone)]
pub struct InventoryHandle(pub(crate) Slot<InventoryMessage>);

impl InventoryHandle {
    pub(crate) fn vacant() -> Self {
        Self(Slot::vacant())
    }

    /// Something may have changed.
    pub fn look(&self) {
        self.0.tell(InventoryMessage::Look(None));
    }

    /// Looks, and waits for what is found.
    pub async fn looked(&self) {
        let asked = self.0.ask(PATIENCE, |reply| InventoryMessage::Look(Some(reply))).await;
        if let Err(error) = asked {
            tracing::warn!(%error, "the models folder was not looked into");
        }
    }
}

/// What the inventory is told.
#[derive(Debug)]
pub enum InventoryMessage {
    /// Look; somebody may wait for it.
    Look(Option<RpcReplyPort<()>>),
    /// A look is over; `None` when it failed.
    Looked(Option<Inventory>),
}

/// The actor.
#[derive(Debug)]
pub struct InventoryActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    context: Arc<Context>,
    /// Those who wait for the look that is under way, if one is.
    looking: Option<Vec<RpcReplyPort<()>>>,
    /// Those who asked since it began, and so wait for another.
    next: Option<Vec<RpcReplyPort<()>>>,
}

impl Actor for InventoryActor {
    type Msg = InventoryMessage;
    type State = State;
    type Arguments = Arc<Context>;

    async fn pre_start(
        &self,
        myself: ActorRef<InventoryMessage>,
        context: Arc<Context>,
    ) -> Result<State, ActorProcessingErr> {
        myself.send_interval(LOOK_EVERY, || InventoryMessage::Look(None));
        Ok(State { context, looking: None, next: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<InventoryMessage>,
        message: InventoryMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _at_work = at_work("inventory");
        match message {
            InventoryMessage::Look(waiting) => {
                state.next.get_or_insert_default().extend(waiting);
            }
            InventoryMessage::Looked(found) => {
                if let Some(found) = found {
                    state.publish(found);
                }
                for waiting in state.looking.take().unwrap_or_default() {
                    // Whoever waited may have left.
                    drop(waiting.send(()));
                }
            }
        }
        if state.looking.is_none() && state.next.is_some() {
            state.looking = state.next.take();
            state.look(&myself);
        }
        Ok(())
    }
}

impl State {
    fn look(&self, myself: &ActorRef<InventoryMessage>) {
        let models_dir = self.context.settings.models_dir.clone();
        let before = self.context.inventory.borrow().clone();
        let myself = myself.clone();
        let look = tokio::task::spawn_blocking(move || Inventory::look(&models_dir, &before));
        tokio::spawn(async move {
            let found = look.await.inspect_err(|error| {
                tracing::error!(%error, "looking into the models folder failed");
            });
            // Without the actor nobody waits any more.
            drop(myself.cast(InventoryMessage::Looked(found.ok())));
        });
    }

    fn publish(&self, found: Inventory) {
        let before = self.context.inventory.borrow().clone();
        if found == *before {
            return;
        }
        for model in found.changed_since(&before) {
            tracing::info!(%model, usable = found.get(model).is_some(), "model files changed");
            self.context.served.forget(model);
        }
        self.context.handles.membership.own_models(found.held(), found.unusable());
        self.context.inventory.send_replace(Arc::new(found));
    }
}
