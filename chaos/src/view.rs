//! What a node says of its cluster at `GET /cluster`, as far as anybody from outside needs it.

use std::collections::BTreeMap;

use planaria_config::{Epoch, LayerRange, ModelName, NodeId};
use serde::Deserialize;

/// The cluster, as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct View {
    /// The node that answered.
    pub node: Answering,
    /// Every known node.
    pub nodes: Vec<NodeSeen>,
    /// Every model that is to be served.
    pub models: Vec<ModelSeen>,
    /// What the node's own sequences have been through, oldest first.
    pub recoveries: Vec<RecoverySeen>,
}

/// The node that answered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Answering {
    /// Its id.
    pub id: NodeId,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeSeen {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `alive`, `suspect`, `down` or `left`.
    pub state: String,
    /// Its process.
    pub pid: u32,
    /// Its workers.
    pub worker_pids: Vec<u32>,
    /// How often its parts were started again, by name.
    #[serde(default)]
    pub restarts: BTreeMap<String, u64>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelSeen {
    /// Its name.
    pub name: ModelName,
    /// `ready`, `loading` or `unavailable`.
    pub state: String,
    /// Why it is not ready, in words.
    pub reason: String,
    /// The plan's.
    pub epoch: Option<Epoch>,
    /// The plan.
    pub stages: Vec<StageSeen>,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StageSeen {
    /// Who holds it.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// Its layers.
    #[serde(flatten)]
    pub layers: LayerRange,
    /// The nodes that compute it together, this one first; empty if it is one alone.
    #[serde(default)]
    pub ranks: Vec<RankSeen>,
}

/// A rank of a group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RankSeen {
    /// Who.
    pub node: NodeId,
    /// The first of its units.
    pub first_unit: u16,
    /// The last of them.
    pub last_unit: u16,
    /// Units of each layer.
    pub units: u16,
}

impl StageSeen {
    /// All nodes that compute it.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        let alone = self.ranks.is_empty().then_some(self.node);
        alone.into_iter().chain(self.ranks.iter().map(|rank| rank.node))
    }
}

/// A recovery.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RecoverySeen {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What was lost.
    pub cause: String,
    /// Milliseconds from the last sign of progress to the notice.
    pub detect_ms: u64,
    /// From there until there was a plan, if that was seen.
    pub plan_ms: Option<u64>,
    /// From there until all stages were ready.
    pub load_ms: u64,
    /// From there until the first new token.
    pub rebuild_ms: u64,
    /// From the last sign of progress to that token.
    pub resume_ms: u64,
    /// Sequences that went on.
    pub sequences: u32,
    /// Positions that were computed again.
    pub replayed: u64,
}

impl View {
    /// A model.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&ModelSeen> {
        self.models.iter().find(|model| model.name.as_str() == name)
    }

    /// The node of a process.
    #[must_use]
    pub fn of_process(&self, pid: u32) -> Option<&NodeSeen> {
        self.nodes.iter().find(|node| node.pid == pid && !node.is_over())
    }
}

impl NodeSeen {
    /// Whether it is there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.state == "alive"
    }

    /// Whether nothing more is expected of it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "down" | "left")
    }
}

impl ModelSeen {
    /// Whether it can answer.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == "ready"
    }
}
