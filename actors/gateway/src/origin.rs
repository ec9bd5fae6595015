//! Which web pages may call the API: this node's own, and those whose origin is in the settings.
//!
//! Withholding the CORS headers alone would keep a page from reading an answer, not from causing
//! one: browsers send simple requests first and ask afterwards. So a request with a foreign
//! `Origin` is refused.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::Shared;
use super::error::ApiError;
use super::host::authority;

/// Whose pages may call the API, besides this server's own.
#[derive(Debug)]
pub(super) enum AllowedOrigins {
    /// Everybody's.
    All,
    /// Those of these origins, as browsers send them.
    These(Vec<HeaderValue>),
}

impl AllowedOrigins {
    /// Takes origins as the setting has them.
    pub(super) fn new(origins: &[String]) -> Self {
        if origins.iter().any(|origin| origin == "*") {
            return Self::All;
        }
        let parse = |origin: &String| origin.to_ascii_lowercase().parse().ok();
        Self::These(origins.iter().filter_map(parse).collect())
    }

    /// Answers with the headers that let those pages read on, and to their preflight requests,
    /// which cannot bear a key.
    pub(super) fn allow(&self, router: Router<Shared>) -> Router<Shared> {
        match self {
            Self::All => router.layer(layer(AllowOrigin::any())),
            Self::These(origins) if origins.is_empty() => router,
            Self::These(origins) => router.layer(layer(AllowOrigin::list(origins.clone()))),
        }
    }

    fn admits(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::All => true,
            Self::These(origins) => origins.contains(origin),
        }
    }
}

fn layer(origins: AllowOrigin) -> CorsLayer {
    /// A page asks again at this interval; changed settings need a restart anyway.
    const REMEMBERED: Duration = Duration::from_secs(600);
    CorsLayer::new()
        .allow_origin(origins)
        // All that any route knows.
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        // OpenAI's own client for browsers sends a dozen of its own.
        .allow_headers(AllowHeaders::mirror_request())
        // Browsers ask for this before a page of the web reaches a machine at home.
        .allow_private_network(true)
        .expose_headers([header::RETRY_AFTER])
        .max_age(REMEMBERED)
}

/// Lets a request pass that no web page sent, or one that may.
pub(super) async fn refuse_foreign_pages(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    let known = &shared.allowed_origins;
    match request.headers().get(header::ORIGIN) {
        Some(origin) if !known.admits(origin) && !is_own(origin, &request) => ApiError::refused(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            "web pages of this origin may not call this server: add it to the setting \
             `cors-origins`",
        )
        .into_response(),
        _ => next.run(request).await,
    }
}

/// Whether a page of this server asks. The host check, which comes first, has seen that the request's host
/// is ours, so a foreign page cannot have it for its origin. What stands between may speak HTTPS.
fn is_own(origin: &HeaderValue, request: &Request) -> bool {
    let host = origin.to_str().ok().and_then(|origin| {
        origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
    });
    let asked = authority(request);
    host.zip(asked).is_some_and(|(host, asked)| host.eq_ignore_ascii_case(asked))
}
