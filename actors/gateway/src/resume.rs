//! Goes on with stored answers that were interrupted: the node was restarted, or a part of it.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use planaria_config::SequenceId;
use planaria_protocol::generation::{FinishReason, Request, SubmitError};
use planaria_telemetry::wall_clock::unix_seconds;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::answer::{Counts, Finish, Piece, Progress};
use super::error::ApiError;
use super::request::Endpoint;
use super::responses::{self, GoingOn};
use super::running::Running;
use super::stored::{Again, head};
use super::traced::Traced;
use super::writer::Dialect as _;
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
    let mut again = match again(shared, id, &answer, &recorder).await {
        Ok(Some(again)) => again,
        // It was removed.
        Ok(None) => return,
        Err(error) => return recorder.ended(error.outcome(), unix_seconds()),
    };
    if let Some(reason) = ended(&answer, &again) {
        return recorder.ended(Outcome::Finished(reason), unix_seconds());
    }
    let reader = match responses::going_on(shared, id, &answer, &mut again).await {
        Ok(reader) => reader,
        Err(error) => return recorder.ended(error.outcome(), unix_seconds()),
    };
    go_on(shared, id, (answer, again), recorder, reader).await;
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
            Ok(model) => return Again::with(model, id, answer).await.map(Some),
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
    again.finish.as_ref().map(Finish::reason).or(is_full.then_some(FinishReason::Length))
}

async fn go_on(
    shared: &Parts,
    id: SequenceId,
    (answer, again): (StoredAnswer, Again),
    recorder: Recorder,
    mut reader: Option<GoingOn>,
) {
    // Its former trace ended with the life of the node that began it.
    let traced = Traced::begin(Endpoint::Chat.operation(), answer.record.model.as_str(), None);
    let request = Request {
        model: answer.record.model.clone(),
        prompt: answer.prompt.clone(),
        begun: answer.tokens.iter().map(|token| token.id).collect(),
        sampling: answer.record.sampling.clone(),
        until: answer.record.until.clone(),
        trace: traced.context(),
    };
    let head = head(id, &answer);
    traced.asks(&request);
    traced.answers(&head.id);
    let admitted = tokio::select! {
        admitted = admitted(shared, &request, &recorder) => admitted,
        () = cancelled(reader.as_ref()) => {
            return recorder.ended(Outcome::Cancelled, unix_seconds());
        }
    };
    let generation = match admitted {
        Ok(Some(generation)) => generation,
        Ok(None) => return,
        Err(error) => {
            let counts = again.answer.counts();
            return not_admitted(&error, counts, &answer, &recorder, reader);
        }
    };
    tracing::info!(sequence = %generation.id, stored = head.id, model = %request.model,
        tokens = answer.tokens.len(), "a stored answer goes on");
    let metrics = Arc::clone(&shared.metrics);
    if let Some(reader) = &mut reader {
        reader.begins();
    }
    let mut running = Running::new(generation, again.answer, head, Some(recorder), metrics, traced);
    loop {
        let progress = tokio::select! {
            progress = running.next() => progress,
            () = cancelled(reader.as_ref()) => return,
        };
        let is_last = !matches!(progress, Progress::More(_) | Progress::Recovering);
        if let Some(reader) = &mut reader {
            reader.shows(progress, running.counts());
        }
        if is_last || running.is_removed() {
            return;
        }
    }
}

/// Waits until whoever reads it wants no more of it.
async fn cancelled(reader: Option<&GoingOn>) {
    match reader {
        Some(reader) => reader.cancelled().await,
        None => pending().await,
    }
}

/// What is written of an answer that the cluster does not take up again.
fn not_admitted(
    error: &SubmitError,
    counts: Counts,
    answer: &StoredAnswer,
    recorder: &Recorder,
    reader: Option<GoingOn>,
) {
    let progress = match error {
        // So far its plan had room for it.
        SubmitError::PromptTooLong { .. } if !answer.tokens.is_empty() => {
            recorder.ended(Outcome::Finished(FinishReason::Length), unix_seconds());
            Progress::Last(Piece::default(), Finish::Length)
        }
        _ => {
            tracing::warn!(model = %answer.record.model, %error, "a stored answer cannot go on");
            let error = ApiError::not_admitted(error, "messages");
            recorder.ended(error.outcome(), unix_seconds());
            Progress::Failed(error)
        }
    };
    if let Some(mut reader) = reader {
        reader.shows(progress, counts);
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
                SubmitError::Overloaded { .. }
                | SubmitError::OlderBuild { .. }
                | SubmitError::Unavailable
                | SubmitError::Leaving,
            ) => sleep(PAUSE).await,
        }
    }
    Ok(None)
}
