//! What a node is made of, and what each of its actors gets of that.
//!
//! Only who puts a node together knows all of it; an actor knows its own `Deps`.

use std::net::SocketAddr;
use std::sync::Arc;

use planaria_config::{Incarnation, ModelName, Settings};
use planaria_control::cluster_view::{ClusterView, ModelView, RecoveryView, ThisNode};
use planaria_control::discovery::AnnouncementKey;
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::scheduler::placement::Sizing;
use planaria_control::supervision::Tally;
use planaria_engine::model_dir::ModelsFolder;
use planaria_engine::processor::Processor;
use planaria_gateway::backups::Backups;
use planaria_gateway::previewer::Previewer;
use planaria_gateway::served::ServedModels;
use planaria_gateway::stored_answers::StoredAnswers;
use planaria_gateway::{ApiKey, Limits};
use planaria_protocol::desired::{DesiredMap, DesiredSpec};
use planaria_protocol::state::SequenceCounts;
use planaria_storage::Store;
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use planaria_transport::Endpoint;
use tokio::sync::watch;

use crate::capabilities::{self, CapabilitiesHandle};
use crate::catalog::NodeCatalog;
use crate::desired::{self, DesiredHandle};
use crate::discovery;
use crate::inventory::{self, Inventory, InventoryHandle};
use crate::ledger::{self, LedgerHandle};
use crate::links::{self, LinksHandle};
use crate::membership::{self, MembershipHandle};
use crate::router::Router;
use crate::scheduler::{self, SchedulerHandle};
use crate::sequence::{self, RunningSequences, SequencesHandle};
use crate::worker::{self, WorkersHandle};

/// What the parts of a node are made of.
#[derive(Debug)]
pub struct Made {
    /// Its settings.
    pub settings: Settings,
    /// Which life of which node.
    pub me: Incarnation,
    /// What the cluster is to serve, as it lies on disk.
    pub desired: DesiredMap,
    /// Where its API listens.
    pub api: SocketAddr,
    /// Memory that it offers, in bytes.
    pub memory_bytes: u64,
    /// How its workers compute on a processor.
    pub processor: Processor,
    /// The models that it has on disk.
    pub inventory: Inventory,
    /// Its QUIC endpoint.
    pub endpoint: Endpoint,
    /// What its announcements are tagged with.
    pub announcing: AnnouncementKey,
    /// Its store.
    pub store: Store,
    /// What it counts.
    pub metrics: Metrics,
    /// Where spans go.
    pub traces: Traces,
}

/// All parts of one node.
#[derive(Debug)]
pub struct Parts {
    /// Which life of which node.
    pub me: Incarnation,
    /// Its settings.
    pub settings: Arc<Settings>,
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
    pub router: Arc<Router>,
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
    pub running: Arc<RunningSequences>,
    /// How often its parts were started again.
    pub restarts: Arc<Tally>,
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

impl Parts {
    /// The parts of a node whose actors have yet to start.
    #[must_use]
    pub fn of(made: Made) -> Self {
        let Made { settings, me, desired, api, memory_bytes, processor, inventory, .. } = made;
        let Made { endpoint, announcing, store, metrics, traces, .. } = made;
        let handles = Handles::vacant();
        let metrics = Arc::new(metrics);
        let sequences = handles.sequences.clone();
        let router = Router::new(me.node, sequences, traces.clone(), Arc::clone(&metrics));
        // Not ready until the scheduler says so.
        let starting = |(name, wanted): (&ModelName, &DesiredSpec)| {
            ModelView::starting(name, wanted.strategy.unwrap_or(settings.strategy))
        };
        let name = settings.name.clone();
        let cluster = ClusterView {
            node: ThisNode { id: me.node, name, incarnation: me.boot_count },
            nodes: Vec::new(),
            models: desired.wanted().map(starting).collect(),
            sequences: SequenceCounts::default(),
            recoveries: Vec::new(),
        };
        Self {
            me,
            api,
            memory_bytes,
            processor,
            inventory: watch::Sender::new(Arc::new(inventory)),
            served: Arc::new(
                ServedModels::new(settings.models_dir.clone())
                    .reading(settings.tool_parsers.clone(), settings.reasoning_parsers.clone()),
            ),
            endpoint,
            announcing,
            store,
            router: Arc::new(router),
            desired: watch::Sender::new(desired),
            view: watch::Sender::default(),
            plans: watch::Sender::default(),
            cluster: watch::Sender::new(Arc::new(cluster)),
            recoveries: watch::Sender::default(),
            leaving: watch::Sender::new(false),
            busy: watch::Sender::new(false),
            running: Arc::default(),
            restarts: Arc::default(),
            metrics,
            traces,
            handles,
            settings: Arc::new(settings),
        }
    }

    /// What the gateway needs, which takes up to so many connections.
    #[must_use]
    pub fn for_gateway(
        &self,
        stored: StoredAnswers,
        api_key: Option<ApiKey>,
        connections: usize,
    ) -> planaria_gateway::State {
        let settings = &self.settings;
        let usual = Limits::default();
        planaria_gateway::State {
            generator: Arc::new(self.handles.sequences.clone()),
            view: self.cluster.subscribe(),
            catalog: Arc::new(self.catalog()),
            previewer: Previewer {
                view: self.view.subscribe(),
                plans: self.plans.subscribe(),
                sizing: Sizing::of(settings),
            },
            backups: Backups::of(self.store.clone(), &settings.data_dir),
            stored,
            metrics: Arc::clone(&self.metrics),
            traces: self.traces.clone(),
            models: Arc::clone(&self.served),
            api_key,
            allowed_hosts: settings.allowed_hosts.clone(),
            cors_origins: settings.cors_origins.clone(),
            context: settings.context,
            leaving: self.leaving.subscribe(),
            limits: Limits { connections: usual.connections.min(connections), ..usual },
        }
    }

    pub(crate) fn for_ledger(&self) -> ledger::Deps {
        ledger::Deps { store: self.store.clone() }
    }

    pub(crate) fn for_links(&self) -> links::Deps {
        links::Deps {
            me: self.me,
            endpoint: self.endpoint.clone(),
            join: self.settings.join.clone(),
            router: Arc::clone(&self.router),
            membership: self.handles.membership.clone(),
            capabilities: self.handles.capabilities.clone(),
            peer: self.for_peer(),
        }
    }

    pub(crate) fn for_peer(&self) -> links::PeerDeps {
        links::PeerDeps {
            router: Arc::clone(&self.router),
            metrics: Arc::clone(&self.metrics),
            membership: self.handles.membership.clone(),
            scheduler: self.handles.scheduler.clone(),
            capabilities: self.handles.capabilities.clone(),
        }
    }

    pub(crate) fn for_discovery(&self) -> discovery::Deps {
        discovery::Deps {
            me: self.me,
            listen: self.endpoint.local_addr(),
            announcing: self.announcing.clone(),
            mdns: self.settings.mdns,
            links: self.handles.links.clone(),
        }
    }

    pub(crate) fn for_membership(&self) -> membership::Deps {
        membership::Deps {
            me: self.me,
            name: self.settings.name.clone(),
            pins: self.settings.pins.iter().cloned().collect(),
            listen: self.endpoint.local_addr(),
            api: self.api,
            memory_bytes: self.memory_bytes,
            inventory: self.inventory.subscribe(),
            wanted: self.desired.subscribe(),
            view: self.view.clone(),
            running: Arc::clone(&self.running),
            restarts: Arc::clone(&self.restarts),
            metrics: Arc::clone(&self.metrics),
            router: Arc::clone(&self.router),
            links: self.handles.links.clone(),
            capabilities: self.handles.capabilities.clone(),
            desired: self.handles.desired.clone(),
            scheduler: self.handles.scheduler.clone(),
            workers: self.handles.workers.clone(),
            sequences: self.handles.sequences.clone(),
        }
    }

    pub(crate) fn for_capabilities(&self) -> capabilities::Deps {
        capabilities::Deps {
            store: self.store.clone(),
            settings: Arc::clone(&self.settings),
            processor: self.processor,
            inventory: self.inventory.subscribe(),
            view: self.view.subscribe(),
            router: Arc::clone(&self.router),
            metrics: Arc::clone(&self.metrics),
            membership: self.handles.membership.clone(),
            ledger: self.handles.ledger.clone(),
        }
    }

    pub(crate) fn for_scheduler(&self) -> scheduler::Deps {
        scheduler::Deps {
            me: self.me,
            settings: Arc::clone(&self.settings),
            store: self.store.clone(),
            view: self.view.subscribe(),
            recoveries: self.recoveries.subscribe(),
            plans: self.plans.clone(),
            cluster: self.cluster.clone(),
            router: Arc::clone(&self.router),
            ledger: self.handles.ledger.clone(),
            membership: self.handles.membership.clone(),
            workers: self.handles.workers.clone(),
        }
    }

    pub(crate) fn for_workers(&self) -> worker::Deps {
        worker::Deps {
            me: self.me,
            load_timeout: self.settings.load_timeout,
            plans: self.plans.subscribe(),
            inventory: self.inventory.subscribe(),
            busy: self.busy.clone(),
            router: Arc::clone(&self.router),
            restarts: Arc::clone(&self.restarts),
            membership: self.handles.membership.clone(),
            scheduler: self.handles.scheduler.clone(),
            inventory_actor: self.handles.inventory.clone(),
            host: self.for_host(),
        }
    }

    pub(crate) fn for_host(&self) -> worker::HostDeps {
        worker::HostDeps {
            me: self.me.node,
            settings: Arc::clone(&self.settings),
            processor: self.processor,
            inventory: self.inventory.subscribe(),
            view: self.view.subscribe(),
            router: Arc::clone(&self.router),
            restarts: Arc::clone(&self.restarts),
            metrics: Arc::clone(&self.metrics),
            traces: self.traces.clone(),
            workers: self.handles.workers.clone(),
            inventory_actor: self.handles.inventory.clone(),
        }
    }

    pub(crate) fn for_sequences(&self) -> sequence::Deps {
        sequence::Deps {
            max_queued: self.settings.max_queued,
            leaving: self.leaving.subscribe(),
            plans: self.plans.subscribe(),
            recoveries: self.recoveries.clone(),
            metrics: Arc::clone(&self.metrics),
            membership: self.handles.membership.clone(),
            sequence: self.for_sequence(),
        }
    }

    pub(crate) fn for_sequence(&self) -> sequence::SequenceDeps {
        sequence::SequenceDeps {
            me: self.me,
            settings: Arc::clone(&self.settings),
            view: self.view.subscribe(),
            plans: self.plans.subscribe(),
            running: Arc::clone(&self.running),
            router: Arc::clone(&self.router),
            metrics: Arc::clone(&self.metrics),
            traces: self.traces.clone(),
            sequences: self.handles.sequences.clone(),
            membership: self.handles.membership.clone(),
        }
    }

    pub(crate) fn for_inventory(&self) -> inventory::Deps {
        inventory::Deps {
            folders: ModelsFolder::from(&*self.settings),
            store: self.store.clone(),
            view: self.view.subscribe(),
            inventory: self.inventory.clone(),
            served: Arc::clone(&self.served),
            membership: self.handles.membership.clone(),
            ledger: self.handles.ledger.clone(),
        }
    }

    pub(crate) fn for_desired(&self) -> desired::Deps {
        desired::Deps {
            me: self.me.node,
            store: self.store.clone(),
            plans: self.plans.subscribe(),
            wanted: self.desired.clone(),
            membership: self.handles.membership.clone(),
            inventory: self.handles.inventory.clone(),
        }
    }

    fn catalog(&self) -> NodeCatalog {
        NodeCatalog {
            me: self.me.node,
            models_dir: self.settings.models_dir.clone(),
            held: self.inventory.subscribe(),
            wanted: self.desired.subscribe(),
            view: self.view.subscribe(),
            cluster: self.cluster.subscribe(),
            inventory: self.handles.inventory.clone(),
            desired: self.handles.desired.clone(),
        }
    }
}
