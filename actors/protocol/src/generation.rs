//! When a generation ends, what it gives, and why it failed.

use planaria_config::ModelName;
use planaria_engine::sampler::Logprobs;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// When a generation ends by itself. Stop strings are the gateway's business: it drops the
/// generation when it meets one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Until {
    /// Tokens that end the answer; empty when the client ignores them.
    pub eos: Vec<u32>,
    /// Most tokens to generate, at least 1. The model's context ends it sooner.
    pub max_tokens: u32,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its id. The end-of-sequence token itself is not sent.
    pub id: u32,
    /// Log-probabilities, when asked for.
    pub logprobs: Option<Logprobs>,
}

/// Why a generation ended as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// An end-of-sequence token.
    Stop,
    /// The number of tokens asked for, or the context, was reached.
    Length,
}

/// Why an admitted generation ended too soon.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum GenerationError {
    /// A node that held layers of the model was lost.
    #[error("the node {node}, which computed layers {layers}, was lost")]
    NodeLost {
        /// The node's name.
        node: String,
        /// Its layers.
        layers: String,
    },
    /// A stage could not compute its part.
    #[error("layers {layers} on {node} failed: {reason}")]
    StageFailed {
        /// The node's name.
        node: String,
        /// Its layers.
        layers: String,
        /// Why, in words.
        reason: String,
        /// The number of the stage in the sequence's plan, from 0. An earlier build does not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<u16>,
    },
    /// A stage cannot compute for the moment: its worker loads or is started again, or it does not
    /// know of the plan (yet, or any more).
    #[error("layers {layers} on {node} are not ready: {reason}")]
    NotReady {
        /// The node's name.
        node: String,
        /// Its layers.
        layers: String,
        /// Why, in words.
        reason: String,
    },
    /// What was asked for cannot be computed, by whomever it is tried.
    #[error("layers {layers} on {node} cannot compute this: {reason}")]
    Rejected {
        /// The node's name.
        node: String,
        /// Its layers.
        layers: String,
        /// Why, in words.
        reason: String,
    },
    /// The first stage has no room for another sequence.
    #[error("all {limit} places of the model are taken: try again later")]
    NoRoom {
        /// Sequences that it holds at once.
        limit: u32,
    },
    /// No token came in time.
    #[error("no token came for {seconds} seconds")]
    TimedOut {
        /// The deadline that passed.
        seconds: u32,
    },
    /// The client did not read what it was sent.
    #[error("the client did not read its answer")]
    ClientTooSlow,
    /// The plan that the request waited for is gone.
    #[error("the model `{model}` cannot answer any more: {reason}")]
    PlanLost {
        /// The model.
        model: ModelName,
        /// Why, in words.
        reason: String,
    },
    /// The node is shutting down.
    #[error("this node is shutting down")]
    ShuttingDown,
}

impl GenerationError {
    /// What went wrong, in one word for counts.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NodeLost { .. } => "node_lost",
            Self::StageFailed { .. } => "stage_failed",
            Self::NotReady { .. } => "stage_not_ready",
            Self::TimedOut { .. } => "silence",
            Self::Rejected { .. } => "rejected",
            Self::NoRoom { .. } => "no_room",
            Self::ClientTooSlow => "client_too_slow",
            Self::PlanLost { .. } => "plan_lost",
            Self::ShuttingDown => "shutting_down",
        }
    }
}
