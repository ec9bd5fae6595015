//! `/v1/chat/completions/{id}`: answers that were stored, as OpenAI shows them, with what became of them.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use planaria_config::SequenceId;
use planaria_engine::detokenizer::Detokenizer;
use planaria_engine::stop::StopStrings;
use planaria_protocol::generation::{ClientEvent, FinishReason};
use planaria_storage::CommitError;
use serde_json::{Value, json};

use super::answer::{Answer, Piece, Progress};
use super::error::ApiError;
use super::generate::{json, off_thread};
use super::reply::Reply;
use super::request::{Delivery, Endpoint};
use super::{Parts, Shared};
use crate::served::ServedModel;
use crate::stored_answers::{Outcome, StoredAnswer, StoredError};

pub(super) async fn one(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (id, name) = sequence(name)?;
    let answer = shared.stored.read(id).await;
    let answer = answer.map_err(|error| match error {
        StoredError::Closed(_) => ApiError::store_closed(error.to_string()),
        error => ApiError::internal(error.to_string()),
    })?;
    let answer = answer.ok_or_else(|| not_stored(&name))?;
    let again = Again::of(&shared, &answer).await?;
    let reply = reply(id, &answer);
    let counts = again.answer.counts();
    Ok(json(reply.stored(again.piece, again.reason, counts, &answer.record)))
}

pub(super) async fn delete(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    let (id, name) = sequence(name)?;
    let removed = shared.stored.remove(id).await;
    let kept = |error: CommitError| {
        let message = format!("the answer is still stored: {error}");
        match shared.stored.closed() {
            Some(_) => ApiError::store_closed(message),
            None => ApiError::internal(message),
        }
    };
    if !removed.map_err(kept)? {
        return Err(not_stored(&name));
    }
    Ok(axum::Json(json!({"object": "chat.completion.deleted", "id": name, "deleted": true})))
}

/// How an answer is written for its client.
pub(super) fn reply(id: SequenceId, answer: &StoredAnswer) -> Reply {
    let record = &answer.record;
    Reply {
        endpoint: Endpoint::Chat,
        delivery: Delivery {
            stop: record.stop.clone(),
            stream: false,
            include_usage: false,
            token_ids: record.token_ids,
            logprobs: record.sampling.top_logprobs.is_some(),
            store: Some(record.metadata.clone()),
        },
        id: Endpoint::Chat.answer_id(id),
        created: record.created,
        model: record.model.to_string(),
        prompt: answer.prompt.clone(),
    }
}

/// An answer that came again from what was stored of it.
pub(super) struct Again {
    /// As it was after the last token.
    pub(super) answer: Answer,
    /// What its client saw.
    pub(super) piece: Piece,
    /// Why it ended, if it has.
    pub(super) reason: Option<FinishReason>,
}

impl Again {
    pub(super) async fn of(shared: &Parts, stored: &StoredAnswer) -> Result<Self, ApiError> {
        let model = shared.words_of(&stored.record.model).await?;
        Self::with(model, stored).await
    }

    /// In the words of its model.
    pub(super) async fn with(
        model: Arc<ServedModel>,
        stored: &StoredAnswer,
    ) -> Result<Self, ApiError> {
        let tokens = stored.tokens.clone();
        let finished = match stored.record.outcome {
            Some(Outcome::Finished(reason)) => Some(ClientEvent::Finished(reason)),
            _ => None,
        };
        let stop = StopStrings::new(stored.record.stop.clone());
        off_thread(move || {
            let tokenizer = Arc::clone(&model.tokenizer);
            let detokenizer = Detokenizer::new(Arc::clone(&tokenizer));
            let mut answer = Answer::new(tokenizer, detokenizer, stop);
            let mut piece = Piece::default();
            for event in tokens.into_iter().map(ClientEvent::Token).chain(finished) {
                match answer.on(Some(event)) {
                    Some(Progress::More(more)) => piece.append(more),
                    Some(Progress::Last(last, reason)) => {
                        piece.append(last);
                        return Ok(Self { answer, piece, reason: Some(reason) });
                    }
                    Some(Progress::Failed(error)) => return Err(error),
                    Some(Progress::Recovering) | None => {}
                }
            }
            Ok(Self { answer, piece, reason: None })
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
