//! A node without its tree, for tests of one actor.

use std::sync::Arc;

use planaria_config::{ClusterKey, Incarnation, Machine, NodeId, Settings};
use planaria_control::cluster_view::{ClusterView, ThisNode};
use planaria_control::discovery::AnnouncementKey;
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_engine::processor::Processor;
use planaria_gateway::served::ServedModels;
use planaria_protocol::desired::DesiredMap;
use planaria_protocol::state::SequenceCounts;
use planaria_protocol::wire::features::Features;
use planaria_storage::Store;
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use planaria_transport::{
    Credentials, Endpoint, EndpointConfig, Identity, Limits, LocalHello, Peer,
};
use tokio::sync::watch;

use super::{Handles, Parts};
use crate::inventory::Inventory;
use crate::router::Router;

/// The key of the cluster that [`parts`] is of.
pub(crate) fn cluster_key() -> ClusterKey {
    ClusterKey::from_bytes([7; 32])
}

/// A node of this name on loopback, with nobody at its handles and nothing on its disk.
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn parts(name: &str, generation: u64) -> Parts {
    let identity = Identity::generate().unwrap();
    parts_of(name, &identity, generation)
}

/// The same, of this identity.
pub(crate) fn parts_of(name: &str, identity: &Identity, generation: u64) -> Parts {
    let flags = [("listen", "127.0.0.1:0"), ("api", "127.0.0.1:0"), ("models-dir", "nowhere")];
    let flags = flags.into_iter().map(|(key, value)| (key, vec![value.to_owned()])).collect();
    let machine = Machine { name, kernels: &[] };
    let (settings, _) = Settings::resolve(&flags, &[].into(), None, &machine).unwrap();
    let me = Incarnation { node: identity.node_id(), generation };
    let credentials = Credentials::derive(&cluster_key(), identity).unwrap();
    let hello = LocalHello {
        generation,
        name: name.to_owned(),
        info: bytes::Bytes::new(),
        features: Features::understood().words(),
    };
    let config = EndpointConfig { listen: settings.listen, hello, limits: Limits::default() };
    let handles = Handles::vacant();
    let metrics = Arc::new(Metrics::new().unwrap());
    let sequences = handles.sequences.clone();
    Parts {
        router: Arc::new(Router::new(me.node, sequences, Traces::off(), Arc::clone(&metrics))),
        running: Arc::default(),
        traces: Traces::off(),
        me,
        api: settings.api,
        memory_bytes: 1 << 30,
        processor: Processor::new(None, None).unwrap(),
        served: Arc::new(ServedModels::new(settings.models_dir.clone())),
        inventory: watch::Sender::new(Arc::new(Inventory::default())),
        desired: watch::Sender::new(DesiredMap::default()),
        endpoint: Endpoint::bind(&credentials, config).unwrap(),
        announcing: AnnouncementKey::derive(&cluster_key()).unwrap(),
        store: Store::in_memory(),
        view: watch::Sender::new(View::default()),
        plans: watch::Sender::new(PlanTable::default()),
        cluster: watch::Sender::new(Arc::new(ClusterView {
            node: ThisNode { id: me.node, name: name.to_owned(), incarnation: generation },
            nodes: Vec::new(),
            models: Vec::new(),
            sequences: SequenceCounts::default(),
            recoveries: Vec::new(),
        })),
        recoveries: watch::Sender::default(),
        leaving: watch::Sender::new(false),
        busy: watch::Sender::new(false),
        restarts: Arc::default(),
        metrics,
        handles,
        settings: Arc::new(settings),
    }
}

/// A peer for links within the process, that lists these features.
pub(crate) fn peer(node: NodeId, features: &[&str]) -> Peer {
    Peer {
        incarnation: Incarnation { node, generation: 1 },
        name: format!("node-{}", node.short()),
        info: bytes::Bytes::new(),
        features: features.iter().map(|word| (*word).to_owned()).collect(),
        process: None,
        address: ([127, 0, 0, 1], 1).into(),
    }
}
