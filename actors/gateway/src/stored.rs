//! `/v1/chat/completions/{id}`: answers that were stored, as OpenAI shows them, with what became of them.

use std::iter;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use planaria_config::SequenceId;
use planaria_protocol::generation::ClientEvent;
use planaria_storage::CommitError;
use serde_json::{Value, json};

use super::answer::{Answer, Finish, Piece, Progress};
use super::error::ApiError;
use super::generate::{self, json, off_thread};
use super::reply::Reply;
use super::request::{Delivery, Endpoint, Reading};
use super::responses;
use super::writer::{Dialect as _, Head};
use super::{Parts, Shared};
use crate::served::ServedModel;
use crate::stored_answers::{Calls, Outcome, StoredAnswer, StoredError};

pub(super) async fn one(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (id, name) = sequence(name)?;
    let answer = read(&shared, id).await?.filter(|answer| answer.beside.is_none());
    let answer = answer.ok_or_else(|| not_stored(&name))?;
    let Again { answer: read, pieces, finish } = Again::of(&shared, id, &answer).await?;
    let reply = Reply::new(Endpoint::Chat, head(id, &answer), &delivery(&answer));
    let mut piece = Piece::default();
    pieces.into_iter().for_each(|next| piece.append(next));
    Ok(json(reply.stored(piece, finish.as_ref(), read.counts(), &answer.record)))
}

pub(super) async fn delete(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    let (id, name) = sequence(name)?;
    if shared.stored.keeps_beside(id) || !remove(&shared, id).await? {
        return Err(not_stored(&name));
    }
    Ok(axum::Json(json!({"object": "chat.completion.deleted", "id": name, "deleted": true})))
}

/// A stored answer of any dialect, if there is one.
pub(super) async fn read(shared: &Parts, id: SequenceId) -> Result<Option<StoredAnswer>, ApiError> {
    shared.stored.read(id).await.map_err(|error| match error {
        StoredError::Closed(_) => ApiError::store_closed(error.to_string()),
        error => ApiError::internal(error.to_string()),
    })
}

/// Forgets a stored answer, and says whether there was one.
pub(super) async fn remove(shared: &Parts, id: SequenceId) -> Result<bool, ApiError> {
    let kept = |error: CommitError| {
        let message = format!("the answer is still stored: {error}");
        match shared.stored.closed() {
            Some(_) => ApiError::store_closed(message),
            None => ApiError::internal(message),
        }
    };
    shared.stored.remove(id).await.map_err(kept)
}

/// What is known of a stored answer beforehand.
pub(super) fn head(id: SequenceId, answer: &StoredAnswer) -> Head {
    let name = match &answer.beside {
        Some(_) => responses::name_of(id),
        None => Endpoint::Chat.answer_id(id),
    };
    Head {
        id: name,
        created: answer.record.created,
        model: answer.record.model.to_string(),
        prompt: answer.prompt.as_slice().into(),
    }
}

/// How its client wanted it.
fn delivery(answer: &StoredAnswer) -> Delivery {
    let record = &answer.record;
    let parallel_calls = match record.calls {
        None => true,
        Some(Calls::Marked { parallel, .. } | Calls::Listed { parallel, .. }) => parallel,
    };
    Delivery {
        stop: record.stop.clone(),
        stream: false,
        include_usage: false,
        token_ids: record.token_ids,
        logprobs: record.sampling.top_logprobs.is_some(),
        store: Some(record.metadata.clone()),
        answers: 1,
        parallel_calls,
    }
}

/// An answer that came again from what was stored of it.
pub(super) struct Again {
    /// As it was after the last token.
    pub(super) answer: Answer,
    /// What its client saw, in the steps in which it came.
    pub(super) pieces: Vec<Piece>,
    /// Why it ended, if it has.
    pub(super) finish: Option<Finish>,
}

impl Again {
    pub(super) async fn of(
        shared: &Parts,
        id: SequenceId,
        stored: &StoredAnswer,
    ) -> Result<Self, ApiError> {
        let model = shared.words_of(&stored.record.model).await?;
        Self::with(model, id, stored).await
    }

    /// In the words of its model.
    pub(super) async fn with(
        model: Arc<ServedModel>,
        id: SequenceId,
        stored: &StoredAnswer,
    ) -> Result<Self, ApiError> {
        let (tokens, reused) = (stored.tokens.clone(), stored.record.reused);
        let finished = match stored.record.outcome {
            Some(Outcome::Finished(reason)) => Some(ClientEvent::Finished(reason)),
            _ => None,
        };
        let reading = Reading::of_recorded(stored.record.calls.as_ref());
        let (prompt, delivery) = (stored.prompt.clone(), delivery(stored));
        off_thread(move || {
            let answer = generate::answer(&model, &reading, &prompt, &delivery);
            let answer = answer.map_err(|error| ApiError::internal(error.to_string()))?;
            let mut answer = answer.of(id);
            let mut pieces = Vec::new();
            let tokens = tokens.into_iter().map(ClientEvent::Token);
            for event in iter::once(ClientEvent::Reused(reused)).chain(tokens).chain(finished) {
                match answer.on(Some(event)) {
                    Some(Progress::More(more)) => pieces.push(more),
                    Some(Progress::Last(last, finish)) => {
                        pieces.push(last);
                        return Ok(Self { answer, pieces, finish: Some(finish) });
                    }
                    Some(Progress::Failed(error)) => return Err(error),
                    Some(Progress::Recovering) | None => {}
                }
            }
            Ok(Self { answer, pieces, finish: None })
        })
        .await
    }
}

fn sequence(name: Result<Path<String>, PathRejection>) -> Result<(SequenceId, String), ApiError> {
    // What cannot be decoded is no answer's name either.
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    let digits = name.strip_prefix(Endpoint::Chat.answer_prefix()).filter(|digits| {
        digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    match digits.and_then(|digits| u128::from_str_radix(digits, 16).ok()) {
        Some(bits) => Ok((SequenceId::from_bits(bits), name)),
        None => Err(not_stored(&name)),
    }
}

fn not_stored(name: &str) -> ApiError {
    let name: String = name.chars().take(64).collect();
    ApiError::refused(
        StatusCode::NOT_FOUND,
        "not_found",
        format!(
            "this node has no stored answer `{name}`: an answer is stored if its request says `store: \
             true`, by the node that was asked, until newer ones need the room"
        ),
    )
}
