//! The models of the cluster, wanted and held, in the shape of `GET /cluster/models`, and the way
//! to change what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use futures::future::BoxFuture;
use planaria_config::{ModelName, NodeId};
use planaria_control::cluster_view::ClusterView;
use planaria_control::desired::ChangeError;
use planaria_control::membership::View;
use planaria_engine::model_dir::{ModelDigest, PassedOver};
use planaria_protocol::desired::{DesiredMap, DesiredSpec, Entry};
use planaria_protocol::state::ModelState;
use planaria_protocol::wire::HeldModel;
use serde::{Deserialize, Serialize};

/// What `GET /cluster/models` answers and `planaria models` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// Every model that is wanted or that a living member has files of, by name.
    pub models: Vec<CatalogModel>,
    /// Where the node that answered looks for models.
    pub models_dir: PathBuf,
    /// Folders there that look like models and are none for a node.
    #[serde(default)]
    pub passed_over: Vec<Ignored>,
}

/// A folder that looks like a model and is none for a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ignored {
    /// It, from the models folder on.
    pub folder: String,
    /// Why, and what to do.
    pub reason: String,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogModel {
    /// Its name.
    pub name: ModelName,
    /// How it is to be served; `null` when it is not to be.
    pub wanted: Option<DesiredSpec>,
    /// Who changed that last; `null` when nobody has spoken of it for a month.
    pub changed: Option<Changed>,
    /// Whether it can answer; `null` when it is not to.
    pub state: Option<ModelState>,
    /// Why it cannot, in words; empty when it can.
    pub reason: String,
    /// Who has its files.
    pub held: Vec<Holding>,
    /// Who has files under its name that cannot be used.
    pub unusable: Vec<Unusable>,
}

/// A change of what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The node on which it was made.
    pub by: NodeId,
    /// That node's name.
    pub name: String,
    /// When, in milliseconds since 1970; `null` when the settings of that node name the model and
    /// nobody has said more.
    pub at: Option<u64>,
}

/// A model on a node's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Whose.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// The digest of its files: only nodes with the same one share a pipeline.
    pub digest: ModelDigest,
    /// Its layers.
    pub layers: u32,
    /// Its weights, in bytes.
    pub bytes: u64,
    /// Longest sequence that it was made for, in tokens.
    pub context: u32,
}

/// A model on a node's disk that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// Whose.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The models of the cluster, and the way to change what is wanted.
pub trait Catalog: Send + Sync {
    /// What there is, as this node knows it.
    fn list(&self) -> ModelList;

    /// Looks into this node's models folder again.
    fn refresh(&self) -> BoxFuture<'_, ()>;

    /// Has the cluster serve a model, or (`None`) serve it no longer. On return the change is on
    /// this node's disk, and this node acts by it.
    fn change(
        &self,
        model: ModelName,
        wanted: Option<DesiredSpec>,
    ) -> BoxFuture<'_, Result<(), ChangeError>>;
}

/// What a node knows that lists models.
#[derive(Debug)]
pub struct Known<'a> {
    /// The node.
    pub me: NodeId,
    /// What the cluster is to serve.
    pub desired: &'a DesiredMap,
    /// The members.
    pub view: &'a View,
    /// The node's own files, which may be newer than its report in `view`.
    pub held: Vec<HeldModel>,
    /// Models on its disk that cannot be used, and why.
    pub unusable: Vec<(ModelName, String)>,
    /// Folders on its disk that are no models for a node.
    pub passed_over: Vec<Ignored>,
    /// The cluster as clients see it.
    pub cluster: &'a ClusterView,
}

impl Known<'_> {
    /// The list; the node looks for models in `models_dir`.
    #[must_use]
    pub fn list(&self, models_dir: PathBuf) -> ModelList {
        let mut held: BTreeMap<ModelName, Vec<Holding>> = BTreeMap::new();
        let mut unusable: BTreeMap<ModelName, Vec<Unusable>> = BTreeMap::new();
        let mine = std::iter::once((self.me, &self.held, &self.unusable));
        let others = self.view.alive().filter(|member| member.incarnation.node != self.me);
        let others = others.map(|member| {
            (member.incarnation.node, &member.report.models, &member.report.unusable)
        });
        for (node, models, broken) in mine.chain(others) {
            for model in models {
                if let Some(reason) = model.unreadable.clone() {
                    let broken = Unusable { node, name: self.view.name(node), reason };
                    unusable.entry(model.name.clone()).or_default().push(broken);
                    continue;
                }
                let holding = holding(node, self.view.name(node), model);
                held.entry(model.name.clone()).or_default().push(holding);
            }
            for (model, reason) in broken {
                let (name, reason) = (self.view.name(node), reason.clone());
                let broken = Unusable { node, name, reason };
                unusable.entry(model.clone()).or_default().push(broken);
            }
        }
        let wanted = self.desired.wanted().map(|(model, _)| model);
        let names: BTreeSet<ModelName> =
            wanted.chain(held.keys()).chain(unusable.keys()).cloned().collect();
        let models = names.into_iter().map(|name| {
            let entry = self.desired.get(&name);
            let wanted = entry.and_then(|entry| entry.wanted);
            let (state, reason) = match wanted {
                Some(_) => self.state(&name),
                None => (None, String::new()),
            };
            CatalogModel {
                wanted,
                changed: entry.map(|entry| self.changed(&entry)),
                state,
                reason,
                held: held.remove(&name).unwrap_or_default(),
                unusable: unusable.remove(&name).unwrap_or_default(),
                name,
            }
        });
        ModelList { models: models.collect(), models_dir, passed_over: self.passed_over.clone() }
    }

    fn changed(&self, entry: &Entry) -> Changed {
        let by = entry.stamp.node();
        Changed { by, name: self.view.name(by), at: entry.stamp.at() }
    }

    fn state(&self, model: &ModelName) -> (Option<ModelState>, String) {
        match self.cluster.models.iter().find(|seen| seen.name == *model) {
            Some(seen) => (Some(seen.state), seen.reason.clone()),
            None => (Some(ModelState::Loading), "a plan is being made".to_owned()),
        }
    }
}

impl Ignored {
    /// As the disk's inventory found it.
    #[must_use]
    pub fn of(passed: &PassedOver) -> Self {
        let PassedOver { folder, reason } = passed.clone();
        Self { folder, reason }
    }
}

fn holding(node: NodeId, name: String, model: &HeldModel) -> Holding {
    let geometry = &model.geometry;
    Holding {
        node,
        name,
        digest: model.digest,
        layers: geometry.layers().get(),
        bytes: geometry.weight_bytes(geometry.all_layers()),
        context: geometry.max_context,
    }
}
