//! A generation as its client sees it: what is asked for, and what comes back.

use futures::future::BoxFuture;
use planaria_config::{ModelName, SequenceId};
use planaria_engine::sampler::SamplingParams;
pub use planaria_protocol::generation::{FinishReason, GenerationError, Token, Until};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::traces::TraceContext;

/// Whoever can run a generation: the cluster, or a double in tests.
pub trait Generator: Send + Sync + 'static {
    /// Admits or refuses a request. Admitted, it may still wait for its turn.
    fn submit(&self, request: Request) -> BoxFuture<'_, Result<Generation, SubmitError>>;
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

/// A running generation. Dropping it cancels the work on every stage.
#[derive(Debug)]
pub struct Generation {
    /// Its id, the same on all nodes.
    pub id: SequenceId,
    /// What happens, ending with `Finished` or `Failed`. Closed without either, the node itself
    /// broke.
    pub events: mpsc::Receiver<Event>,
}

/// Something that happened to a generation.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
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
    /// A part of this node is being started.
    #[error("this node is not ready to take requests")]
    Unavailable,
    /// This node was asked to stop.
    #[error("this node is stopping: ask another node, or this one once it was started again")]
    Leaving,
}
