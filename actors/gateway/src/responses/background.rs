//! Responses that are computed without a client.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::memory::{Entry, Memory};
use super::reply::Reply;
use super::{following, kept};
use crate::Parts;
use crate::answer::Progress;
use crate::error::ApiError;
use crate::generate::{Begun, json};
use crate::stream::{Beginning, written};

/// So long a client waits to hear that its request is refused, or has begun: longer than most prompts take to be
/// read. Then it waits in the queue.
const PATIENCE: Duration = Duration::from_millis(500);

/// Begins to compute a response, and tells its client so: once, or with all its events. What is to be on disk is there by
/// then, or known not to be: `settled` tells.
pub(super) async fn respond(
    shared: &Parts,
    begun: Begun,
    entry: Arc<Entry>,
    settled: impl Future<Output = ()>,
) -> Result<Response, ApiError> {
    let Begun { beginning, is_streamed, .. } = begun;
    let memory = &shared.responses;
    memory.insert_in_background(Arc::clone(&entry))?;
    let mut unnamed = Unnamed { entry: &entry, memory, is_named: false };
    entry.write(Reply::queued);
    let (tell, mut told) = oneshot::channel();
    let task = tokio::spawn(compute(Arc::clone(&entry), beginning, tell));
    entry.computed_by(task.abort_handle());
    let first = tokio::select! {
        biased;
        told = &mut told => Some(told),
        () = settled => timeout(PATIENCE, &mut told).await.ok(),
    };
    if let Some(Ok(Err(error))) = first {
        drop(unnamed);
        if let Some(key) = kept::key_of(&entry.id) {
            // If the disk does not take that, it has failed for nobody.
            drop(shared.stored.remove(key).await);
        }
        return Err(error);
    }
    unnamed.is_named = true;
    if is_streamed {
        return Ok(following::stream(Arc::clone(&entry), 0, shared.limits.heartbeat));
    }
    Ok(json(entry.text()))
}

/// A response whose client is not told its name yet. If the client leaves before, nobody will ever ask for it.
struct Unnamed<'a> {
    entry: &'a Entry,
    memory: &'a Memory,
    is_named: bool,
}

impl Drop for Unnamed<'_> {
    fn drop(&mut self) {
        if !self.is_named {
            self.entry.cancel();
            self.memory.remove(&self.entry.id);
        }
    }
}

async fn compute(
    entry: Arc<Entry>,
    beginning: Beginning,
    tell: oneshot::Sender<Result<(), ApiError>>,
) {
    let mut choices = match beginning.await {
        Ok(choices) => choices,
        Err(error) => {
            entry.write(|reply| reply.failed(&error));
            drop(tell.send(Err(error)));
            return;
        }
    };
    // Events are in the response, where readers find them.
    choices.writer().opening();
    drop(tell.send(Ok(())));
    while !choices.are_over() {
        let (answer, progress) = choices.next().await;
        let is_failed = matches!(progress, Progress::Failed(_));
        written(&mut choices, answer, progress);
        if is_failed {
            return;
        }
    }
}
