//! How one actor reaches another that may be restarted.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{ActorRef, Message, RpcReplyPort};
use thiserror::Error;

/// The place of an actor in the tree, filled by whoever is in office. Clones share the place.
///
/// The base of all typed handles: callers never see an `ActorRef`.
#[derive(Debug)]
pub(crate) struct Mailbox<M>(Arc<RwLock<Option<ActorRef<M>>>>);

/// The actor did not answer. Whether it did what was asked is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Unanswered {
    /// It is being restarted.
    #[error("a part of the node is being restarted")]
    Vacant,
    /// It took too long.
    #[error("a part of the node did not answer in time")]
    Late,
}

impl<M: Message> Mailbox<M> {
    /// A place that nobody fills yet.
    #[must_use]
    pub(crate) fn vacant() -> Self {
        Self(Arc::new(RwLock::new(None)))
    }

    /// Puts an actor into office.
    pub(crate) fn fill(&self, actor: ActorRef<M>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(actor);
    }

    /// Tells the actor something. A message to a vacant place, or to an actor that is just
    /// dying, is lost: whoever needs an answer calls.
    pub(crate) fn tell(&self, message: M) {
        if let Some(actor) = self.get() {
            // An error means that the actor is gone; its successor starts from the current state.
            drop(actor.cast(message));
        }
    }

    /// Asks the actor something.
    ///
    /// # Errors
    /// When there is none, or it does not answer within `patience`.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        question: impl FnOnce(RpcReplyPort<T>) -> M,
    ) -> Result<T, Unanswered> {
        let actor = self.get().ok_or(Unanswered::Vacant)?;
        match actor.call(question, Some(patience)).await {
            Ok(CallResult::Success(answer)) => Ok(answer),
            Ok(CallResult::Timeout) => Err(Unanswered::Late),
            Ok(CallResult::SenderError) | Err(_) => Err(Unanswered::Vacant),
        }
    }

    /// Who is in office.
    pub(crate) fn get(&self) -> Option<ActorRef<M>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
