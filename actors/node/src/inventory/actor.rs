//! Actor: looks into the models folder of this machine.
//!
//! Parent: root. Children: none; a look runs on a blocking thread, one at a time. What is found is
//! published to the node's parts and, through membership, to the peers. Weights are summed up on a thread
//! of low priority, one file at a time, and each sum is kept on disk for as long as the file's stamp holds.
//! Tokenizers and templates of the models that are to be served are read before anybody asks, so that files
//! that go away later disturb nobody.
//! When it dies nothing is lost: the folder is read again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::ModelName;
use planaria_control::membership::View;
use planaria_control::supervision::ActorKind;
use planaria_engine::model_dir::{ModelDir, ModelError, ModelsFolder, Stamp, Stamps, TensorSum};
use planaria_gateway::served::ServedModels;
use planaria_storage::Store;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Inventory, Sums};
use crate::ledger::{self, LedgerHandle};
use crate::mailbox::Mailbox;
use crate::membership::MembershipHandle;
use crate::watchdog::{PULSE, Watch};

/// How often the folder is looked into when nobody asks: soon enough for a person who has copied a
/// model and wonders, and a few hundred file names are read in a millisecond.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Headers of a new model on a slow disk are read in a few seconds. Whoever waits goes on with
/// what was known before.
const PATIENCE: Duration = Duration::from_secs(10);

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Where it looks for models.
    pub folders: ModelsFolder,
    /// What it knows of files from a former life.
    pub store: Store,
    /// The members, who say what is to be served.
    pub view: watch::Receiver<View>,
    /// The models on its disk, which this actor keeps.
    pub inventory: watch::Sender<Arc<Inventory>>,
    /// Tokenizers and templates of those models.
    pub served: Arc<ServedModels>,
    /// Tells peers of models.
    pub membership: MembershipHandle,
    /// Writes down what files sum up to.
    pub ledger: LedgerHandle,
}

/// Speaks to the inventory.
#[derive(Debug, Clone)]
pub struct InventoryHandle(pub(crate) Mailbox<InventoryMessage>);

impl InventoryHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
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
    /// A file of weights was read from end to end.
    Summed(Box<Summed>),
    /// Time passed.
    Pulse,
}

/// What came of reading a file of weights.
#[derive(Debug)]
pub struct Summed {
    model: Arc<Opened>,
    file: PathBuf,
    sum: Result<TensorSum, ModelError>,
}

/// A model whose files are being read.
#[derive(Debug)]
struct Opened {
    name: ModelName,
    stamps: Arc<Stamps>,
    dir: ModelDir,
}

/// The actor.
#[derive(Debug)]
pub struct InventoryActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    /// Those who wait for the look that is under way, if one is.
    looking: Option<Vec<RpcReplyPort<()>>>,
    /// Since when, and whether it was said that this takes long.
    since: (Instant, bool),
    /// Those who asked since it began, and so wait for another.
    next: Option<Vec<RpcReplyPort<()>>>,
    /// What is known of files of weights.
    sums: Sums,
    /// Whether one is being read.
    is_summing: bool,
    /// Files that could not be read, since the last look.
    in_vain: BTreeSet<Stamp>,
    /// Reads the words of models that are to be served.
    reading_ahead: Option<JoinHandle<()>>,
}

impl Actor for InventoryActor {
    type Msg = InventoryMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<InventoryMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        myself.send_interval(LOOK_EVERY, || InventoryMessage::Look(None));
        myself.send_interval(PULSE, || InventoryMessage::Pulse);
        myself.cast(InventoryMessage::Look(None))?;
        let sums = ledger::sums(&deps.store);
        let since = (Instant::now(), false);
        let (is_summing, in_vain) = (false, BTreeSet::new());
        let (looking, next, reading_ahead) = (None, None, None);
        Ok(State {
            watch: Watch::new(ActorKind::Inventory),
            deps,
            looking,
            since,
            next,
            sums,
            is_summing,
            in_vain,
            reading_ahead,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<InventoryMessage>,
        message: InventoryMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        match message {
            InventoryMessage::Pulse => {}
            InventoryMessage::Look(waiting) => {
                state.next.get_or_insert_default().extend(waiting);
                state.notice_silence();
            }
            InventoryMessage::Looked(found) => {
                if let Some(found) = found {
                    state.in_vain.clear();
                    state.publish(found);
                    state.read_ahead();
                }
                state.sum_up(&myself, None);
                for waiting in state.looking.take().unwrap_or_default() {
                    // Whoever waited may have left.
                    drop(waiting.send(()));
                }
            }
            InventoryMessage::Summed(summed) => {
                state.is_summing = false;
                let model = state.summed(*summed);
                state.sum_up(&myself, Some(model));
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
    fn look(&mut self, myself: &ActorRef<InventoryMessage>) {
        let folders = self.deps.folders.clone();
        let before = self.deps.inventory.borrow().clone();
        let in_use = self.in_use();
        let myself = myself.clone();
        self.since = (Instant::now(), false);
        let look = tokio::task::spawn_blocking(move || Inventory::look(&folders, &before, &in_use));
        tokio::spawn(async move {
            let found = look.await.inspect_err(|error| {
                tracing::error!(%error, "looking into the models folder failed");
            });
            // Without the actor nobody waits any more.
            drop(myself.cast(InventoryMessage::Looked(found.ok())));
        });
    }

    /// The models that the cluster is to serve.
    fn in_use(&self) -> BTreeSet<ModelName> {
        self.deps.view.borrow().desired().keys().cloned().collect()
    }

    /// Has the words read of all models that are to be served and whose files are here, unless that is
    /// under way.
    fn read_ahead(&mut self) {
        if self.reading_ahead.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let mut models = self.in_use();
        let inventory = self.deps.inventory.borrow().clone();
        models.retain(|model| inventory.get(model).is_some());
        let served = Arc::clone(&self.deps.served);
        self.reading_ahead =
            Some(tokio::spawn(
                async move { served.read_ahead(models.into_iter().collect()).await },
            ));
    }

    /// A file system that does not answer keeps the look waiting, and nobody else.
    fn notice_silence(&mut self) {
        let (since, is_said) = self.since;
        if self.looking.is_some() && !is_said && since.elapsed() > PATIENCE {
            self.since.1 = true;
            let folder = self.deps.folders.path().display();
            tracing::warn!(%folder, "the models folder does not answer; what was known of it holds until it does");
        }
    }

    fn publish(&self, mut found: Inventory) {
        found.complete(&self.sums);
        let before = self.deps.inventory.borrow().clone();
        if found == *before {
            return;
        }
        for model in found.changed_since(&before) {
            tracing::info!(%model, usable = found.get(model).is_some(), "model files changed");
            self.deps.served.forget(model);
        }
        for (model, away) in found.come_or_gone(&before) {
            match away {
                Some(reason) => {
                    tracing::warn!(%model, reason, "its files cannot be read: what is in \
                    memory goes on, and nothing more can be loaded until they are back");
                }
                None => tracing::info!(%model, "its files can be read again"),
            }
        }
        let (held, unusable) = (found.held(), found.unusable());
        // Whoever hears of a model looks here for its files.
        self.deps.inventory.send_replace(Arc::new(found));
        self.deps.membership.own_models(held, unusable);
    }

    /// Has the next file read that was not, of `model` if that has one.
    fn sum_up(&mut self, myself: &ActorRef<InventoryMessage>, model: Option<Arc<Opened>>) {
        let inventory = self.deps.inventory.borrow().clone();
        let unread = inventory.unread(&self.sums, &self.in_use(), &self.in_vain);
        let Some((name, stamps, file)) = unread.filter(|_| !self.is_summing) else {
            return;
        };
        self.is_summing = true;
        let folders = self.deps.folders.clone();
        let (inbox, stamp) = (myself.clone(), stamps.get(&file).copied());
        let work = move || {
            lower_priority();
            let is_it = |model: &Arc<Opened>| model.name == name && model.stamps == stamps;
            let opened = match model.filter(is_it) {
                Some(opened) => Ok(opened),
                None => folders.open(&name).map(|dir| Arc::new(Opened { name, stamps, dir })),
            };
            let opened = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::debug!(%error, "weights cannot be summed up");
                    // The next look says so.
                    return drop(inbox.cast(InventoryMessage::Look(None)));
                }
            };
            let sum = opened.dir.sum_of(&file);
            // Without the actor nobody wants to know.
            drop(inbox.cast(InventoryMessage::Summed(Box::new(Summed {
                model: opened,
                file,
                sum,
            }))));
        };
        let started = std::thread::Builder::new().name("weights".to_owned()).spawn(work);
        if let Err(error) = started {
            tracing::warn!(%error, "weights cannot be summed up");
            self.is_summing = false;
            self.in_vain.extend(stamp);
        }
    }

    fn summed(&mut self, summed: Summed) -> Arc<Opened> {
        let Summed { model, file, sum } = summed;
        let Some(stamp) = model.stamps.get(&file).copied() else {
            return model;
        };
        match sum {
            Ok(sum) => {
                self.sums.insert(stamp.place(), (stamp, sum));
                let inventory = self.deps.inventory.borrow().clone();
                let gone = inventory.forget_others(&mut self.sums);
                self.deps.ledger.remember_sum(stamp, sum, gone);
                self.publish(Inventory::clone(&inventory));
            }
            Err(error) => {
                tracing::warn!(model = %model.name, %error, "weights were not read to the end");
                self.in_vain.insert(stamp);
            }
        }
        model
    }
}

/// Reading weights is for spare time. On Linux this is about the thread; elsewhere it would be about all of
/// the process.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 15) {
        tracing::debug!(%error, "the priority stays as it is");
    }
}

#[cfg(test)]
mod tests;
