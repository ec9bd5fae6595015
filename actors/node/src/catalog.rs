//! The models of the cluster, for the gateway, from what the parts of a node know.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use planaria_config::{ModelName, NodeId};
use planaria_control::cluster_view::ClusterView;
use planaria_control::desired::ChangeError;
use planaria_control::membership::View;
use planaria_gateway::model_list::{Catalog, Ignored, Known, ModelList};
use planaria_protocol::desired::{DesiredMap, DesiredSpec};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::desired::DesiredHandle;
use crate::inventory::{Inventory, InventoryHandle};

/// A change comes into force on this node as fast as its actors pass it on. This is only so that
/// who asked is not told before; if they take longer, it is told all the same.
const IN_FORCE: Duration = Duration::from_secs(2);

/// What the parts of a node know of models, and whom to ask to change that.
#[derive(Debug)]
pub struct NodeCatalog {
    /// The node.
    pub me: NodeId,
    /// Where it looks for models.
    pub models_dir: PathBuf,
    /// What is on its disk.
    pub held: watch::Receiver<Arc<Inventory>>,
    /// What the cluster is to serve.
    pub wanted: watch::Receiver<DesiredMap>,
    /// The members.
    pub view: watch::Receiver<View>,
    /// The cluster as clients see it.
    pub cluster: watch::Receiver<Arc<ClusterView>>,
    /// Looks at the disk again.
    pub inventory: InventoryHandle,
    /// Changes what the cluster is to serve.
    pub desired: DesiredHandle,
}

impl Catalog for NodeCatalog {
    fn list(&self) -> ModelList {
        let inventory = self.held.borrow().clone();
        let known = Known {
            me: self.me,
            desired: &self.wanted.borrow(),
            view: &self.view.borrow(),
            held: inventory.held(),
            unusable: inventory.unusable(),
            passed_over: inventory.passed_over().iter().map(Ignored::of).collect(),
            cluster: &self.cluster.borrow(),
        };
        // Whoever reads it works in another folder than this node.
        let models_dir = &self.models_dir;
        let models_dir = std::path::absolute(models_dir).unwrap_or_else(|_| models_dir.clone());
        known.list(models_dir)
    }

    fn refresh(&self) -> BoxFuture<'_, ()> {
        self.inventory.looked().boxed()
    }

    fn change(
        &self,
        model: ModelName,
        wanted: Option<DesiredSpec>,
    ) -> BoxFuture<'_, Result<(), ChangeError>> {
        async move {
            let mut seen = self.cluster.clone();
            self.desired.change(model.clone(), wanted).await?;
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
