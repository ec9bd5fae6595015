//! What all actors of a node share: who it is, its settings, and where the others are.

use std::net::SocketAddr;
use std::sync::Arc;

use planaria_config::{Incarnation, ModelName, Settings};
use planaria_control::cluster_view::{ClusterView, RecoveryView};
use planaria_control::discovery::AnnouncementKey;
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::supervision::Tally;
use planaria_engine::processor::Processor;
use planaria_gateway::served::ServedModels;
use planaria_protocol::desired::DesiredMap;
use planaria_storage::Store;
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use planaria_transport::Endpoint;
use tokio::sync::watch;

use crate::capabilities::CapabilitiesHandle;
use crate::desired::DesiredHandle;
use crate::inventory::{Inventory, InventoryHandle};
use crate::ledger::LedgerHandle;
use crate::links::LinksHandle;
use crate::membership::MembershipHandle;
use crate::router::Router;
use crate::scheduler::SchedulerHandle;
use crate::sequence::{RunningSequences, SequencesHandle};
use crate::worker::WorkersHandle;

/// One node, from the inside.
#[derive(Debug)]
pub struct Context {
    /// Which life of which node.
    pub me: Incarnation,
    /// Its settings.
    pub settings: Settings,
    /// Where its API listens.
    pub api: SocketAddr,
    /// Memory that it offers, in bytes.
    pub memory_bytes: u64,
    /// How its workers compute on a processor.
    pub processor: Processor,
    /// The models that it has on disk, kept by the inventory.
    pub inventory: watch::Sender<Arc<Inventory>>,
    /// Tokenizers and templates of those models.
    pub served: Arc<ServedModels>,
    /// Its QUIC endpoint.
    pub endpoint: Endpoint,
    /// What its announcements are tagged with.
    pub announcing: AnnouncementKey,
    /// Its store.
    pub store: Store,
    /// The way of data frames.
    pub router: Router,
    /// What the cluster is to serve, as it lies on disk, kept by the desired state's actor.
    pub desired: watch::Sender<DesiredMap>,
    /// The members, kept by membership.
    pub view: watch::Sender<View>,
    /// The plans in force and the states of models, kept by the scheduler.
    pub plans: watch::Sender<PlanTable>,
    /// The cluster as clients see it, kept by the scheduler.
    pub cluster: watch::Sender<Arc<ClusterView>>,
    /// What this node's sequences have been through, kept by sequences.
    pub recoveries: watch::Sender<Vec<RecoveryView>>,
    /// Whether it was asked to stop: it takes no requests any more, and lets those that run end.
    pub leaving: watch::Sender<bool>,
    /// Whether sequences pass through its layers, kept by workers.
    pub busy: watch::Sender<bool>,
    /// The sequences of its clients, and the plans under which they run.
    pub running: RunningSequences,
    /// How often its parts were started again.
    pub restarts: Tally,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// Where spans go.
    pub traces: Traces,
    /// The actors.
    pub handles: Handles,
}

/// The parts of the tree that others speak to.
#[derive(Debug, Clone)]
pub struct Handles {
    /// Writes to the store.
    pub ledger: LedgerHandle,
    /// Keeps links to peers.
    pub links: LinksHandle,
    /// Knows who is there.
    pub membership: MembershipHandle,
    /// Measures this node and its links.
    pub capabilities: CapabilitiesHandle,
    /// Makes and follows plans.
    pub scheduler: SchedulerHandle,
    /// Keeps the worker processes.
    pub workers: WorkersHandle,
    /// Runs the generations of this node's clients.
    pub sequences: SequencesHandle,
    /// Looks for models on the disk.
    pub inventory: InventoryHandle,
    /// Keeps what the cluster is to serve.
    pub desired: DesiredHandle,
}

impl Handles {
    /// Handles to places that nobody fills yet.
    #[must_use]
    pub fn vacant() -> Self {
        Self {
            ledger: LedgerHandle::vacant(),
            links: LinksHandle::vacant(),
            membership: MembershipHandle::vacant(),
            capabilities: CapabilitiesHandle::vacant(),
            scheduler: SchedulerHandle::vacant(),
            workers: WorkersHandle::vacant(),
            sequences: SequencesHandle::vacant(),
            inventory: InventoryHandle::vacant(),
            desired: DesiredHandle::vacant(),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;

impl Context {
    /// The folder of a model on this machine.
    #[must_use]
    pub fn model_dir(&self, model: &ModelName) -> std::path::PathBuf {
        self.settings.models_dir.join(model.as_str())
    }
}
