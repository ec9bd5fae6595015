//! Ollama's API: what is below `/api`.
//!
//! `request` turns its chats and prompts into those of the core, with `messages` and `options` for their parts;
//! `reply` writes answers as lines of JSON. `models` tells what is served. What manages models on Ollama's disk has
//! no counterpart here and is refused in words.

mod messages;
mod models;
mod options;
mod reply;
mod request;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::Response;
use axum::routing::{any, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use planaria_config::SequenceId;
use serde_json::Value;

use super::Shared;
use super::body::Read;
use super::error::ApiError;
use super::generate;
use super::request::{Asked, Delivery};
use super::writer::{Dialect, Head, Writer};

pub(super) use self::reply::error_body;

/// Which of Ollama's two ways to ask for text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    /// `/api/chat`
    Chat,
    /// `/api/generate`
    Generate,
}

impl Dialect for Endpoint {
    fn parse(&self, body: &[u8]) -> Result<Asked, ApiError> {
        match self {
            Self::Chat => request::chat(body),
            Self::Generate => request::generate(body),
        }
    }

    fn operation(&self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Generate => "text_completion",
        }
    }

    fn prompt_field(&self) -> &'static str {
        match self {
            Self::Chat => request::MESSAGES,
            Self::Generate => request::PROMPT,
        }
    }

    /// Ollama shows none.
    fn answer_id(&self, sequence: SequenceId) -> String {
        sequence.to_string()
    }

    fn writer(&self, head: Head, _: &Delivery) -> Box<dyn Writer> {
        Box::new(reply::Reply::new(*self, head))
    }

    fn content_type(&self) -> HeaderValue {
        HeaderValue::from_static("application/x-ndjson")
    }

    /// Lines have no comments: a piece without text.
    fn waiting(&self) -> Bytes {
        reply::nothing_yet(*self)
    }

    fn recovering(&self) -> Bytes {
        reply::nothing_yet(*self)
    }

    fn failed(&self, error: &ApiError) -> Vec<Bytes> {
        vec![reply::error_line(error)]
    }
}

/// All that is below `/api`.
pub(super) fn routes() -> Router<Shared> {
    let refused = NOT_HERE.iter().fold(Router::new(), |router, (path, _)| {
        let below = format!("{path}/{{*rest}}");
        router.route(path, any(not_here)).route(&below, any(not_here))
    });
    refused
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::running))
        .route("/api/show", post(models::show))
        .route("/api/version", get(models::version))
}

async fn chat(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Extension(body): Extension<Read>,
) -> Result<Response, ApiError> {
    answer(shared, &Endpoint::Chat, &headers, body).await
}

async fn generate(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Extension(body): Extension<Read>,
) -> Result<Response, ApiError> {
    answer(shared, &Endpoint::Generate, &headers, body).await
}

async fn answer(
    shared: Shared,
    endpoint: &'static Endpoint,
    headers: &HeaderMap,
    body: Read,
) -> Result<Response, ApiError> {
    match request::to_load(&body.bytes) {
        None => generate::respond(shared, endpoint, headers, body).await,
        Some(model) => {
            let name = shared.served_name(&model)?;
            shared.words_of(&name).await?;
            Ok(generate::json(reply::loaded(*endpoint, name.as_str())))
        }
    }
}

/// What Ollama has and this server has not, and what to do instead.
const NOT_HERE: [(&str, &str); 8] = [
    ("/api/pull", MANAGED),
    ("/api/push", MANAGED),
    ("/api/create", MANAGED),
    ("/api/copy", MANAGED),
    ("/api/delete", MANAGED),
    ("/api/blobs", MANAGED),
    ("/api/embed", EMBEDDINGS),
    ("/api/embeddings", EMBEDDINGS),
];

const MANAGED: &str = "models are not managed by this API: copy them into the models folders of the nodes, and \
                       have them served with `planaria models add NAME`";
const EMBEDDINGS: &str = "this server computes no embeddings";

/// The paths of [`NOT_HERE`].
#[cfg(test)]
pub(super) fn refused() -> impl Iterator<Item = &'static str> {
    NOT_HERE.iter().map(|(path, _)| *path)
}

async fn not_here(uri: Uri) -> ApiError {
    let known = NOT_HERE.iter().rev().find(|(path, _)| uri.path().starts_with(path));
    let message = known.map_or(MANAGED, |(_, message)| message);
    ApiError::refused(StatusCode::NOT_IMPLEMENTED, "not_implemented", message)
}

/// A body as JSON.
type Answer = Result<Json<Value>, ApiError>;
