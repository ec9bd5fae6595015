//! Looks at this machine. Nothing is made or changed, and nothing is held for longer than the look.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use planaria_config::{ClusterKey, ClusterKeyError, ModelName, Settings};
use planaria_engine::processor::{self, Processor};
use planaria_engine::speed::Probed;
use planaria_node::inventory::Inventory;
use planaria_node::{ledger, worker};
use planaria_storage::{OpenError, SledBackend, Store};
use planaria_telemetry::wall_clock::unix_seconds;
use planaria_worker::machine;
use rustix::fs::{Access, access, statvfs};
use rustix::process::{Resource, getrlimit};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::seen::{Folder, KeySeen, Lock, Model, ModelsSeen, NodeSeen, Port, Seen, StoreSeen};
use crate::{node_api, serve};

/// Longest wait for a node, or a server of names, to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where mDNS is spoken.
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

pub(super) async fn look(settings: &Settings) -> Seen {
    let data_dir = settings.data_dir.as_path();
    let key_path = settings.cluster_key.clone().unwrap_or_else(|| data_dir.join("cluster.key"));
    let lock = lock(data_dir);
    let (store, remembered) = store(data_dir, &lock);
    let api = port(settings.api, |address| TcpListener::bind(address).map(drop));
    let (node, served) = node(settings, &api).await;
    let nothing = Inventory::default();
    let inventory = Inventory::look(&settings.into(), &nothing, &BTreeSet::new());
    let wanted: BTreeSet<ModelName> =
        settings.models.iter().cloned().chain(remembered).chain(served).collect();
    let mut joins = Vec::new();
    for address in &settings.join {
        joins.push((address.to_string(), resolve(address.as_str()).await));
    }
    Seen {
        folder: folder(data_dir),
        free_disk: free_disk(data_dir),
        key: key(&key_path),
        key_path,
        lock,
        store,
        api_key: settings
            .api_key_file
            .as_deref()
            .map(|path| serve::read_api_key(path).map(drop).map_err(|error| format!("{error:#}"))),
        listen: port(settings.listen, |address| UdpSocket::bind(address).map(drop)),
        api,
        node,
        wanted: wanted.into_iter().map(|name| (name.clone(), model(&inventory, &name))).collect(),
        models: std::fs::read_dir(&settings.models_dir).map_err(|error| error.to_string()).map(
            |_| ModelsSeen {
                usable: inventory.held().len(),
                unusable: inventory.unusable(),
                warnings: inventory.warnings(),
                passed_over: inventory.passed_over().to_vec(),
            },
        ),
        memory: machine::memory_bytes().ok(),
        memory_allowed: machine::memory_allowed(),
        memory_available: machine::memory().available_bytes,
        cores: processor::cores(),
        probed: probe(settings).await,
        multicast: settings.mdns.then(|| multicast(settings.listen.ip())),
        joins,
        clock: unix_seconds(),
        open_files: getrlimit(Resource::Nofile).maximum,
    }
}

fn folder(path: &Path) -> Folder {
    let may = |path: &Path| {
        let may = access(path, Access::WRITE_OK | Access::EXEC_OK);
        may.map_err(|error| std::io::Error::from(error).to_string())
    };
    match std::fs::metadata(path) {
        Ok(about) if about.is_dir() => match may(path) {
            Ok(()) => Folder::Open(about.permissions().mode() & 0o777),
            Err(error) => Folder::Closed(error),
        },
        Ok(_) => Folder::Other,
        Err(_) => Folder::Absent(match existing(path) {
            Some(parent) if !parent.is_dir() => Err(format!("{} is no folder", parent.display())),
            Some(parent) => may(parent).map_err(|error| format!("{}: {error}", parent.display())),
            None => Err("no part of its path is there".to_owned()),
        }),
    }
}

/// The nearest of a path's parents that is there.
fn existing(path: &Path) -> Option<&Path> {
    let parents =
        path.ancestors().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    parents.into_iter().find(|parent| parent.exists())
}

fn free_disk(path: &Path) -> Option<u64> {
    let about = statvfs(existing(path)?).ok()?;
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Takes the lock if nobody has it, for a moment.
fn lock(data_dir: &Path) -> Lock {
    let file = match std::fs::File::options().append(true).open(data_dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Lock::Free,
        Err(error) => return Lock::Unknown(error.to_string()),
    };
    match file.try_lock() {
        Ok(()) => Lock::Free,
        Err(std::fs::TryLockError::WouldBlock) => Lock::Held,
        Err(std::fs::TryLockError::Error(error)) => Lock::Unknown(error.to_string()),
    }
}

/// The store, and the models that it remembers as wanted.
fn store(data_dir: &Path, lock: &Lock) -> (StoreSeen, Vec<ModelName>) {
    let dir = data_dir.join("store");
    if !dir.exists() {
        return (StoreSeen::Absent, Vec::new());
    }
    if *lock != Lock::Free {
        return (StoreSeen::InUse, Vec::new());
    }
    let seen = match SledBackend::open(&dir) {
        Ok(backend) => {
            let wanted = Store::on(Arc::new(backend)).map(|store| ledger::wanted(&store));
            return (StoreSeen::Whole, wanted.unwrap_or_default());
        }
        Err(OpenError::InUse { .. }) => StoreSeen::InUse,
        Err(error @ OpenError::Damaged { .. }) => StoreSeen::Damaged(error.to_string()),
        Err(error) => StoreSeen::Closed(error.to_string()),
    };
    (seen, Vec::new())
}

fn key(path: &Path) -> KeySeen {
    match ClusterKey::read(path) {
        Ok(_) => KeySeen::Usable,
        Err(ClusterKeyError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            KeySeen::Absent
        }
        Err(error) => KeySeen::Unusable(error.to_string()),
    }
}

fn port(address: SocketAddr, bind: impl Fn(SocketAddr) -> std::io::Result<()>) -> Port {
    match bind(address) {
        Ok(()) => Port::Free,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Port::Taken,
        Err(error) => Port::Refused(error.to_string()),
    }
}

/// What `/health` and `/ready` answer.
#[derive(Deserialize)]
struct Health {
    problems: Vec<String>,
}

#[derive(Deserialize)]
struct Ready {
    reasons: Vec<String>,
}

/// Of what `/cluster` answers: the models that are to be served.
#[derive(Deserialize)]
struct Served {
    models: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: ModelName,
}

/// What answers at the API's address, and the models that it is to serve.
async fn node(settings: &Settings, port: &Port) -> (NodeSeen, Vec<ModelName>) {
    if *port != Port::Taken {
        return (NodeSeen::Nothing, Vec::new());
    }
    let mut address = settings.api;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    let mut ask = Ask { address, key: None };
    let Ok(Health { problems }) = ask.of("/health").await else {
        return (NodeSeen::Stranger, Vec::new());
    };
    // Not before a node has answered: the key is nobody else's business.
    ask.key = settings.api_key_file.as_deref().and_then(|path| node_api::read_key(path).ok());
    let reasons = ask.of("/ready").await.map(|Ready { reasons }| reasons);
    let served = ask.of("/cluster").await.map(|Served { models }| models).unwrap_or_default();
    let served = served.into_iter().map(|Named { name }| name).collect();
    (NodeSeen::Node { problems, reasons }, served)
}

struct Ask {
    address: SocketAddr,
    key: Option<String>,
}

impl Ask {
    async fn of<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let client = reqwest::Client::builder().timeout(PATIENCE).build();
        let client = client.map_err(|error| error.to_string())?;
        let request = client.get(format!("http://{}{path}", self.address));
        let answer = node_api::signed(request, self.key.as_deref())
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status();
        answer.json().await.map_err(|_| format!("{path} answers {status}"))
    }
}

fn model(inventory: &Inventory, name: &ModelName) -> Model {
    let unusable = inventory.unusable().into_iter().find(|(other, _)| other == name);
    match (inventory.get(name), unusable) {
        (Some(held), _) => Model::Usable(Box::new(held.geometry.clone())),
        (None, Some((_, why))) => Model::Unusable(why),
        (None, None) => Model::Absent,
    }
}

/// What a worker measures.
async fn probe(settings: &Settings) -> Result<Probed, String> {
    let processor = Processor::new(settings.threads, settings.kernels);
    worker::probe::measure(settings, processor.map_err(|error| error.to_string())?).await
}

fn multicast(listen: IpAddr) -> Result<(), String> {
    let joined = match listen {
        IpAddr::V4(listen) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
            .and_then(|socket| socket.join_multicast_v4(&GROUP_V4, &listen)),
        IpAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
            .and_then(|socket| socket.join_multicast_v6(&GROUP_V6, 0)),
    };
    joined.map_err(|error| error.to_string())
}

/// How many addresses a name stands for.
async fn resolve(address: &str) -> Result<usize, String> {
    match timeout(PATIENCE, tokio::net::lookup_host(address)).await {
        Ok(Ok(addresses)) => Ok(addresses.count()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use planaria_config::{Environment, Machine, Overrides};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What the doctor asks something at the API's address that answers `health` to everything.
    async fn asked(health: &'static str) -> (NodeSeen, Vec<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "sesame\n").unwrap();
        let overrides: Overrides =
            [("api", vec![address.to_string()]), ("api-key-file", vec![key.display().to_string()])]
                .into();
        let machine =
            Machine { name: "here", kernels: &[], tool_formats: &[], reasoning_formats: &[] };
        let settings =
            Settings::resolve(&overrides, &Environment::new(), None, &machine).unwrap().0;
        let mut requests = Vec::new();
        let answers = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (mut request, mut bytes) = (String::new(), [0; 1024]);
                while !request.ends_with("\r\n\r\n") {
                    let length = stream.read(&mut bytes).await.unwrap();
                    request.push_str(&String::from_utf8_lossy(&bytes[..length]));
                }
                requests.push(request.to_lowercase());
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{health}",
                    health.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let (seen, _) = tokio::select! {
            seen = node(&settings, &Port::Taken) => seen,
            () = answers => unreachable!("it answers for ever"),
        };
        (seen, requests)
    }

    #[tokio::test]
    async fn a_stranger_does_not_get_the_key() {
        let (seen, requests) = asked("<html>").await;
        assert_eq!(seen, NodeSeen::Stranger);
        assert!(requests.len() == 1 && !requests[0].contains("sesame"), "{requests:?}");
        let (seen, requests) = asked(r#"{"problems":[],"reasons":[],"models":[]}"#).await;
        assert_eq!(seen, NodeSeen::Node { problems: Vec::new(), reasons: Ok(Vec::new()) });
        let signed = |path: &str| {
            requests.iter().any(|request| {
                request.starts_with(&format!("get {path} ")) && request.contains("bearer sesame")
            })
        };
        assert!(!signed("/health") && signed("/ready") && signed("/cluster"), "{requests:?}");
    }
}
