//! A cluster to be harmed: started once for a scenario, made whole after every round.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use futures::{StreamExt as _, stream};
use planaria_config::NodeId;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::api::Api;
use crate::check::{
    Violation, as_asked, back_at_base, in_order, plans_cover, ready_means, views_agree,
};
use crate::collector::Collector;
use crate::dialect::Kind;
use crate::history::{Ask, Heard};
use crate::network::Network;
use crate::resources::Resources;
use crate::scenario::{Scenario, World};
use crate::schedule::Role;
use crate::view::{StageSeen, View};
use crate::{
    Cluster, NodeSpec, TEMPLATE, give_tools, repository, wait_for, wait_for_up_to, write_fake_model,
};

/// Its layers, whichever model it is.
const LAYERS: u32 = 12;

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// One that computes hashes: a token or a layer that was left out, repeated or taken from elsewhere
    /// changes all that follows, and how it was cut into steps nothing.
    Exact,
    /// The demo model of the repository. What is computed again in other steps differs in its last bits,
    /// and now and then a drawn token falls to the other side of a boundary for that.
    Demo,
}

impl Model {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Demo => "demo",
        }
    }

    /// Puts it into `folder`.
    fn write(self, folder: &Path, world: World) -> Result<()> {
        match self {
            Self::Exact => write_exact(folder, self.name(), world),
            Self::Demo => {
                let (demo, own) =
                    (repository().join("engine/models/demo"), folder.join(self.name()));
                std::fs::create_dir(&own)?;
                for file in std::fs::read_dir(demo)? {
                    let file = file?;
                    // It gets another, and the repository's is not to be written.
                    if file.file_name() != TEMPLATE {
                        std::os::unix::fs::symlink(file.path(), own.join(file.file_name()))?;
                    }
                }
                give_tools(folder, self.name())
            }
        }
    }
}

fn write_exact(folder: &Path, name: &str, world: World) -> Result<()> {
    // About the pace of the demo model; or 900 tokens in half a minute.
    let step_micros = match world {
        World::Slow => 2500,
        // So much that a third node is worth its exchanges.
        World::Group => 6000,
        _ => 100,
    };
    // No two nodes have room for twelve such layers.
    let bytes_per_layer: u64 = if world == World::Scarce { 150 << 20 } else { 0 };
    let sizes = json!({
        "num_hidden_layers": LAYERS, "hidden_size": 64, "vocab_size": 768,
        "max_position_embeddings": 1024, "step_micros": step_micros,
        "bytes_per_layer": bytes_per_layer,
    });
    write_fake_model(folder, name, sizes)?;
    give_tools(folder, name)
}

/// Models that nobody asks for until a scenario does.
pub const SPARES: [&str; 3] = ["spare-1", "spare-2", "spare-3"];

/// Models of [`World::Many`].
const MANY: usize = 20;

/// What every node offers: enough for the whole model beside what it holds.
const MEMORY: &str = "1GiB";

/// The same where there are many: each takes room for a process of its own.
const MUCH_MEMORY: &str = "6GiB";

/// A model that is said to be ready answers within this time.
const READY_MEANS: Duration = Duration::from_secs(10);

/// Every node is ready again within this time of the last fault.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Requests at once, where a node is asked for all models: no more than it has places.
const AT_ONCE: usize = 4;

/// A node takes what it took before within this time of the last fault.
const SETTLES: Duration = Duration::from_secs(30);

/// The cluster, and what is known of it while it is well.
#[derive(Debug)]
pub struct Arena {
    /// The nodes.
    pub cluster: Cluster,
    /// What lies between them, if it can be told what to do.
    pub network: Option<Network>,
    /// Where they send traces to, if they do.
    pub collector: Option<Collector>,
    /// Where others reach each of them.
    places: Vec<String>,
    /// The folder of the folder of models, removed with the arena.
    folder: TempDir,
    /// What is served: first the one that answers are asked of.
    models: Vec<String>,
    /// A short answer of each.
    probes: Vec<(Ask, Heard)>,
    undisturbed: HashMap<Ask, Heard>,
    base: Vec<Resources>,
}

impl Arena {
    /// Starts so many nodes for a scenario, which may need a [`Network`] or a [`Collector`]; `seed` is the
    /// network's. Only the usual world knows the demo model.
    ///
    /// # Errors
    /// When they do not come to serve the model together.
    pub async fn new(
        binary: &Path,
        model: Model,
        nodes: usize,
        scenario: &Scenario,
        seed: u64,
    ) -> Result<Self> {
        let model = if scenario.world == World::Usual { model } else { Model::Exact };
        let folder = tempfile::tempdir()?;
        let models_dir = folder.path().join(MODELS);
        std::fs::create_dir(&models_dir)?;
        model.write(&models_dir, scenario.world)?;
        for spare in SPARES {
            write_exact(&models_dir, spare, World::Usual)?;
        }
        let mut models = vec![model.name().to_owned()];
        let memory = if scenario.world == World::Many { MUCH_MEMORY } else { MEMORY };
        if scenario.world == World::Many {
            models.extend((2..=MANY).map(|number| format!("tiny-{number}")));
            for name in models.iter().skip(1) {
                write_exact(&models_dir, name, World::Usual)?;
            }
        }
        let mut arena = Self {
            cluster: Cluster::new(binary, &models_dir).await?,
            folder,
            models,
            probes: Vec::new(),
            network: scenario.needs_network().then(|| Network::new(seed)),
            collector: if scenario.needs_collector() { Some(Collector::start()?) } else { None },
            places: Vec::new(),
            undisturbed: HashMap::new(),
            base: Vec::new(),
        };
        for number in 1..=nodes {
            let settings = ["--set", "context=1024", "--set", "replan-after=1s"];
            let mut spec = NodeSpec::new(&format!("node-{number}"), memory).with(&settings);
            if scenario.world == World::Group {
                spec = spec.with(&["--set", "strategy=tensor"]);
            }
            for model in &arena.models {
                spec = spec.with(&["--model", model]);
            }
            spec.arguments.extend(arena.collector.iter().flat_map(Collector::settings));
            let index = match &mut arena.network {
                Some(network) => arena.cluster.start_behind(network, spec).await?,
                None => arena.cluster.start(spec).await?,
            };
            let node = arena.cluster.node(index)?;
            // The same port in every life, so that others find it again.
            node.spec.listen.get_or_insert_with(|| node.listen.clone());
            arena.places.push(node.listen.clone());
        }
        let (_, found) = arena.whole().await;
        ensure!(found.is_empty(), "{found:?}");
        arena.cluster.settled_at(arena.models.len()).await?;
        arena.learn_probes().await?;
        arena.base = arena.resources();
        Ok(arena)
    }

    async fn learn_probes(&mut self) -> Result<()> {
        let short = |model: &String| Ask {
            kind: Kind::Tokens,
            model: model.clone(),
            prompt: vec![11, 12, 13, 14],
            draws: false,
            seed: 0,
            tokens: 4,
        };
        let asks: Vec<Ask> = self.models.iter().map(short).collect();
        for some in asks.chunks(AT_ONCE) {
            let heard = self.undisturbed(0, some).await?;
            self.probes.extend(some.iter().cloned().zip(heard));
        }
        Ok(())
    }

    /// The model that answers are asked of.
    #[must_use]
    pub fn main_model(&self) -> &str {
        self.models.first().map_or("", String::as_str)
    }

    /// Where the models are.
    #[must_use]
    pub fn models_dir(&self) -> PathBuf {
        self.folder.path().join(MODELS)
    }

    /// Asks these nodes whether they are ready, and those that say so for every model. How many said so, and
    /// what they should not have said.
    pub async fn everywhere(&self, nodes: &[usize]) -> (usize, Vec<Violation>) {
        let (mut ready, mut found) = (0, Vec::new());
        for node in nodes.iter().filter_map(|index| self.cluster.nodes.get(*index)) {
            let (name, api) = (&node.spec.name, &node.api);
            if !is_ready(api).await {
                continue;
            }
            ready += 1;
            let asked = stream::iter(&self.probes).map(async |(ask, expected)| {
                let whom = format!("{} through {name}", ask.model);
                let heard = timeout(READY_MEANS, ask.hear_once(api, Arc::default())).await;
                let heard = heard.unwrap_or_else(|_| Heard {
                    error: Some(format!("nothing came within {READY_MEANS:?}")),
                    ..Heard::default()
                });
                ready_means(&whom, expected, &heard, READY_MEANS)
            });
            let judged: Vec<Vec<Violation>> = asked.buffer_unordered(AT_ONCE).collect().await;
            found.extend(judged.into_iter().flatten());
        }
        (ready, found)
    }

    /// Waits until these nodes are ready, and asks them for every model.
    pub async fn ready_again(&self, nodes: &[usize], within: Duration) -> Vec<Violation> {
        let mut waits = Vec::new();
        let all = wait_for_up_to(within, "nodes to be ready", async || {
            waits.clear();
            for node in nodes.iter().filter_map(|index| self.cluster.nodes.get(*index)) {
                if !is_ready(&node.api).await {
                    waits.push(format!("{}: {}", node.spec.name, why_not_ready(&node.api).await));
                }
            }
            Ok(waits.is_empty().then_some(()))
        });
        if all.await.is_err() {
            let what = format!("not within {within:?}: {}", waits.join("; "));
            return vec![Violation { check: "ready", what }];
        }
        self.everywhere(nodes).await.1
    }

    /// The same of all nodes, after a fault.
    pub async fn ready_everywhere(&self) -> Vec<Violation> {
        let all: Vec<usize> = (0..self.len()).collect();
        self.ready_again(&all, READY_WITHIN).await
    }

    /// The number of nodes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.cluster.nodes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.cluster.nodes.is_empty()
    }

    /// A node's API.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn api(&mut self, index: usize) -> Result<Api> {
        Ok(self.cluster.node(index)?.api.clone())
    }

    /// A node's process.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn pid(&mut self, index: usize) -> Result<u32> {
        Ok(self.cluster.node(index)?.process.pid())
    }

    /// The number of the node that has this role now.
    ///
    /// # Errors
    /// When nobody answers, or there is no plan.
    pub async fn who(&mut self, role: Role) -> Result<usize> {
        let view = self.api(0)?.view().await?;
        let stages = &view.model(self.main_model()).context("the model is not served")?.stages;
        let members: Vec<NodeId> = stages.iter().flat_map(StageSeen::members).collect();
        let node = match role {
            Role::First => members.first().copied(),
            Role::Middle => members.get(members.len() / 2).copied(),
            Role::Last => members.last().copied(),
            Role::Planner => view.nodes.iter().filter(|n| n.is_alive()).map(|n| n.id).min(),
        };
        let node = node.context("there is no plan")?;
        let seen = view.nodes.iter().find(|seen| seen.id == node && !seen.is_over());
        let pid = seen.context("a stage on a node that is not there")?.pid;
        let index = self.cluster.nodes.iter().position(|node| node.process.pid() == pid);
        index.with_context(|| format!("no node has the process {pid}"))
    }

    /// The worker of a node.
    ///
    /// # Errors
    /// When it has none.
    pub async fn worker(&mut self, index: usize) -> Result<u32> {
        let pid = self.pid(index)?;
        let view = self.api(index)?.view().await?;
        let seen = view.of_process(pid).context("it does not know itself")?;
        seen.worker_pids.first().copied().context("it has no worker")
    }

    /// What each of these gives while nothing is harmed.
    ///
    /// # Errors
    /// When one of them fails all the same.
    pub async fn undisturbed(&mut self, index: usize, asks: &[Ask]) -> Result<Vec<Heard>> {
        let api = self.api(index)?;
        let unknown: Vec<Ask> =
            asks.iter().filter(|ask| !self.undisturbed.contains_key(ask)).cloned().collect();
        let answers = join_all(unknown.iter().map(|ask| ask.hear(&api, Arc::default()))).await;
        for (ask, heard) in unknown.into_iter().zip(answers) {
            ensure!(
                heard.error.is_none() && heard.done,
                "an undisturbed answer ({:?}) failed after {} tokens: {:?}",
                ask.kind,
                heard.count(),
                heard.error
            );
            let wrong = as_asked(&ask, &heard).or_else(|| in_order(&heard));
            ensure!(wrong.is_none(), "an undisturbed answer is wrong: {wrong:?}");
            self.undisturbed.insert(ask, heard);
        }
        let known = asks.iter().filter_map(|ask| self.undisturbed.get(ask).cloned());
        Ok(known.collect())
    }

    /// Starts a node again in place of one that ended.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        self.cluster.restart(index).await?;
        let place = self.places.get(index).cloned().context("no such node")?;
        self.cluster.node(index)?.listen = place;
        Ok(())
    }

    /// Waits until all nodes are there again, agree, and serve the model together. How long that took,
    /// and what does not hold if it does not come about.
    pub async fn whole(&mut self) -> (Duration, Vec<Violation>) {
        let begun = Instant::now();
        let mut found = Vec::new();
        let all = wait_for("the cluster to be whole", async || {
            found.clear();
            let mut views: Vec<View> = Vec::new();
            for node in &self.cluster.nodes {
                match node.api.view().await {
                    Ok(view) => views.push(view),
                    Err(error) => found.push(not_whole(format!("{}: {error:#}", node.spec.name))),
                }
            }
            for view in &views {
                found.extend(plans_cover(view, LAYERS));
                let alive = view.nodes.iter().filter(|node| node.is_alive()).count();
                for name in &self.models {
                    let model = view.model(name);
                    let ready = model.filter(|model| model.is_ready());
                    let members = ready.map_or(0, |model| {
                        model.stages.iter().flat_map(StageSeen::members).count()
                    });
                    if alive != self.len() || members != self.len() {
                        let reason = model.map(|model| model.reason.clone()).unwrap_or_default();
                        let what = format!(
                            "{alive} nodes are alive, {members} hold layers of {name}: {reason}"
                        );
                        found.push(not_whole(what));
                    }
                }
            }
            found.extend(views_agree(&views));
            Ok(found.is_empty().then_some(()))
        });
        if all.await.is_ok() {
            found.clear();
        }
        (begun.elapsed(), found)
    }

    /// What every node has logged.
    #[must_use]
    pub fn logs(&self) -> Vec<Vec<String>> {
        self.cluster.nodes.iter().map(|node| node.process.log()).collect()
    }

    /// Whether all nodes take what they took at the beginning, once that has had time to come about.
    pub async fn back_at_base(&self) -> Vec<Violation> {
        let begun = Instant::now();
        loop {
            let now = self.resources();
            let pairs = self.cluster.nodes.iter().zip(self.base.iter().zip(now));
            let found =
                pairs.flat_map(|(node, (base, now))| back_at_base(&node.spec.name, *base, now));
            let found: Vec<Violation> = found.collect();
            if found.is_empty() || begun.elapsed() > SETTLES {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn resources(&self) -> Vec<Resources> {
        let nodes = self.cluster.nodes.iter();
        let of = nodes
            .map(|node| Resources::of(node.process.pid(), &self.cluster.data_dir(&node.spec.name)));
        of.collect()
    }
}

/// The models' folder in the arena's.
const MODELS: &str = "models";

/// Longest wait for a node to say whether it is ready.
const SAYS_SO: Duration = Duration::from_secs(5);

async fn is_ready(api: &Api) -> bool {
    let said = timeout(SAYS_SO, api.get("/ready")).await;
    matches!(said, Ok(Ok((200, _))))
}

async fn why_not_ready(api: &Api) -> String {
    match timeout(SAYS_SO, api.get("/ready")).await {
        Ok(Ok((_, words))) => words,
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "it does not say".to_owned(),
    }
}

fn not_whole(what: String) -> Violation {
    Violation { check: "whole", what }
}
