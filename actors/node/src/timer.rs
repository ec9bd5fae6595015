//! An actor that is told when it is time.

use std::time::Instant;

use ractor::{ActorRef, Message};
use tokio::task::JoinHandle;

/// Rings once, not later than it was last set to. Dropped, it does not ring any more.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<(Instant, JoinHandle<()>)>);

impl Timer {
    /// Has `actor` told `message` at this time, or sooner if that was asked for before: who is told too
    /// early looks and sets it again, and most of what happens only puts the time off.
    pub(crate) fn set<M: Message>(
        &mut self,
        at: Instant,
        actor: &ActorRef<M>,
        message: impl FnOnce() -> M + Send + 'static,
    ) {
        if self.0.as_ref().is_some_and(|(set, _)| *set <= at) {
            return;
        }
        self.stop();
        let actor = actor.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            // An actor that has ended needs to know nothing.
            drop(actor.cast(message()));
        });
        self.0 = Some((at, task));
    }

    /// It rang.
    pub(crate) fn rang(&mut self) {
        self.0 = None;
    }

    fn stop(&mut self) {
        if let Some((_, task)) = self.0.take() {
            task.abort();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.stop();
    }
}
