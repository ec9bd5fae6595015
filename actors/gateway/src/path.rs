//! Paths as people write them into settings: with a slash at their end, or two where there is one. They mean
//! what they would mean without. Not so those of the page, which are written by itself alone.

use axum::extract::Request;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::Response;

use super::error::ApiError;
use super::page::is_page;

/// Has a request routed by its path without superfluous slashes.
pub(super) async fn tidy(mut request: Request, next: Next) -> Response {
    if let Some(uri) = tidied(request.uri()) {
        *request.uri_mut() = uri;
    }
    next.run(request).await
}

/// `None` where there is nothing to do.
fn tidied(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if path == "/" || !(path.ends_with('/') || path.contains("//")) {
        return None;
    }
    let mut tidy: String = path
        .split('/')
        .filter(|part| !part.is_empty())
        .fold(String::with_capacity(path.len()), |path, part| path + "/" + part);
    if tidy.is_empty() || is_page(&tidy) {
        return None;
    }
    if let Some(query) = uri.query() {
        tidy = tidy + "?" + query;
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(tidy.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// What clients of OpenAI's API look for.
const ROUTES: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", MESSAGES, "/v1/models"];
const MESSAGES: &str = "/v1/messages";

/// There is nothing at a path.
pub(super) async fn no_such_route(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    // A base URL without `/v1`, or with two.
    let meant = ROUTES.iter().find(|route| {
        route.strip_prefix("/v1").is_some_and(|rest| path.ends_with(rest)) && path != **route
    });
    let hint = match meant {
        Some(route) => format!("`{route}` is meant, it seems"),
        None => format!("there are `{}`", ROUTES.join("`, `")),
    };
    // Anthropic's clients write `/v1` themselves.
    let base = if meant == Some(&MESSAGES) { "" } else { "/v1" };
    ApiError::refused(
        StatusCode::NOT_FOUND,
        "unknown_url",
        format!(
            "unknown request URL: {method} {path}; {hint}, and the base URL of clients is \
             `http://HOST:PORT{base}`"
        ),
    )
}

/// A path is known, and nothing does this there.
pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::refused(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("`{path}` does not know the method {method}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superfluous_slashes_mean_nothing() {
        for (written, meant) in [
            ("/v1/models/", "/v1/models"),
            ("//v1//models", "/v1/models"),
            ("/v1/models/?a=/b/", "/v1/models?a=/b/"),
            ("http://localhost:1/v1/models/", "http://localhost:1/v1/models"),
        ] {
            let uri = written.parse().or_else(|_| Uri::builder().path_and_query(written).build());
            let tidy = tidied(&uri.unwrap()).map(|uri| uri.to_string());
            assert_eq!(tidy.as_deref(), Some(meant), "{written}");
        }
        for good in
            ["/", "/v1/models", "/v1/models?a=/b/", "/v1/models/a%2F%2Fb", "/page/page.css/", "*"]
        {
            assert_eq!(tidied(&good.parse().unwrap()), None, "{good}");
        }
    }
}
