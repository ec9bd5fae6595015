//! How errors are written: as the API does that a client speaks, which the path tells.
//!
//! Errors come from routes and from the layers around them, which know of no API. An [`ApiError`] leaves itself in
//! the response that it becomes, and is written anew from there.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::Value;

use super::error::ApiError;
use super::{anthropic, ollama};

/// An API's way to write errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorShape {
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`
    Anthropic,
    /// `{"error": "words"}`
    Ollama,
}

/// Paths, and all below them, whose errors are not OpenAI's.
const SHAPES: &[(&str, ErrorShape)] =
    &[("/v1/messages", ErrorShape::Anthropic), ("/api", ErrorShape::Ollama)];

impl ErrorShape {
    fn of(path: &str) -> Self {
        let is_below = |prefix: &str| {
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        SHAPES.iter().find(|(prefix, _)| is_below(prefix)).map_or(Self::OpenAi, |(_, shape)| *shape)
    }

    /// The error as JSON; `None` where it is written so already.
    fn body(self, error: &ApiError) -> Option<Value> {
        match self {
            Self::OpenAi => None,
            Self::Anthropic => Some(anthropic::error_body(error)),
            Self::Ollama => Some(ollama::error_body(error)),
        }
    }
}

/// Has an error written as the path of its request wants it. Status and headers stay.
pub(super) async fn write(request: Request, next: Next) -> Response {
    let shape = ErrorShape::of(request.uri().path());
    let mut response = next.run(request).await;
    let error = response.extensions_mut().remove::<ApiError>();
    match error.and_then(|error| shape.body(&error)) {
        None => response,
        Some(body) => {
            let headers = response.headers_mut();
            // It was that of the other body.
            headers.remove(header::CONTENT_LENGTH);
            let kind = HeaderValue::from_static("application/json");
            headers.insert(header::CONTENT_TYPE, kind);
            response.map(|_| Body::from(body.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_what_is_below_them_have_a_shape() {
        for (path, shape) in [
            ("/v1/messages", ErrorShape::Anthropic),
            ("/v1/messages/count_tokens", ErrorShape::Anthropic),
            ("/v1/messages/none", ErrorShape::Anthropic),
            ("/v1/messages_more", ErrorShape::OpenAi),
            ("/api/chat", ErrorShape::Ollama),
            ("/api/none", ErrorShape::Ollama),
            ("/apis", ErrorShape::OpenAi),
            ("/v1/chat/completions", ErrorShape::OpenAi),
        ] {
            assert_eq!(ErrorShape::of(path), shape, "{path}");
        }
    }
}
