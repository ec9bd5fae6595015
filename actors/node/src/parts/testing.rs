//! A node without its tree, for tests of one actor.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use planaria_config::{
    ClusterKey, Epoch, Incarnation, LayerRange, Machine, NodeId, Settings, Strategy,
};
use planaria_control::discovery::AnnouncementKey;
use planaria_engine::model_dir::ModelDigest;
use planaria_engine::processor::Processor;
use planaria_protocol::desired::DesiredMap;
use planaria_protocol::plan::{Assignment, Plan, PlanParts};
use planaria_protocol::wire::features::Features;
use planaria_storage::{Backend, BackendError, Change, MemoryBackend, Row, Store};
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use planaria_transport::{
    Credentials, Endpoint, EndpointConfig, Identity, Limits, LocalHello, Peer,
};
use ractor::{Actor, ActorProcessingErr, ActorRef, Message};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::{Made, Parts};
use crate::inventory::Inventory;
use crate::mailbox::Mailbox;

/// The key of the cluster that [`parts`] is of.
pub(crate) fn cluster_key() -> ClusterKey {
    ClusterKey::from_bytes([7; 32])
}

/// A node of this name on loopback, with nobody at its handles and nothing on its disk.
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn parts(name: &str, boot_count: u64) -> Parts {
    let identity = Identity::generate().unwrap();
    parts_of(name, &identity, boot_count)
}

/// The same, of this identity.
pub(crate) fn parts_of(name: &str, identity: &Identity, boot_count: u64) -> Parts {
    let flags = [("listen", "127.0.0.1:0"), ("api", "127.0.0.1:0"), ("models-dir", "nowhere")];
    let flags = flags.into_iter().map(|(key, value)| (key, vec![value.to_owned()])).collect();
    let machine = Machine { name, kernels: &[], tool_formats: &[], reasoning_formats: &[] };
    let (settings, _) = Settings::resolve(&flags, &[].into(), None, &machine).unwrap();
    let me = Incarnation { node: identity.node_id(), boot_count };
    let credentials = Credentials::derive(&cluster_key(), identity).unwrap();
    let hello = LocalHello {
        boot_count,
        name: name.to_owned(),
        info: bytes::Bytes::new(),
        features: Features::understood().words(),
    };
    let config = EndpointConfig { listen: settings.listen, hello, limits: Limits::default() };
    Parts::of(Made {
        me,
        desired: DesiredMap::default(),
        api: settings.api,
        memory_bytes: 1 << 30,
        processor: Processor::new(None, None).unwrap(),
        inventory: Inventory::default(),
        endpoint: Endpoint::bind(&credentials, config).unwrap(),
        announcing: AnnouncementKey::derive(&cluster_key()).unwrap(),
        store: Store::in_memory(),
        metrics: Metrics::new().unwrap(),
        traces: Traces::off(),
        settings,
    })
}

/// A peer for links within the process, that lists these features.
pub(crate) fn peer(node: NodeId, features: &[&str]) -> Peer {
    Peer {
        incarnation: Incarnation { node, boot_count: 1 },
        name: format!("node-{}", node.short()),
        info: bytes::Bytes::new(),
        features: features.iter().map(|word| (*word).to_owned()).collect(),
        process: None,
        address: ([127, 0, 0, 1], 1).into(),
    }
}

/// Stands in for an actor that a test does not start: passes on all that it is told.
struct Recorder<M>(PhantomData<fn(M)>);

impl<M: Message> Actor for Recorder<M> {
    type Msg = M;
    type State = UnboundedSender<M>;
    type Arguments = UnboundedSender<M>;

    async fn pre_start(
        &self,
        _: ActorRef<M>,
        heard: UnboundedSender<M>,
    ) -> Result<UnboundedSender<M>, ActorProcessingErr> {
        Ok(heard)
    }

    async fn handle(
        &self,
        _: ActorRef<M>,
        message: M,
        heard: &mut UnboundedSender<M>,
    ) -> Result<(), ActorProcessingErr> {
        // A test that has ended does not listen any more.
        drop(heard.send(message));
        Ok(())
    }
}

/// Fills a mailbox with somebody who passes on all that is told there.
pub(crate) async fn recorded<M: Message>(mailbox: &Mailbox<M>) -> UnboundedReceiver<M> {
    #[expect(clippy::disallowed_methods, reason = "a test hears all that is told")]
    let (sender, heard) = unbounded_channel();
    let (actor, _) = Actor::spawn(None, Recorder(PhantomData), sender).await.unwrap();
    mailbox.fill(actor);
    heard
}

/// The first of the messages to come of which `pick` makes something.
///
/// # Panics
/// When none comes for half a minute.
pub(crate) async fn told<M, T>(
    heard: &mut UnboundedReceiver<M>,
    mut pick: impl FnMut(M) -> Option<T>,
) -> T {
    let told = async {
        loop {
            let message = heard.recv().await.expect("somebody tells something");
            if let Some(picked) = pick(message) {
                return picked;
            }
        }
    };
    timeout(Duration::from_secs(30), told).await.expect("it is told in time")
}

/// A store on a disk that is full while the flag is set.
pub(crate) fn filling_store() -> (Store, Arc<AtomicBool>) {
    #[derive(Default)]
    struct Filling {
        rows: MemoryBackend,
        is_full: Arc<AtomicBool>,
    }

    impl Backend for Filling {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
            self.rows.get(key)
        }

        fn scan(&self, prefix: &[u8]) -> Result<Vec<Row>, BackendError> {
            self.rows.scan(prefix)
        }

        fn commit(&self, changes: &[Change]) -> Result<(), BackendError> {
            if self.is_full.load(Ordering::Relaxed) {
                return Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into());
            }
            self.rows.commit(changes)
        }
    }

    let backend = Arc::new(Filling::default());
    let is_full = Arc::clone(&backend.is_full);
    let store = Store::on_each(move || Ok(Arc::clone(&backend) as Arc<dyn Backend>)).unwrap();
    (store, is_full)
}

/// A plan of this epoch for some model `m`, with these layers of it.
pub(crate) fn plan(counter: u64, stages: &[(Incarnation, u32, u32)]) -> Arc<Plan> {
    plan_of(counter, stages, "00".repeat(32).parse().unwrap())
}

/// The same, for the model `m` of these files.
pub(crate) fn plan_of(
    counter: u64,
    stages: &[(Incarnation, u32, u32)],
    digest: ModelDigest,
) -> Arc<Plan> {
    let assignment = |(incarnation, first, last): &(Incarnation, u32, u32)| {
        Assignment::alone(*incarnation, LayerRange::inclusive(*first, *last).unwrap())
    };
    let layers = stages.iter().map(|(_, _, last)| last + 1).max().unwrap();
    let parts = PlanParts {
        epoch: Epoch { counter, planner: stages[0].0.node },
        model: "m".parse().unwrap(),
        digest,
        layers,
        strategy: Strategy::RingMemoryWeighted,
        context: 64,
        max_sequences: 2,
        stages: stages.iter().map(assignment).collect(),
        content: None,
        takes_over: None,
    };
    Arc::new(Plan::new(parts).unwrap())
}
