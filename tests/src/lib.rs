//! What the scenarios stand on: the harness of `planaria_chaos`, with what nodes say in the types of
//! `planaria_control`.

pub use planaria_chaos::{
    Cluster, Lan, Machine, NodeSpec, PATIENCE, Process, api, give_tools, network, process,
    repository, wait_for, wait_for_up_to, write_fake_model, write_tool_model,
};
use planaria_control::cluster_view::ClusterView;

pub mod collector;

use anyhow::{Context as _, Result, ensure};

/// Asks a node for all that it says of the cluster.
pub trait Look {
    /// `GET /cluster`.
    fn cluster(&self) -> impl Future<Output = Result<ClusterView>> + Send;
}

impl Look for api::Api {
    async fn cluster(&self) -> Result<ClusterView> {
        let (status, text) = self.get("/cluster").await?;
        ensure!(status == 200, "/cluster answered {status}: {text}");
        serde_json::from_str(&text).context(text)
    }
}

/// Waits for a model.
pub trait Ready {
    /// As [`Cluster::agreed`]; then gives the first node's view.
    fn ready(&self, model: &str, stages: usize) -> impl Future<Output = Result<ClusterView>>;
}

impl Ready for Cluster {
    async fn ready(&self, model: &str, stages: usize) -> Result<ClusterView> {
        self.agreed(model, stages).await?;
        self.nodes.first().context("no node")?.api.cluster().await
    }
}
