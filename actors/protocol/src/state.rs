//! States of nodes, models and shards, as reports and views name them.

use serde::{Deserialize, Serialize};

/// What the cluster thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answers, and the link to it is up.
    Alive,
    /// It does not answer, or the link to it is lost: it may be dead. It keeps its place in plans
    /// until that is known.
    Suspect,
    /// It has not answered for so long that it counts as dead.
    Down,
    /// It stopped in order.
    Left,
}

impl NodeState {
    /// Whether nothing more is expected of it.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Down | Self::Left)
    }
}

/// Whether a model can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelState {
    /// A request would succeed now.
    Ready,
    /// Its layers are being loaded.
    Loading,
    /// There is no plan, for the reason given.
    Unavailable,
}

/// What a shard's worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardState {
    /// The worker reads its layers.
    Loading,
    /// The worker computes.
    Ready,
    /// The worker died and is being started again.
    Restarting,
    /// The worker was given up, or its node is gone.
    Failed,
}

/// Sequences of one node's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SequenceCounts {
    /// Being computed.
    pub running: u32,
    /// Waiting for a place.
    pub queued: u32,
}

/// How what was lost came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecoveryLabel {
    /// It was kept, or computed again with the same bits.
    Exact,
    /// It was computed again, by the same sums of the same numbers; their last bits may differ.
    #[default]
    Equivalent,
}
