//! A generation: what is asked for, what comes back, when it ends and why it failed.

use planaria_config::ModelName;
use planaria_engine::sampler::{Logprobs, SamplingParams};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::trace_context::TraceContext;

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
    #[error("{}{reason}", who_cannot(.node, .layers, *.form))]
    Rejected {
        /// The node's name.
        node: String,
        /// Its layers.
        layers: String,
        /// Why, in words.
        reason: String,
        /// What is wrong with the form that was asked for, if that is the reason. An earlier build does not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        form: Option<FormFault>,
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

/// What is wrong with the form that an answer was to be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FormFault {
    /// To follow it takes too much.
    TooComplex,
    /// It cannot be followed, for this or for a reason of a later build.
    #[serde(other)]
    Unsupported,
}

/// A node is named where its part is at fault; a form is at fault wherever it is followed.
fn who_cannot(node: &str, layers: &str, form: Option<FormFault>) -> String {
    match form {
        Some(_) => String::new(),
        None => format!("layers {layers} on {node} cannot compute this: "),
    }
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

/// A request after its words became tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Which model is to answer.
    pub model: ModelName,
    /// The prompt's token ids, at least one.
    pub prompt: Vec<u32>,
    /// What there is of the answer already: it goes on behind that.
    pub begun: Vec<u32>,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// When to end.
    pub until: Until,
    /// If it is traced: what it is a part of.
    pub trace: Option<TraceContext>,
}

/// Something that happened to a generation.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientEvent {
    /// So many tokens of the prompt needed no computing, because a former one began alike. Comes
    /// before the first token, if at all.
    Reused(u32),
    /// Something died on the way. The tokens go on as if nothing had, once that is mended; told again
    /// every few seconds until then.
    Recovering,
    /// The next token, in order, none lost or repeated.
    Token(Token),
    /// All tokens were sent.
    Finished(FinishReason),
    /// There will be no more tokens.
    Failed(GenerationError),
}

/// Why a request was not admitted. Nothing was computed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// The cluster is not asked to serve this model.
    #[error("the model `{0}` is not served here")]
    UnknownModel(ModelName),
    /// No node group can serve it now; it may come back by itself.
    #[error("the model `{model}` cannot answer now: {reason}")]
    NoPlan {
        /// The model.
        model: ModelName,
        /// Why, in words.
        reason: String,
    },
    /// All places and the queue are taken.
    #[error("{running} sequences run and {queued} wait: try again later")]
    Overloaded {
        /// Sequences that run.
        running: u32,
        /// Requests that wait.
        queued: u32,
    },
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens, and the context ends at {limit}")]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: u32,
        /// Positions that there are.
        limit: u32,
    },
    /// The form of the answer cannot be kept while this node computes for the model.
    #[error("an answer cannot be held to a form: the node `{node}` runs an older build")]
    OlderBuild {
        /// The node's name.
        node: String,
    },
    /// A part of this node is being started.
    #[error("this node is not ready to take requests")]
    Unavailable,
    /// This node was asked to stop.
    #[error("this node is stopping: ask another node, or this one once it was started again")]
    Leaving,
}

#[cfg(test)]
mod tests {
    use rmp_serde::{from_slice, to_vec_named};

    use super::*;

    fn rejected(form: Option<FormFault>) -> GenerationError {
        let (node, layers, reason) = ("mini".to_owned(), "0-3".to_owned(), "too much".to_owned());
        GenerationError::Rejected { node, layers, reason, form }
    }

    #[test]
    fn a_form_is_at_fault_and_no_node() {
        assert_eq!(rejected(Some(FormFault::TooComplex)).to_string(), "too much");
        let said = rejected(None).to_string();
        assert_eq!(said, "layers 0-3 on mini cannot compute this: too much");
    }

    /// Builds that know nothing of it read the rest, and what later ones say is something.
    #[test]
    fn what_is_wrong_with_a_form_is_an_addition() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        enum Earlier {
            Rejected { node: String, layers: String, reason: String },
        }
        #[derive(Serialize)]
        enum Later {
            Rejected { node: String, layers: String, reason: String, form: &'static str },
        }
        let (node, layers, reason) = ("mini".to_owned(), "0-3".to_owned(), "too much".to_owned());
        let said = to_vec_named(&rejected(Some(FormFault::TooComplex))).unwrap();
        let earlier = Earlier::Rejected {
            node: node.clone(),
            layers: layers.clone(),
            reason: reason.clone(),
        };
        assert_eq!(from_slice::<Earlier>(&said).unwrap(), earlier);
        let back: GenerationError = from_slice(&said).unwrap();
        assert_eq!(back, rejected(Some(FormFault::TooComplex)));
        assert_eq!(to_vec_named(&rejected(None)).unwrap(), to_vec_named(&earlier).unwrap());
        let later = Later::Rejected { node, layers, reason, form: "TooSlow" };
        let read: GenerationError = from_slice(&to_vec_named(&later).unwrap()).unwrap();
        assert_eq!(read, rejected(Some(FormFault::Unsupported)));
    }
}
