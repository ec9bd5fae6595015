//! Goes on with stored answers that were interrupted: the node was restarted, or a part of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use planaria_config::SequenceId;
use planaria_protocol::generation::{FinishReason, Request, SubmitError};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::answer::Progress;
use super::error::ApiError;
use super::request::Endpoint;
use super::running::Running;
use super::stored::{Again, reply};
use super::traced::Traced;
use super::{Parts, Shared};
use crate::generation::Generation;
use crate::stored_answers::{Claim, Outcome, Recorder, StoredAnswer, StoredError};

/// The wait before an answer that was interrupted again is gone on with for the second time, and before the
/// cluster is asked again; places become free without a word.
const PAUSE: Duration = Duration::from_secs(1);
/// Each further wait is twice as long, up to about a minute.
const LONGEST_DOUBLINGS: u32 = 6;
/// The same for a model whose files cannot be read: whoever mends the folder looks whether it helps.
const LONGEST_DOUBLINGS_FOR_FILES: u32 = 4;

/// Takes care of all that were interrupted, and will be. Never ends by itself; dropped, it leaves those
/// that are under way as interrupted.
pub(super) async fn all(shared: Shared) {
    let mut interruptions = shared.stored.interruptions();
    let mut under_way = JoinSet::new();
    let mut tries: BTreeMap<SequenceId, u32> = BTreeMap::new();
    loop {
        for claim in shared.stored.claim() {
            let shared = Shared::clone(&shared);
            let tries = tries.entry(claim.id()).or_default();
            // It may be the answer itself that breaks this node.
            let wait = PAUSE.saturating_mul((1 << (*tries).min(LONGEST_DOUBLINGS)) - 1);
            *tries += 1;
            under_way.spawn(async move {
                sleep(wait).await;
                resume(&shared, claim).await;
            });
        }
        tokio::select! {
            changed = interruptions.changed() => if changed.is_err() { return },
            Some(_) = under_way.join_next() => {}
        }
    }
}

async fn resume(shared: &Parts, claim: Claim) {
    let id = claim.id();
    let (answer, recorder) = match claim.take_up().await {
        Ok(Some(taken)) => taken,
        // It was removed.
        Ok(None) => return,
        // It is claimed again.
        Err(StoredError::Closed(why)) => {
            tracing::warn!(sequence = %id, why, "a stored answer cannot go on before the store is open");
            return;
        }
        Err(error) => {
            tracing::error!(sequence = %id, %error, "a stored answer cannot go on");
            return;
        }
    };
    match again(shared, id, &answer, &recorder).await {
        Ok(Some(again)) => match ended(&answer, &again) {
            Some(reason) => recorder.ended(Outcome::Finished(reason)),
            None => go_on(shared, id, answer, again, recorder).await,
        },
        // It was removed.
        Ok(None) => {}
        Err(error) => recorder.ended(error.outcome()),
    }
}

/// What came of it so far, as soon as this node has the words of its model: a folder may come late, as one
/// on another machine does. Waits for as long as the model is to be served; `None` when the answer was
/// removed.
async fn again(
    shared: &Parts,
    id: SequenceId,
    answer: &StoredAnswer,
    recorder: &Recorder,
) -> Result<Option<Again>, ApiError> {
    let name = &answer.record.model;
    let mut doublings = 0;
    while !recorder.is_removed() {
        let error = match shared.words_of(name).await {
            Ok(model) => return Again::with(model, answer).await.map(Some),
            Err(error) => error,
        };
        // What is to be served is known from the disk on: this is no matter of time.
        shared.served_name(name.as_str())?;
        let wait = PAUSE.saturating_mul(1 << doublings);
        if doublings < LONGEST_DOUBLINGS_FOR_FILES {
            tracing::warn!(sequence = %id, model = %name, error = error.message(), next_try = ?wait,
                "a stored answer waits for the files of its model");
            doublings += 1;
        }
        sleep(wait).await;
    }
    Ok(None)
}

/// Whether it was over when it was interrupted, but for the word that it is.
fn ended(answer: &StoredAnswer, again: &Again) -> Option<FinishReason> {
    let is_full = answer.tokens.len() >= answer.record.until.max_tokens as usize;
    again.reason.or(is_full.then_some(FinishReason::Length))
}

async fn go_on(
    shared: &Parts,
    id: SequenceId,
    answer: StoredAnswer,
    again: Again,
    recorder: Recorder,
) {
    // Its former trace ended with the life of the node that began it.
    let traced = Traced::begin(Endpoint::Chat, answer.record.model.as_str(), None);
    let request = Request {
        model: answer.record.model.clone(),
        prompt: answer.prompt.clone(),
        begun: answer.tokens.iter().map(|token| token.id).collect(),
        sampling: answer.record.sampling.clone(),
        until: answer.record.until.clone(),
        trace: traced.context(),
    };
    let reply = reply(id, &answer);
    traced.asks(&request);
    traced.answers(&reply.id);
    let generation = match admitted(shared, &request, &recorder).await {
        Ok(Some(generation)) => generation,
        Ok(None) => return,
        // So far its plan had room for it.
        Err(SubmitError::PromptTooLong { .. }) if !answer.tokens.is_empty() => {
            recorder.ended(Outcome::Finished(FinishReason::Length));
            return;
        }
        Err(error) => {
            tracing::warn!(sequence = %id, model = %request.model, %error, "a stored answer cannot go on");
            recorder.ended(ApiError::not_admitted(&error, "messages").outcome());
            return;
        }
    };
    tracing::info!(sequence = %generation.id, stored = reply.id, model = %request.model,
        tokens = answer.tokens.len(), "a stored answer goes on");
    let metrics = Arc::clone(&shared.metrics);
    let mut running =
        Running::new(generation, again.answer, reply, Some(recorder), metrics, traced);
    while matches!(running.next().await, Progress::More(_) | Progress::Recovering) {
        if running.is_removed() {
            return;
        }
    }
}

/// Waits until the cluster can answer, for as long as it takes; `None` when the answer was removed.
async fn admitted(
    shared: &Parts,
    request: &Request,
    recorder: &Recorder,
) -> Result<Option<Generation>, SubmitError> {
    let mut view = shared.view.clone();
    while !recorder.is_removed() {
        view.mark_unchanged();
        match shared.generator.submit(request.clone()).await {
            Ok(generation) => return Ok(Some(generation)),
            Err(SubmitError::UnknownModel(model))
                if shared.served_name(model.as_str()).is_err() =>
            {
                return Err(SubmitError::UnknownModel(model));
            }
            Err(error @ SubmitError::PromptTooLong { .. }) => return Err(error),
            // A node that has just started does not know its models yet.
            Err(SubmitError::UnknownModel(_) | SubmitError::NoPlan { .. }) => {
                drop(timeout(PAUSE, view.changed()).await);
            }
            Err(
                SubmitError::Overloaded { .. } | SubmitError::Unavailable | SubmitError::Leaving,
            ) => sleep(PAUSE).await,
        }
    }
    Ok(None)
}
