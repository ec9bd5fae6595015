//! A gateway on a loopback port.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use planaria_config::{NodeId, Strategy};
use planaria_control::cluster_view::{ClusterView, ModelView, ThisNode};
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::scheduler::placement::Sizing;
use planaria_gateway::backups::Backups;
use planaria_gateway::model_list::{CatalogModel, Holding, ModelList};
use planaria_gateway::previewer::Previewer;
use planaria_gateway::served::ServedModels;
use planaria_gateway::stored_answers::StoredAnswers;
use planaria_gateway::{Limits, State};
use planaria_protocol::state::{ModelState, SequenceCounts};
use planaria_storage::Store;
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::double::{CatalogDouble, Double, Script};
use crate::model;

/// Ends with the test.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) double: Arc<Double>,
    pub(crate) catalog: Arc<CatalogDouble>,
    pub(crate) view: watch::Sender<Arc<ClusterView>>,
    pub(crate) leaving: watch::Sender<bool>,
    pub(crate) models_dir: PathBuf,
    pub(crate) shutdown: Option<oneshot::Sender<()>>,
    pub(crate) task: JoinHandle<std::io::Result<()>>,
}

/// How a server differs from the usual.
pub(crate) struct Options {
    pub(crate) api_key: Option<&'static str>,
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) cors_origins: Vec<String>,
    pub(crate) context: u32,
    pub(crate) limits: Limits,
    pub(crate) listen: &'static str,
    pub(crate) store: Store,
    pub(crate) stored_bytes: u64,
    /// Whether the models folder has the model, or gets it later.
    pub(crate) has_model: bool,
    /// Generations of former lives, whose names come before those of this one.
    pub(crate) past: u128,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            api_key: None,
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            context: 1000,
            limits: Limits::default(),
            listen: "127.0.0.1:0",
            store: Store::in_memory(),
            stored_bytes: 1 << 20,
            has_model: true,
            past: 0,
        }
    }
}

/// A server whose generator plays `scripts`.
pub(crate) async fn start(scripts: impl IntoIterator<Item = Script>) -> Server {
    start_with(scripts, Options::default()).await
}

/// The same with some differences.
pub(crate) async fn start_with(
    scripts: impl IntoIterator<Item = Script>,
    options: Options,
) -> Server {
    let listener = TcpListener::bind(options.listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let double = Double::after(options.past, scripts);
    let models_dir = model::models_dir();
    if options.has_model {
        model::write(&models_dir);
    }
    let catalog = Arc::new(CatalogDouble::new(list()));
    let (view, seen) = watch::channel(Arc::new(cluster()));
    let leaving = watch::Sender::new(false);
    let stored = StoredAnswers::open(options.store.clone(), options.stored_bytes).unwrap();
    let state = State {
        generator: Arc::clone(&double) as Arc<_>,
        view: seen,
        catalog: Arc::clone(&catalog) as Arc<_>,
        models: Arc::new(ServedModels::new(&models_dir)),
        previewer: previewer(),
        backups: Backups::of(options.store, &models_dir),
        stored,
        metrics: Arc::new(Metrics::new().unwrap()),
        traces: Traces::off(),
        api_key: options.api_key.map(|key| key.parse().unwrap()),
        allowed_hosts: options.allowed_hosts,
        cors_origins: options.cors_origins,
        context: options.context,
        leaving: leaving.subscribe(),
        limits: options.limits,
    };
    let (shutdown, asked) = oneshot::channel();
    let asked = Box::pin(async { drop(asked.await) });
    let task = tokio::spawn(planaria_gateway::serve(listener, state, asked));
    Server { address, double, catalog, view, leaving, models_dir, shutdown: Some(shutdown), task }
}

/// One node that can answer.
pub(crate) fn cluster() -> ClusterView {
    ClusterView {
        node: ThisNode { id: NodeId::from_bytes([1; 32]), name: "a".to_owned(), incarnation: 1 },
        nodes: Vec::new(),
        models: vec![model_view(model::NAME)],
        sequences: SequenceCounts::default(),
        recoveries: Vec::new(),
    }
}

/// A model that can answer.
pub(crate) fn model_view(name: &str) -> ModelView {
    ModelView {
        name: name.parse().unwrap(),
        state: ModelState::Ready,
        reason: String::new(),
        strategy: Strategy::RingMemoryWeighted,
        epoch: None,
        context: None,
        unpinned: String::new(),
        left_out: Vec::new(),
        stages: Vec::new(),
        content: None,
        doubtful: Vec::new(),
        n_minus_1_safe: false,
        failover: BTreeMap::new(),
    }
}

/// Knows of no member.
fn previewer() -> Previewer {
    let sizing = Sizing { strategy: Strategy::Latency, context: 64, max_sequences: 1, streams: 1 };
    let (_, view) = watch::channel(View::default());
    let (_, plans) = watch::channel(PlanTable::default());
    Previewer { view, plans, sizing }
}

/// One model that is held and wanted by nobody.
fn list() -> ModelList {
    let held = CatalogModel {
        name: model::NAME.parse().unwrap(),
        wanted: None,
        changed: None,
        state: None,
        reason: String::new(),
        held: vec![Holding {
            node: NodeId::from_bytes([1; 32]),
            name: "a".to_owned(),
            digest: "ab".repeat(32).parse().unwrap(),
            layers: 4,
            bytes: 1 << 20,
            context: 1000,
        }],
        unusable: Vec::new(),
    };
    ModelList { models: vec![held], models_dir: "/models".into(), passed_over: Vec::new() }
}

impl Server {
    pub(crate) fn client(&self) -> Client {
        Client::new(format!("http://{}", self.address))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        drop(std::fs::remove_dir_all(&self.models_dir));
    }
}
