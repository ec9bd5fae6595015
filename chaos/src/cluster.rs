//! Several nodes, as a person would start them: on loopback, or each on a machine of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::api::Api;
use crate::lan::Machine;
use crate::network::Network;
use crate::process::{Process, is_running, signal};
use crate::view::ModelSeen;
use crate::wait_for;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name.
    pub name: String,
    /// `--memory-limit`.
    pub memory: String,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// The machine that it runs on; `None` means this one, on loopback.
    pub machine: Option<Machine>,
    /// Whether it finds others by mDNS, and not by `--join`.
    pub mdns: bool,
    /// `--models-dir`; `None` means that of the cluster.
    pub models_dir: Option<PathBuf>,
    /// `--listen`; `None` means a port that the system chooses, and another one at every start.
    pub listen: Option<String>,
    /// What it is started from; `None` means what the whole cluster is.
    pub binary: Option<PathBuf>,
}

impl NodeSpec {
    /// A node with this much memory.
    #[must_use]
    pub fn new(name: &str, memory: &str) -> Self {
        let (name, memory) = (name.to_owned(), memory.to_owned());
        let (arguments, env) = (Vec::new(), Vec::new());
        let (models_dir, listen, binary) = (None, None, None);
        let (machine, mdns) = (None, false);
        Self { name, memory, arguments, env, machine, mdns, models_dir, listen, binary }
    }

    /// Started from another binary than the rest of its cluster.
    #[must_use]
    pub fn of(mut self, binary: &Path) -> Self {
        self.binary = Some(binary.to_owned());
        self
    }

    /// On a machine of its own.
    #[must_use]
    pub fn on(mut self, machine: &Machine) -> Self {
        self.machine = Some(machine.clone());
        self
    }

    /// Finding others by mDNS, and not by `--join`.
    #[must_use]
    pub const fn by_mdns(mut self) -> Self {
        self.mdns = true;
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With models of its own.
    #[must_use]
    pub fn with_models(mut self, models_dir: &Path) -> Self {
        self.models_dir = Some(models_dir.to_owned());
        self
    }

    /// With further arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|text| (*text).to_owned()));
        self
    }
}

/// A node of a cluster under test.
#[derive(Debug)]
pub struct Node {
    /// What it was started with.
    pub spec: NodeSpec,
    /// The process.
    pub process: Process,
    /// Its API.
    pub api: Api,
    /// Its address for other nodes.
    pub listen: String,
}

/// Nodes with one key, in folders that are removed with it.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    folder: TempDir,
    models_dir: PathBuf,
    /// The nodes, in the order in which they were started.
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// No nodes yet; models are looked for in `models_dir`.
    ///
    /// # Errors
    /// When no folder or key can be made.
    pub async fn new(binary: &Path, models_dir: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("planaria-").tempdir()?;
        let key = folder.path().join("cluster.key");
        let made = tokio::process::Command::new(binary)
            .args(["cluster", "new", "--out"])
            .arg(&key)
            .output()
            .await?;
        anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let (binary, models_dir) = (binary.to_owned(), models_dir.to_owned());
        Ok(Self { binary, folder, models_dir, nodes: Vec::new() })
    }

    /// What nodes are started from.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The folder of everything that belongs to the cluster.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The data folder of a node.
    #[must_use]
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The arguments with which a node of this cluster is started.
    #[must_use]
    pub fn arguments(&self, spec: &NodeSpec) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "serve",
            "--name",
            &spec.name,
            "--data-dir",
            &self.data_dir(&spec.name).display().to_string(),
            "--models-dir",
            &spec.models_dir.as_ref().unwrap_or(&self.models_dir).display().to_string(),
            "--cluster-key",
            &self.folder.path().join("cluster.key").display().to_string(),
            "--listen",
            match &spec.listen {
                Some(listen) => listen,
                None if spec.machine.is_some() => "0.0.0.0:0",
                None => "127.0.0.1:0",
            },
            "--api",
            "127.0.0.1:0",
            "--memory-limit",
            &spec.memory,
            "--strategy",
            "ring-memory-weighted",
            if spec.mdns { "--mdns" } else { "--no-mdns" },
        ]
        .map(str::to_owned)
        .into();
        if let Some(seed) = self.nodes.first().filter(|_| !spec.mdns) {
            arguments.extend(["--join".to_owned(), seed.listen.clone()]);
        }
        arguments.extend(spec.arguments.iter().cloned());
        arguments
    }

    /// Starts a node, which joins the first one, and waits until its API is there.
    ///
    /// # Errors
    /// When it does not come up; with what it logged.
    pub async fn start(&mut self, spec: NodeSpec) -> Result<usize> {
        let process = self.spawn(&spec)?;
        self.adopt(spec, process).await
    }

    /// The same for a node that others reach through this network only, at the same port in every life. Nodes have the
    /// numbers there that they have here, if all are started so.
    ///
    /// # Errors
    /// When it does not come up, or the network has no address for it.
    pub async fn start_behind(&mut self, network: &mut Network, spec: NodeSpec) -> Result<usize> {
        let index = self.start(spec).await?;
        let node = self.node(index)?;
        let at: SocketAddr = node.listen.parse().with_context(|| node.listen.clone())?;
        node.spec.listen = Some(node.listen.clone());
        node.listen = network.attach(at.port()).await?.to_string();
        Ok(index)
    }

    /// Starts a node and waits for nothing.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, spec: &NodeSpec) -> Result<Process> {
        let binary = spec.binary.as_deref().unwrap_or(&self.binary);
        let own = self.arguments(spec);
        let Some(machine) = &spec.machine else {
            return Process::start(binary, &own, &spec.env);
        };
        let (binary, mut arguments) = machine.command(binary);
        arguments.extend(own);
        Process::start(binary, &arguments, &spec.env)
    }

    /// Takes in a node that was spawned, once its API is there.
    ///
    /// # Errors
    /// When it does not come up; with what it logged.
    pub async fn adopt(&mut self, spec: NodeSpec, mut process: Process) -> Result<usize> {
        let mut api = Api::at(&process.logged_field("planaria serves", "api").await?);
        let mut listen = process.logged_field("planaria serves", "listen").await?;
        if let Some(machine) = &spec.machine {
            api = api.on(machine);
            listen = listen.replace("0.0.0.0", &machine.address().to_string());
        }
        self.nodes.push(Node { spec, process, api, listen });
        Ok(self.nodes.len() - 1)
    }

    /// Waits until every node sees exactly the nodes of this cluster, all alive.
    ///
    /// # Errors
    /// When that does not come about; with what the nodes see and logged.
    pub async fn met(&self) -> Result<()> {
        let mut seen = Vec::new();
        let all = wait_for("all nodes to see each other", async || {
            seen.clear();
            for node in &self.nodes {
                let view = node.api.view().await?;
                let alive = view.nodes.iter().filter(|node| node.is_alive());
                seen.push(alive.map(|node| node.name.clone()).collect::<Vec<_>>());
            }
            let all = seen.iter().all(|alive| alive.len() == self.nodes.len());
            Ok(all.then_some(()))
        });
        all.await.with_context(|| format!("seen alive: {seen:?}\n{}", self.logs()))
    }

    /// The last of what every node logged.
    #[must_use]
    pub fn logs(&self) -> String {
        let log = |node: &Node| format!("--- {} ---\n{}", node.spec.name, node.process.shown());
        self.nodes.iter().map(log).collect::<Vec<_>>().join("\n")
    }

    /// Starts a node again, in place of one that has ended or is killed for it. It joins the first other node.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        let mut old = self.nodes.remove(index);
        // Until it is gone its folder is locked.
        if is_running(old.process.pid()) {
            old.process.kill().await?;
        }
        let new = self.start(old.spec).await?;
        let node = self.nodes.remove(new);
        self.nodes.insert(index, node);
        Ok(())
    }

    /// A node, by number.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes.get_mut(index).with_context(|| format!("no node {index}"))
    }

    /// Has the handlers of a node's actor fail from now on: `what` in the words of the crate `fail`, of an actor
    /// by the name of its row in the supervision table, or of its start by `NAME.start`.
    ///
    /// # Errors
    /// When the node cannot be told. Of a program that was built without failpoints it ends.
    pub fn fail_at(&self, index: usize, actor: &str, what: &str) -> Result<()> {
        let node = self.nodes.get(index).with_context(|| format!("no node {index}"))?;
        let file = self.data_dir(&node.spec.name).join("failpoints");
        std::fs::write(&file, format!("{actor}={what}"))?;
        signal(node.process.pid(), Signal::USR1)
    }

    /// Waits until every node has exactly one worker: those of the plans before are collected
    /// only after a while.
    ///
    /// # Errors
    /// When that does not come about.
    pub async fn settled(&self) -> Result<()> {
        self.settled_at(1).await
    }

    /// The same for so many workers, one for each model.
    ///
    /// # Errors
    /// When that does not come about.
    pub async fn settled_at(&self, workers: usize) -> Result<()> {
        let mut seen = Vec::new();
        let settled = wait_for("one worker of each model on each node", async || {
            for node in &self.nodes {
                let view = node.api.view().await?;
                if view.nodes.iter().any(|n| n.worker_pids.len() != workers) {
                    seen = view.nodes;
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        settled.await.with_context(|| format!("seen: {seen:?}\n{}", self.logs()))
    }

    /// Waits until every node sees `model` ready, split over exactly `stages` nodes, and all have
    /// the same plan.
    ///
    /// # Errors
    /// When that does not come about; with what the nodes see.
    pub async fn agreed(&self, model: &str, stages: usize) -> Result<()> {
        let mut seen = Vec::new();
        let agreed = wait_for("all nodes to be ready", async || {
            let mut plans: Vec<Option<ModelSeen>> = Vec::new();
            for node in &self.nodes {
                plans.push(node.api.view().await?.model(model).cloned());
            }
            let ready = |plan: &Option<ModelSeen>| {
                plan.as_ref().is_some_and(|plan| plan.is_ready() && plan.stages.len() == stages)
            };
            let ready = plans.iter().all(ready);
            let same = plans.windows(2).all(|pair| pair.first() == pair.last());
            seen = plans;
            Ok((ready && same).then_some(()))
        });
        agreed.await.with_context(|| {
            format!("{model} over {stages} nodes; seen: {seen:?}\n{}", self.logs())
        })
    }
}
