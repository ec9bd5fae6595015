//! Errors in the shape that OpenAI's clients turn into their own exceptions.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use planaria_config::ModelName;
use planaria_engine::model_dir::Part;
use planaria_protocol::generation::{FormFault, GenerationError, SubmitError};
use serde::Serialize;
use serde_json::{Value, json};

use crate::served::ServedModelError;
use crate::stored_answers::Outcome;

/// What went wrong with a request, and what its client may do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: Kind,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after_seconds: Option<u32>,
}

/// OpenAI's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Kind {
    #[serde(rename = "invalid_request_error")]
    InvalidRequest,
    #[serde(rename = "rate_limit_error")]
    RateLimit,
    #[serde(rename = "server_error")]
    Server,
}

/// A place becomes free whenever an answer ends: seconds, not minutes.
const RETRY_WHEN_FULL: u32 = 2;
/// A new plan takes about as long as it takes to load layers. OpenAI's clients sleep this long and
/// try twice more without a word to their user.
pub(crate) const RETRY_WHEN_UNPLANNED: u32 = 5;

impl ApiError {
    /// The request itself is wrong: sent again, it fails again.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, Kind::InvalidRequest, message)
        }
    }

    /// The body is not a JSON object.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::InvalidRequest, message)
    }

    /// A request that this server refuses whoever sends it, with its own status.
    pub(crate) fn refused(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::new(status, Kind::InvalidRequest, message).coded(code)
    }

    /// The prompt leaves no room for an answer.
    pub(crate) fn prompt_too_long(param: &'static str, tokens: usize, limit: u32) -> Self {
        let message = format!(
            "the prompt has {tokens} tokens, and the context ends at {limit}: shorten it, leaving \
             room for the answer"
        );
        Self::invalid(param, message).coded("context_length_exceeded")
    }

    /// The prompt leaves no room for an answer, however it is read.
    pub(crate) fn text_too_long(param: &'static str, least: usize, limit: u32) -> Self {
        let message = format!(
            "the prompt has more than {least} tokens, and the context ends at {limit}: shorten it, leaving \
             room for the answer"
        );
        Self::invalid(param, message).coded("context_length_exceeded")
    }

    /// The cluster is not asked to serve such a model.
    pub(crate) fn unknown_model(name: &str, served: &[ModelName]) -> Self {
        let served = if served.is_empty() {
            "no model is served: `planaria models add NAME` asks for one".to_owned()
        } else {
            let names: Vec<_> = served.iter().map(ModelName::as_str).collect();
            format!("served are: {}", names.join(", "))
        };
        // A name can be as long as a body.
        let name: String = name.chars().take(200).collect();
        Self::model_not_found(format!("the model `{name}` is not served here; {served}"))
    }

    /// There is no such model to change anything about.
    pub(crate) fn no_such_model(message: String) -> Self {
        Self::model_not_found(message)
    }

    /// A part of this node does not answer.
    pub(crate) fn node_unavailable(message: String) -> Self {
        Self::unavailable(message, "node_unavailable")
    }

    /// The store takes and gives nothing now.
    pub(crate) fn store_closed(message: impl Into<String>) -> Self {
        Self::unavailable(message.into(), "store_unavailable")
    }

    fn model_not_found(message: String) -> Self {
        Self { status: StatusCode::NOT_FOUND, ..Self::invalid("model", message) }
            .coded("model_not_found")
    }

    /// A mistake of ours.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Kind::Server, message).coded("internal_error")
    }

    /// Why the cluster did not admit a request; `prompt` is the field that holds the prompt.
    pub(crate) fn not_admitted(error: &SubmitError, prompt: &'static str) -> Self {
        match error {
            SubmitError::UnknownModel(_) => Self::model_not_found(error.to_string()),
            SubmitError::NoPlan { .. } | SubmitError::OlderBuild { .. } => {
                Self::unavailable(error.to_string(), "model_unavailable")
            }
            SubmitError::Overloaded { .. } => Self::overloaded(error.to_string()),
            SubmitError::PromptTooLong { tokens, limit } => {
                Self::prompt_too_long(prompt, *tokens as usize, *limit)
            }
            SubmitError::Unavailable | SubmitError::Leaving => {
                Self::unavailable(error.to_string(), "node_unavailable")
            }
        }
    }

    /// Why an answer ended too soon. The status counts only while no header was sent.
    pub(crate) fn ended_early(error: &GenerationError) -> Self {
        let message = error.to_string();
        match error {
            GenerationError::NodeLost { .. } => Self::unavailable(message, "node_lost"),
            GenerationError::PlanLost { .. } => Self::unavailable(message, "model_unavailable"),
            GenerationError::ShuttingDown => Self::unavailable(message, "node_unavailable"),
            GenerationError::NoRoom { .. } => Self::overloaded(message),
            GenerationError::NotReady { .. } => Self::unavailable(message, "model_unavailable"),
            GenerationError::Rejected { form: Some(fault), .. } => {
                Self::malformed(message).coded(match fault {
                    FormFault::TooComplex => "form_too_complex",
                    FormFault::Unsupported => "unsupported_form",
                })
            }
            GenerationError::StageFailed { .. } | GenerationError::Rejected { .. } => {
                Self { code: Some("stage_failed"), ..Self::internal(message) }
            }
            GenerationError::TimedOut { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, Kind::Server, message)
                    .coded("generation_timeout")
            }
            GenerationError::ClientTooSlow => {
                Self::refused(StatusCode::REQUEST_TIMEOUT, "client_too_slow", message)
            }
        }
    }

    /// The events of a generation ended without a last one.
    pub(crate) fn broken_off() -> Self {
        Self::internal("the answer broke off inside this node: try again")
    }

    /// Why this node cannot turn the model's text into tokens.
    pub(crate) fn model_not_here(error: &ServedModelError) -> Self {
        Self::unavailable(error.to_string(), "model_not_on_this_node")
    }

    /// This node's words of a model are not those of the other members.
    pub(crate) fn model_differs(model: &ModelName, node: &str, parts: &[Part]) -> Self {
        let parts: Vec<_> = parts.iter().map(|part| part.name()).collect();
        let message = format!(
            "the files of `{model}` on the node {node} differ from those of the other members ({}): ask \
             another node, or copy the model's folder anew from one of them",
            parts.join(", ")
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Kind::Server, message)
            .coded("model_files_differ")
    }

    fn unavailable(message: String, code: &'static str) -> Self {
        Self {
            retry_after_seconds: Some(RETRY_WHEN_UNPLANNED),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, Kind::Server, message)
        }
        .coded(code)
    }

    /// More clients watch than may.
    pub(crate) fn too_many_watchers(message: &'static str) -> Self {
        Self::full(message.to_owned(), "too_many_watchers")
    }

    /// More connections are WebSockets than may be.
    pub(crate) fn too_many_web_sockets(limit: usize) -> Self {
        let message =
            format!("this node has {limit} WebSockets: ask by `POST`, or try again later");
        Self::full(message, "too_many_websockets")
    }

    /// All places are taken, and become free by themselves.
    pub(crate) fn overloaded(message: String) -> Self {
        Self::full(message, "rate_limit_exceeded")
    }

    fn full(message: String, code: &'static str) -> Self {
        Self {
            retry_after_seconds: Some(RETRY_WHEN_FULL),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, Kind::RateLimit, message)
        }
        .coded(code)
    }

    fn new(status: StatusCode, kind: Kind, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry_after_seconds: None,
        }
    }

    pub(crate) const fn coded(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(crate) const fn status(&self) -> StatusCode {
        self.status
    }

    /// In words.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// When to ask again, if that helps.
    pub(crate) const fn retry_after_seconds(&self) -> Option<u32> {
        self.retry_after_seconds
    }

    /// A word for logs: the code, never the message, which may quote the client.
    pub(crate) const fn word(&self) -> &'static str {
        match self.code {
            Some(code) => code,
            None => "invalid_request",
        }
    }

    /// What is stored of it.
    pub(crate) fn outcome(&self) -> Outcome {
        Outcome::Failed { message: self.message.clone(), code: self.word().to_owned() }
    }

    /// `{"error": {...}}`.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        tracing::debug!(status = self.status.as_u16(), code = self.word(), "a request failed");
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            response
                .headers_mut()
                .insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if self.status == StatusCode::UPGRADE_REQUIRED {
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For whoever writes it otherwise.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_token_a_failure_has_a_status_that_clients_understand() {
        let node = || "b".to_owned();
        let model = || "demo".parse().unwrap();
        let rejected = |form| GenerationError::Rejected {
            node: node(),
            layers: "0-3".to_owned(),
            reason: "too much".to_owned(),
            form,
        };
        for (error, status, retry) in [
            (GenerationError::NodeLost { node: node(), layers: "0-3".to_owned() }, 503, true),
            (GenerationError::PlanLost { model: model(), reason: node() }, 503, true),
            (GenerationError::ShuttingDown, 503, true),
            (GenerationError::NoRoom { limit: 8 }, 429, true),
            (GenerationError::TimedOut { seconds: 30 }, 504, false),
            (GenerationError::ClientTooSlow, 408, false),
            (rejected(Some(FormFault::TooComplex)), 400, false),
            (rejected(None), 500, false),
            (
                GenerationError::StageFailed {
                    node: node(),
                    layers: "0-3".to_owned(),
                    reason: "nan".to_owned(),
                    stage: None,
                },
                500,
                false,
            ),
        ] {
            let response = ApiError::ended_early(&error).into_response();
            assert_eq!(response.status(), status, "{error}");
            assert_eq!(response.headers().contains_key("retry-after"), retry, "{error}");
        }
    }

    #[test]
    fn bodies_have_all_four_keys() {
        let body = ApiError::invalid("stop", "`stop` is a number").body();
        assert_eq!(
            body.to_string(),
            r#"{"error":{"message":"`stop` is a number","type":"invalid_request_error","param":"stop","code":null}}"#
        );
    }
}
