//! `planaria serve`: from settings to a running node.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use planaria_config::{ClusterKey, ClusterKeyError, Settings};
use planaria_control::discovery::AnnouncementKey;
use planaria_engine::model_dir::ModelsFolder;
use planaria_engine::processor::Processor;
use planaria_gateway::ApiKey;
use planaria_gateway::stored_answers::StoredAnswers;
use planaria_node::drain::drain;
use planaria_node::inventory::Inventory;
use planaria_node::ledger::Memory;
use planaria_node::node::{Node, NodeArgs, Outcome};
use planaria_node::parts::{Made, Parts};
use planaria_node::{descriptors, watchdog};
use planaria_protocol::wire::features::Features;
use planaria_storage::Store;
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use planaria_telemetry::wall_clock::unix_millis;
use planaria_transport::{Credentials, Endpoint, EndpointConfig, Limits, LocalHello};
use planaria_worker::machine;
use rustix::process::Signal;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal as Signalled, SignalKind, signal};

use super::flags::SettingFlags;
use super::{EXIT_MELTED, logging, node_api, service};

/// A collector that does not take the last spans within this time does not get them.
const TRACES_PATIENCE: Duration = Duration::from_secs(1);

/// How long threads may take to end that wait for a worker, a client or a disk.
const END_PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn run(flags: &SettingFlags) -> anyhow::Result<ExitCode> {
    let (settings, _) = flags.resolve()?;
    let traces = Traces::start(&settings)?;
    logging::start(&settings, &traces);
    watchdog::watch(|actor| {
        tracing::error!(actor = actor.name(), "the node gives up: a part of it does not go on");
        std::process::exit(EXIT_MELTED.into());
    })?;
    // Frames pass from worker to link on one thread, which no other has to be woken for; HTTP has threads of its own.
    let node = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let api = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = node.block_on(serve(settings, traces.clone(), api.handle().clone()))?;
    traces.shut_down(TRACES_PATIENCE);
    // A worker or a disk that does not let go must not keep the process.
    api.shutdown_timeout(END_PATIENCE);
    node.shutdown_timeout(END_PATIENCE);
    Ok(match outcome {
        Outcome::Stopped => ExitCode::SUCCESS,
        Outcome::MeltedDown(actor) => {
            tracing::error!(actor = actor.name(), "the node gives up: parts of it keep dying");
            ExitCode::from(EXIT_MELTED)
        }
    })
}

async fn serve(settings: Settings, traces: Traces, api_threads: Handle) -> anyhow::Result<Outcome> {
    let open_files = descriptors::raise();
    descriptors::keep_spare();
    make_private_dir(&settings.data_dir)?;
    // A limit on the size of files is an error like a full disk then, and not the end.
    drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?);
    #[cfg(feature = "failpoints")]
    super::failpoints::listen(&settings.data_dir)?;
    // Held until the process ends, however it ends.
    let _lock = lock(&settings.data_dir)?;
    let key = cluster_key(&settings)?;
    let api_key = settings.api_key_file.as_deref().map(read_api_key).transpose()?;
    let api = listen(&settings)?;
    let store = open_store(&settings.data_dir)?;
    let memory = Memory::recall(&store, &settings.models, unix_millis())?;
    let stored = StoredAnswers::open(store.clone(), settings.stored_answers.bytes())?;
    let credentials = Credentials::derive(&key, &memory.identity)?;
    let announcing = AnnouncementKey::derive(&key)?;
    let hello = LocalHello {
        boot_count: memory.incarnation.boot_count,
        name: settings.name.clone(),
        info: Bytes::new(),
        features: Features::understood().words(),
    };
    let config = EndpointConfig { listen: settings.listen, hello, limits: Limits::default() };
    let endpoint = Endpoint::bind(&credentials, config)?;
    let folders = ModelsFolder::from(&settings);
    let look = move || Inventory::look(&folders, &Inventory::default(), &BTreeSet::new());
    let inventory = tokio::task::spawn_blocking(look).await?;
    let offered = machine::memory_bytes().context("how much memory the machine has")?;
    let limit = settings.memory_limit.map_or(offered, |limit| limit.bytes().min(offered));

    let processor = Processor::new(settings.threads, settings.kernels)?;

    let me = memory.incarnation;
    let api_address = api.local_addr()?;
    tracing::info!(node = %me, name = settings.name, api = %api_address,
        listen = %endpoint.local_addr(), memory = limit, models = inventory.held().len(), "planaria serves");
    let parts = Arc::new(Parts::of(Made {
        settings,
        me,
        desired: memory.desired,
        api: api_address,
        memory_bytes: limit,
        processor,
        inventory,
        endpoint,
        announcing,
        store,
        metrics: Metrics::new()?,
        traces,
    }));
    let gateway = parts.for_gateway(stored, api_key, descriptors::for_connections(open_files));
    let args = NodeArgs { parts: Arc::clone(&parts), api, api_threads, gateway };
    let mut node = Node::start(args).await.context("the node could not start")?;
    tokio::spawn(watchdog::keep_pulse());
    let mut signals = Signals::listen()?;
    service::ready();
    // Until this function ends.
    let telling = service::keep_told(parts.cluster.subscribe());
    tokio::select! {
        outcome = node.ended() => return Ok(outcome),
        () = signals.asked() => {}
    }
    telling.stopping(parts.settings.drain_timeout);
    tracing::info!(
        "stopping: no request is taken any more, others take over, running answers may end; a second signal \
         ends them, a third one cuts everything"
    );
    tokio::select! {
        outcome = node.ended() => return Ok(outcome),
        () = drain(&parts, parts.settings.drain_timeout) => {}
        () = signals.asked() => tracing::warn!("stopping sooner: running answers end with an error"),
    }
    parts.handles.sequences.shut_down();
    node.stop();
    tokio::select! {
        outcome = node.ended() => Ok(outcome),
        () = signals.asked() => bail!("stopped at once; running answers were cut"),
    }
}

/// The signals by which a node is asked to stop.
struct Signals {
    interrupt: Signalled,
    terminate: Signalled,
    /// A terminal that was closed, or a manager that knows no other.
    hang_up: Option<Signalled>,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            // Whoever started the node by `nohup` means it to stay.
            hang_up: if is_hang_up_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next one.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            Some(_) = async { self.hang_up.as_mut()?.recv().await } => {}
        }
    }
}

/// Whether this process was started such that a hang-up does not end it, where the system tells.
fn is_hang_up_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // A bit for each signal, from the first, which is the hang-up.
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

fn make_private_dir(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("data folder {}", dir.display()))
}

/// One node for each data folder. The lock belongs to the open file, so the system gives it back
/// even after `kill -9`.
pub(super) fn lock(dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = dir.join("lock");
    let file = std::fs::File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => bail!(
            "data folder {}: another planaria node runs with it; stop that one, or give this one \
             its own with --data-dir",
            dir.display()
        ),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| path.display().to_string())
        }
    }
}

fn cluster_key(settings: &Settings) -> anyhow::Result<ClusterKey> {
    if let Some(path) = &settings.cluster_key {
        return Ok(ClusterKey::read(path)?);
    }
    let path = settings.data_dir.join("cluster.key");
    match ClusterKey::read(&path) {
        Ok(key) => Ok(key),
        Err(ClusterKeyError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            let key = ClusterKey::generate().context("no cluster key could be made")?;
            key.write_new(&path)?;
            tracing::info!(path = %path.display(),
                "made a cluster key: copy it to the other machines of the cluster");
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn read_api_key(path: &Path) -> anyhow::Result<ApiKey> {
    let key = node_api::read_key(path)?;
    key.parse::<ApiKey>().with_context(|| format!("API key file {}", path.display()))
}

fn listen(settings: &Settings) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(settings.api).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            anyhow::anyhow!(
                "TCP {} is in use: another node or program listens there; stop it, or choose \
                 another address with --api",
                settings.api
            )
        } else {
            anyhow::Error::new(error).context(format!("cannot listen on TCP {}", settings.api))
        }
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn open_store(data_dir: &Path) -> anyhow::Result<Store> {
    let opened = Store::open(&data_dir.join("store"))?;
    if let Some(aside) = opened.set_aside {
        tracing::error!(aside = %aside.display(),
            "the store was damaged: it was set aside, and this node begins as a new one");
    }
    Ok(opened.store)
}
