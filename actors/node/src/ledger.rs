//! Actor: what the node must remember across restarts.
//!
//! Parent: root. Children: none. Who the node is, is read before the tree starts ([`Memory::recall`]), the
//! rest by the actors that need it when they start, also when they are started again; this one only writes,
//! through the store's own writer thread, so no handler waits for a disk. What the store refuses is kept,
//! and written once it is open again. When the actor dies nothing is lost: what was acknowledged is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use planaria_config::{Incarnation, ModelName};
use planaria_control::capabilities::Measured;
use planaria_control::desired::settings::assert;
use planaria_control::supervision::ActorKind;
use planaria_engine::model_dir::{Stamp as FileStamp, TensorSum};
use planaria_protocol::desired::{DesiredMap, Entry};
use planaria_protocol::plan::Plan;
use planaria_storage::{Batch, CommitError, ReadError, Store, Table};
use planaria_transport::Identity;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use thiserror::Error;

use crate::inventory::Sums;
use crate::mailbox::Mailbox;
use crate::watchdog::{PULSE, Watch};

const IDENTITY: Table<str, Vec<u8>> = Table::new("identity");
const BOOT_COUNT: Table<str, u64> = Table::new("generation");
const PLANS: Table<str, Plan> = Table::new("plan");
const MEASURED: Table<str, Measured> = Table::new("measured");
const DESIRED: Table<str, Entry> = Table::new("desired");
/// The models that the node's settings have asserted.
const ASSERTED: Table<str, ()> = Table::new("asserted");

/// What files of weights sum up to, by where they lie.
const SUMS: Table<str, (FileStamp, TensorSum)> = Table::new("weights");

/// The key of the only row of a table.
const ONLY: &str = "self";

/// What a node knows of itself when it starts.
#[derive(Debug)]
pub struct Memory {
    /// Its key, the same as ever.
    pub identity: Identity,
    /// This life.
    pub incarnation: Incarnation,
    /// What the cluster is to serve, with what the settings assert.
    pub desired: DesiredMap,
}

/// Why the node cannot know who it is.
#[derive(Debug, Error)]
pub enum RecallError {
    /// The store could not be read.
    #[error("the node's memory cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The store could not be written.
    #[error("the node's memory cannot be written: {0}")]
    Write(#[from] CommitError),
    /// The stored key is not one.
    #[error(
        "the node's stored key is damaged: restore a backup, or remove the data folder to start as a new node"
    )]
    Identity,
    /// The operating system has no randomness.
    #[error("no key could be made: {0}")]
    Randomness(String),
}

impl Memory {
    /// Reads the store, and begins a new life of the node in it: on return the new boot count is
    /// on disk, so no two lives can share one, and so is what the `named` models of the settings
    /// change in the desired state `now` (milliseconds since 1970).
    ///
    /// # Errors
    /// When the store cannot be read or written, or holds a damaged key.
    pub fn recall(store: &Store, named: &[ModelName], now: u64) -> Result<Self, RecallError> {
        let mut batch = Batch::new();
        let identity = match IDENTITY.get(store, ONLY)? {
            Some(seed) => {
                let seed = seed.try_into().map_err(|_| RecallError::Identity)?;
                Identity::from_seed(&seed).map_err(|_| RecallError::Identity)?
            }
            None => {
                let identity =
                    Identity::generate().map_err(|e| RecallError::Randomness(e.to_string()))?;
                batch.put(&IDENTITY, ONLY, &identity.seed().to_vec());
                identity
            }
        };
        let boot_count = BOOT_COUNT.get(store, ONLY)?.unwrap_or(0) + 1;
        batch.put(&BOOT_COUNT, ONLY, &boot_count);
        let incarnation = Incarnation { node: identity.node_id(), boot_count };
        let desired = recall_desired(store, incarnation, named, now, &mut batch)?;
        store.commit(batch)?;
        Ok(Self { identity, incarnation, desired })
    }
}

/// The last plans that the node followed. Those that cannot be read are logged and forgotten: peers know
/// them.
#[must_use]
pub fn plans(store: &Store) -> Vec<Plan> {
    let rows = PLANS.rows(store).unwrap_or_else(|error| vec![Err(error)]);
    rows.into_iter().filter_map(|row| Some(read(row)?.1)).collect()
}

/// What the node found out about its machine, if that can be read.
#[must_use]
pub fn measured(store: &Store) -> Measured {
    read(MEASURED.get(store, ONLY)).flatten().unwrap_or_default()
}

/// Has a store hold what a probe found, for tests of who reads it.
#[cfg(test)]
pub(crate) fn write_measured(store: &Store, measured: &Measured) {
    let mut batch = Batch::new();
    batch.put(&MEASURED, ONLY, measured);
    store.commit(batch).unwrap();
}

/// What files of weights sum up to, as far as that can be read.
#[must_use]
pub fn sums(store: &Store) -> Sums {
    let rows = SUMS.rows(store).unwrap_or_else(|error| vec![Err(error)]);
    let rows = rows.into_iter().filter_map(|row| Some(read(row)?.1));
    rows.map(|(stamp, sum)| (stamp.place(), (stamp, sum))).collect()
}

fn sum_key((device, inode): (u64, u64)) -> String {
    format!("{device:x}-{inode:x}")
}

/// The models that the cluster was to serve when the node last heard of it, as far as that can be read.
#[must_use]
pub fn wanted(store: &Store) -> Vec<ModelName> {
    let rows = DESIRED.scan(store).unwrap_or_default().into_iter();
    let wanted = rows.filter(|(_, entry)| entry.wanted.is_some());
    wanted.filter_map(|(name, _)| name.parse().ok()).collect()
}

fn read<T>(read: Result<T, ReadError>) -> Option<T> {
    read.inspect_err(|error| tracing::error!(%error, "what the node remembered is lost")).ok()
}

/// Makes the next life of a node that was restored from a backup younger than any before: lives since
/// the backup are not in it, and peers would take a life that they know for a ghost. A node starts
/// less than once each second, so the seconds since 1970 are more than any former boot count.
///
/// # Errors
/// When the store cannot be read or written.
pub fn begin_after_restore(store: &Store, unix_seconds: u64) -> Result<(), RecallError> {
    let former = BOOT_COUNT.get(store, ONLY)?.unwrap_or(0);
    let mut batch = Batch::new();
    batch.put(&BOOT_COUNT, ONLY, &former.max(unix_seconds));
    // They are about the files of the machine that wrote the backup.
    for (place, _) in SUMS.scan(store)? {
        batch.remove(&SUMS, place.as_str());
    }
    store.commit(batch)?;
    Ok(())
}

fn recall_desired(
    store: &Store,
    me: Incarnation,
    named: &[ModelName],
    now: u64,
    batch: &mut Batch,
) -> Result<DesiredMap, ReadError> {
    // A row under what is no model's name is from nowhere; it names no model to serve either.
    let model = |name: String| name.parse::<ModelName>().ok();
    let rows = DESIRED.scan(store)?.into_iter();
    let mut map: DesiredMap =
        rows.filter_map(|(name, entry)| Some((model(name)?, entry))).collect();
    let asserted: BTreeSet<ModelName> =
        ASSERTED.scan(store)?.into_iter().filter_map(|(name, ())| model(name)).collect();
    let assertion = assert(me.node, now, &map, &asserted, named);
    for (model, entry) in &assertion.put {
        map.put(model, *entry);
        batch.put(&DESIRED, model.as_str(), entry);
    }
    for model in &assertion.asserted {
        batch.put(&ASSERTED, model.as_str(), &());
    }
    for (model, is_forgotten) in &assertion.dropped {
        batch.remove(&ASSERTED, model.as_str());
        if *is_forgotten {
            map.forget(model);
            batch.remove(&DESIRED, model.as_str());
        }
        tracing::info!(%model, forgotten = is_forgotten, "the settings name this model no more; \
            where others ask for it, `planaria models rm` removes it");
    }
    for (model, entry) in &assertion.overruled {
        tracing::warn!(%model, peer = ?entry.stamp.node(), "the settings name a model that was \
            removed from the cluster: `planaria models add` brings it back");
    }
    Ok(map)
}

/// Writes entries of the desired state and removes others, and calls `then` on the store's thread.
pub(crate) fn store_desired(
    store: &Store,
    put: &[(ModelName, Entry)],
    forget: &[ModelName],
    then: impl FnOnce(Result<(), CommitError>) + Send + 'static,
) {
    let mut batch = Batch::new();
    for (model, entry) in put {
        batch.put(&DESIRED, model.as_str(), entry);
    }
    for model in forget {
        batch.remove(&DESIRED, model.as_str());
    }
    store.commit_then(batch, then);
}

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The store that it writes to.
    pub store: Store,
}

/// Speaks to the ledger.
#[derive(Debug, Clone)]
pub struct LedgerHandle(pub(crate) Mailbox<LedgerMessage>);

impl LedgerHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
    }

    /// Remembers the plan that is in force for its model.
    pub fn remember_plan(&self, plan: Arc<Plan>) {
        self.0.tell(LedgerMessage::Plan(plan));
    }

    /// Remembers what a file of weights sums up to, and forgets others.
    pub fn remember_sum(&self, stamp: FileStamp, sum: TensorSum, gone: Vec<(u64, u64)>) {
        self.0.tell(LedgerMessage::Sum(stamp, sum, gone));
    }

    /// Remembers what was measured of this machine.
    pub fn remember_measures(&self, measured: Measured) {
        self.0.tell(LedgerMessage::Measured(measured));
    }
}

/// What the ledger is told.
#[derive(Debug)]
pub enum LedgerMessage {
    /// To remember the plan that is in force for its model.
    Plan(Arc<Plan>),
    /// To remember what was measured of this machine.
    Measured(Measured),
    /// What a file of weights sums up to, and whose sums are of no use any more.
    Sum(FileStamp, TensorSum, Vec<(u64, u64)>),
    /// The store did not take this.
    Refused(What),
    /// The store takes something again.
    StoreReady,
    /// Time passed.
    Pulse,
}

/// What the ledger remembers: one row each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The plan in force for a model.
    Plan(ModelName),
    /// What was measured.
    Measured,
}

/// The actor.
#[derive(Debug)]
pub struct LedgerActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    /// The newest of what it was told to remember: a plan of each model.
    plans: BTreeMap<ModelName, Arc<Plan>>,
    measured: Measured,
    /// What the store refused. The store says when it takes it, as long as this is not empty.
    refused: BTreeSet<What>,
}

impl Actor for LedgerActor {
    type Msg = LedgerMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<LedgerMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        myself.send_interval(PULSE, || LedgerMessage::Pulse);
        let (plans, refused) = (BTreeMap::new(), BTreeSet::new());
        Ok(State {
            watch: Watch::new(ActorKind::Ledger),
            deps,
            plans,
            measured: Measured::default(),
            refused,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<LedgerMessage>,
        message: LedgerMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        match message {
            LedgerMessage::Pulse => {}
            LedgerMessage::Plan(plan) => {
                let what = What::Plan(plan.model().clone());
                state.plans.insert(plan.model().clone(), plan);
                state.write(&myself, what);
            }
            LedgerMessage::Measured(measured) => {
                state.measured = measured;
                state.write(&myself, What::Measured);
            }
            LedgerMessage::Sum(stamp, sum, gone) => state.write_sum(stamp, sum, gone),
            LedgerMessage::Refused(what) => {
                if state.refused.is_empty() {
                    // Without the actor nobody waits any more.
                    let ready = move || drop(myself.cast(LedgerMessage::StoreReady));
                    state.deps.store.when_ready(ready);
                }
                state.refused.insert(what);
            }
            LedgerMessage::StoreReady => {
                for what in std::mem::take(&mut state.refused) {
                    state.write(&myself, what);
                }
            }
        }
        Ok(())
    }
}

impl State {
    /// One that is lost is found again by reading the file once more.
    fn write_sum(&self, stamp: FileStamp, sum: TensorSum, gone: Vec<(u64, u64)>) {
        let mut batch = Batch::new();
        for place in gone {
            batch.remove(&SUMS, sum_key(place).as_str());
        }
        batch.put(&SUMS, sum_key(stamp.place()).as_str(), &(stamp, sum));
        self.deps.store.commit_then(batch, |result| {
            if let Err(error) = result {
                tracing::debug!(%error, "what weights sum up to could not be stored");
            }
        });
    }

    fn write(&self, myself: &ActorRef<LedgerMessage>, what: What) {
        let mut batch = Batch::new();
        match &what {
            What::Plan(model) => {
                if let Some(plan) = self.plans.get(model) {
                    batch.put(&PLANS, model.as_str(), &**plan);
                }
            }
            What::Measured => {
                batch.put(&MEASURED, ONLY, &self.measured);
            }
        }
        let myself = myself.clone();
        self.deps.store.commit_then(batch, move |result| match result {
            Ok(()) => {}
            // It would be refused again.
            Err(error @ (CommitError::Encode { .. } | CommitError::TooLarge { .. })) => {
                tracing::error!(%error, ?what, "it cannot be stored");
            }
            Err(error) => {
                tracing::error!(%error, ?what, "it could not be stored; it is once the store is open again");
                // Without the actor nobody writes it; a restart of the node makes a new plan.
                drop(myself.cast(LedgerMessage::Refused(what)));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use planaria_protocol::desired::{DesiredSpec, Stamp};

    use super::*;
    use crate::parts::testing;

    const NOON: u64 = 1_800_000_000_000;

    fn named() -> Vec<ModelName> {
        vec!["a".parse().unwrap(), "org/b".parse().unwrap()]
    }

    #[test]
    fn a_node_recalls_who_it_is_and_what_the_cluster_serves() {
        let store = Store::in_memory();
        let first = Memory::recall(&store, &named(), NOON).unwrap();
        assert_eq!(first.desired, DesiredMap::granted(first.incarnation.node, named()));
        let second = Memory::recall(&store, &named(), NOON).unwrap();
        assert_eq!(second.desired, first.desired);
        assert_eq!(second.incarnation.node, first.incarnation.node);
        assert_eq!(second.incarnation.boot_count, first.incarnation.boot_count + 1);
    }

    #[test]
    fn settings_of_a_node_alone_are_followed() {
        let store = Store::in_memory();
        let mut models = named();
        Memory::recall(&store, &models, NOON).unwrap();
        models.remove(0);
        for _ in 0..2 {
            let memory = Memory::recall(&store, &models, NOON).unwrap();
            assert_eq!(
                memory.desired.wanted().map(|(model, _)| model).collect::<Vec<_>>(),
                [&models[0]]
            );
        }
    }

    #[test]
    fn a_removed_model_stays_removed_until_the_settings_are_changed() {
        let store = Store::in_memory();
        let first = Memory::recall(&store, &named(), NOON).unwrap();
        let model: ModelName = "org/b".parse().unwrap();
        let stamp =
            planaria_protocol::desired::clock::Clock::new(first.incarnation.node).tick(NOON, None);
        let (told, hear) = std::sync::mpsc::channel();
        let gone = [(model.clone(), Entry { stamp, wanted: None })];
        store_desired(&store, &gone, &["a".parse().unwrap()], move |result| {
            told.send(result).unwrap();
        });
        hear.recv().unwrap().unwrap();
        let again = Memory::recall(&store, &named(), NOON).unwrap().desired;
        assert_eq!(again, DesiredMap::from_iter(gone));

        // Named no more, and then again.
        Memory::recall(&store, &[], NOON).unwrap();
        let back = Memory::recall(&store, &named(), NOON + 1).unwrap().desired;
        let entry = back.get(&model).unwrap();
        assert_eq!(entry.wanted, Some(DesiredSpec::default()));
        assert!(entry.stamp > stamp && entry.stamp != Stamp::unsaid(first.incarnation.node));
    }

    #[test]
    fn a_restored_node_knows_nothing_of_files() {
        let store = Store::in_memory();
        let about = std::fs::metadata(std::env::current_exe().unwrap()).unwrap();
        let (stamp, sum) = (FileStamp::of(&about), TensorSum::default());
        let mut batch = Batch::new();
        batch.put(&SUMS, sum_key(stamp.place()).as_str(), &(stamp, sum));
        store.commit(batch).unwrap();
        assert_eq!(sums(&store), Sums::from([(stamp.place(), (stamp, sum))]));
        begin_after_restore(&store, 1).unwrap();
        assert_eq!(sums(&store), Sums::new());
    }

    /// Waits for something that the store is to hold.
    async fn holds(store: &Store, holds: impl Fn(&Store) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds(store) {
            assert!(Instant::now() < deadline, "it is not written");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn plan() -> Arc<Plan> {
        let me = Incarnation { node: planaria_config::NodeId::from_bytes([1; 32]), boot_count: 1 };
        testing::plan(3, &[(me, 0, 3)])
    }

    #[tokio::test]
    async fn what_is_told_is_on_disk_soon() {
        let store = Store::in_memory();
        let (actor, _) =
            Actor::spawn(None, LedgerActor, Deps { store: store.clone() }).await.unwrap();
        let ledger = LedgerHandle::vacant();
        ledger.0.fill(actor.clone());
        ledger.remember_plan(plan());
        holds(&store, |store| plans(store) == [(*plan()).clone()]).await;
        actor.stop(None);
    }

    #[tokio::test]
    async fn what_a_full_disk_refused_is_written_when_there_is_room() {
        let (store, is_full) = testing::filling_store();
        let (actor, _) =
            Actor::spawn(None, LedgerActor, Deps { store: store.clone() }).await.unwrap();
        let ledger = LedgerHandle::vacant();
        ledger.0.fill(actor.clone());
        is_full.store(true, std::sync::atomic::Ordering::Relaxed);
        ledger.remember_plan(plan());
        holds(&store, |store| store.closed().is_some()).await;
        is_full.store(false, std::sync::atomic::Ordering::Relaxed);
        holds(&store, |store| plans(store).len() == 1).await;
        actor.stop(None);
    }
}
