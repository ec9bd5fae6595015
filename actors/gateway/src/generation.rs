//! A generation as its client sees it: what is asked for, and what comes back.

use futures::future::BoxFuture;
use planaria_config::SequenceId;
use tokio::sync::mpsc;

pub use planaria_protocol::generation::{
    ClientEvent, FinishReason, GenerationError, Request, SubmitError, Token, Until,
};

/// Whoever can run a generation: the cluster, or a double in tests.
pub trait Generator: Send + Sync + 'static {
    /// Admits or refuses a request. Admitted, it may still wait for its turn.
    fn submit(&self, request: Request) -> BoxFuture<'_, Result<Generation, SubmitError>>;
}

/// A running generation. Dropping it cancels the work on every stage.
#[derive(Debug)]
pub struct Generation {
    /// Its id, the same on all nodes.
    pub id: SequenceId,
    /// What happens, ending with `Finished` or `Failed`. Closed without either, the node itself
    /// broke.
    pub events: mpsc::Receiver<ClientEvent>,
}
