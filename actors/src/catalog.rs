//! The models of the cluster, wanted and held, in the shape of `GET /cluster/models`, and the way
//! to change what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use planaria_config::{ModelName, NodeId};
use planaria_engine::model_dir::{ModelDigest, PassedOver};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::cluster_view::{ClusterView, ModelState};
use crate::context::Context;
use crate::desired::machine::ChangeError;
use crate::desired::{DesiredMap, Entry, Wanted};
use crate::membership::View;
use crate::wire::HeldModel;

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
    pub wanted: Option<Wanted>,
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
        wanted: Option<Wanted>,
    ) -> BoxFuture<'_, Result<(), ChangeError>>;
}

/// What a node needs to know to list models.
struct Known<'a> {
    me: NodeId,
    desired: &'a DesiredMap,
    view: &'a View,
    /// This node's own files may be newer than its report in `view`.
    held: Vec<HeldModel>,
    unusable: Vec<(ModelName, String)>,
    passed_over: Vec<Ignored>,
    cluster: &'a ClusterView,
}

/// A change comes into force on this node as fast as its actors pass it on. This is only so that
/// who asked is not told before; if they take longer, it is told all the same.
const IN_FORCE: Duration = Duration::from_secs(2);

impl Catalog for Arc<Context> {
    fn list(&self) -> ModelList {
        let inventory = self.inventory.borrow().clone();
        let known = Known {
            me: self.me.node,
            desired: &self.desired.borrow(),
            view: &self.view.borrow(),
            held: inventory.held(),
            unusable: inventory.unusable(),
            passed_over: inventory.passed_over().iter().map(Ignored::of).collect(),
            cluster: &self.cluster.borrow(),
        };
        // Whoever reads it works in another folder than this node.
        let models_dir = &self.settings.models_dir;
        let models_dir = std::path::absolute(models_dir).unwrap_or_else(|_| models_dir.clone());
        known.list(models_dir)
    }

    fn refresh(&self) -> BoxFuture<'_, ()> {
        self.handles.inventory.looked().boxed()
    }

    fn change(
        &self,
        model: ModelName,
        wanted: Option<Wanted>,
    ) -> BoxFuture<'_, Result<(), ChangeError>> {
        async move {
            let mut seen = self.cluster.subscribe();
            self.handles.desired.change(model.clone(), wanted).await?;
            // So that "ready" and the list of models speak of it when the caller asks next.
            let in_force = seen.wait_for(|view| {
                view.models.iter().any(|seen| seen.name == model) == wanted.is_some()
            });
            if timeout(IN_FORCE, in_force).await.is_err() {
                tracing::warn!(%model, "a change of what is served takes long to come into force");
            }
            Ok(())
        }
        .boxed()
    }
}

impl Known<'_> {
    fn list(&self, models_dir: PathBuf) -> ModelList {
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
    fn of(passed: &PassedOver) -> Self {
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
