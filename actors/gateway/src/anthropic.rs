//! Anthropic's Messages API: `/v1/messages` and `/v1/messages/count_tokens`.
//!
//! `request` turns its conversations into those of the core, `reply` writes answers as its events and messages.

mod blocks;
mod reply;
mod request;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::{Extension, Json};
use bytes::Bytes;
use planaria_config::SequenceId;
use planaria_telemetry::wall_clock::unix_seconds;
use serde::Serialize;

use super::Shared;
use super::body::Read;
use super::error::ApiError;
use super::generate;
use super::preparation::Work;
use super::request::{Asked, Delivery};
use super::writer::{Dialect, Head, Writer};

pub(super) use self::reply::error_body;

/// The Messages API as a dialect.
#[derive(Debug)]
struct Messages;

/// The field that holds the conversation.
const MESSAGES: &str = "messages";

impl Dialect for Messages {
    fn parse(&self, body: &[u8]) -> Result<Asked, ApiError> {
        request::to_answer(body)
    }

    fn answer_id(&self, sequence: SequenceId) -> String {
        format!("msg_{sequence}")
    }

    fn writer(&self, head: Head, _: &Delivery) -> Box<dyn Writer> {
        Box::new(reply::Message::new(head))
    }

    fn failed(&self, error: &ApiError) -> Vec<Bytes> {
        vec![reply::error_event(error)]
    }
}

/// `POST /v1/messages`
pub(super) async fn create(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Extension(body): Extension<Read>,
) -> Result<Response, ApiError> {
    generate::respond(shared, &Messages, &headers, body).await
}

#[derive(Serialize)]
pub(super) struct Counted {
    input_tokens: usize,
}

/// `POST /v1/messages/count_tokens`: of the prompt that the same messages would make.
pub(super) async fn count_tokens(
    State(shared): State<Shared>,
    Extension(Read { bytes, room }): Extension<Read>,
) -> Result<Json<Counted>, ApiError> {
    let length = bytes.len();
    let parse = move || request::to_count(&bytes);
    let asked = shared.preparations.run(Work::Parse, length, parse).await?;
    let name = shared.served_name(&asked.model)?;
    let model = shared.words_of(&name).await?;
    let now = i64::try_from(unix_seconds()).unwrap_or(i64::MAX);
    let length = asked.text_bytes();
    let count = move || {
        let _until_it_is_read = room;
        asked.count(&model, now)
    };
    let input_tokens = shared.preparations.run(Work::Tokenize, length, count).await?;
    Ok(Json(Counted { input_tokens }))
}
