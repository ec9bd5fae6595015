//! The API key: what one may look like, and the check of every request but those for `/health` and the
//! page.

use std::fmt;
use std::str::FromStr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;
use thiserror::Error;

use super::Shared;
use super::error::ApiError;
use super::page::is_page;

/// The key that clients must send as `Authorization: Bearer`, or as `x-api-key`.
#[derive(Clone)]
pub struct ApiKey(Padded, usize);

/// Not an API key. The text itself is kept out of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an API key is 1 to {MAX_BYTES} visible ASCII characters without spaces")]
pub struct InvalidApiKey;

/// Longer than any key that people or generators make, short enough to compare at every request.
const MAX_BYTES: usize = 256;

/// Keys are compared with zeros after them, so that the time of a comparison tells nothing about
/// the length of the right one.
type Padded = [u8; MAX_BYTES];

impl ApiKey {
    /// Whether `presented` is this key, in a time that depends only on `presented`.
    fn admits(&self, presented: &[u8]) -> bool {
        // Padding alone would let zeros at the end pass.
        let same_length = self.1.ct_eq(&presented.len());
        pad(presented).is_some_and(|presented| (self.0.ct_eq(&presented) & same_length).into())
    }
}

impl FromStr for ApiKey {
    type Err = InvalidApiKey;

    fn from_str(text: &str) -> Result<Self, InvalidApiKey> {
        let text = text.trim().as_bytes();
        if text.is_empty() || !text.iter().all(u8::is_ascii_graphic) {
            return Err(InvalidApiKey);
        }
        let padded = pad(text).ok_or(InvalidApiKey)?;
        Ok(Self(padded, text.len()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// Lets a request pass that bears the key, if there is one.
pub(super) async fn demand_key(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let exempt = path == "/health" || is_page(path);
    match &shared.api_key {
        Some(key) if !exempt => match check(key, request.headers()) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        },
        _ => next.run(request).await,
    }
}

/// Where Anthropic's clients put the key.
const OWN_HEADER: &str = "x-api-key";

/// A client may send both headers, since some know one setting for each; one of them has to bear the key.
fn check(key: &ApiKey, headers: &HeaderMap) -> Result<(), ApiError> {
    let refused = |message| ApiError::refused(StatusCode::UNAUTHORIZED, "invalid_api_key", message);
    let given = only(headers, header::AUTHORIZATION.as_str()).map(bearer);
    let own = only(headers, OWN_HEADER).map(<[u8]>::trim_ascii);
    let mut presented = [given.flatten(), own].into_iter().flatten().peekable();
    match (given, presented.peek().is_some()) {
        (_, true) if presented.any(|presented| key.admits(presented)) => Ok(()),
        (_, true) => Err(refused("the API key is wrong: ask whoever runs this server for it")),
        (Some(_), false) => Err(refused("the API key goes into `Authorization: Bearer KEY`")),
        (None, false) => Err(refused(
            "this server demands an API key: send one header `Authorization: Bearer KEY`, or \
             `x-api-key: KEY`",
        )),
    }
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let mut given = headers.get_all(name).iter();
    match (given.next(), given.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        _ => None,
    }
}

/// What follows `Bearer`, in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| rest.trim_ascii())
}

fn pad(text: &[u8]) -> Option<Padded> {
    let mut padded = [0; MAX_BYTES];
    padded.get_mut(..text.len())?.copy_from_slice(text);
    Some(padded)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_whole_key_is_admitted() {
        let key: ApiKey = "sk-secret\n".parse().unwrap();
        for good in ["Bearer sk-secret", "bearer  sk-secret"] {
            assert!(check(&key, &headers(&[good])).is_ok(), "{good}");
        }
        for bad in [
            "Bearer sk-secre",
            "Bearer sk-secret1",
            "Bearer ",
            "Bearer",
            "sk-secret",
            "Basic sk-secret",
            "",
        ] {
            assert!(check(&key, &headers(&[bad])).is_err(), "{bad}");
        }
        assert!(check(&key, &headers(&[])).is_err());
        assert!(check(&key, &headers(&["Bearer sk-secret", "Bearer sk-secret"])).is_err());
        let own = |value: &'static str| {
            (HeaderName::from_static(OWN_HEADER), HeaderValue::from_static(value))
        };
        let bearer = |value: &'static str| (header::AUTHORIZATION, HeaderValue::from_static(value));
        let beside = |pairs: Vec<_>| check(&key, &pairs.into_iter().collect());
        assert!(beside(vec![own("sk-secret")]).is_ok());
        assert!(beside(vec![own("none"), bearer("Bearer sk-secret")]).is_ok());
        assert!(beside(vec![own("sk-secret"), bearer("Bearer none")]).is_ok());
        for bad in [vec![own("Bearer sk-secret")], vec![own("")]] {
            assert!(beside(bad).is_err());
        }
        let mut twice = headers(&[]);
        for _ in 0..2 {
            twice.append(OWN_HEADER, HeaderValue::from_static("sk-secret"));
        }
        assert!(check(&key, &twice).is_err());
        assert!(!key.admits(&[b'a'; 2 * MAX_BYTES]));
        assert!(!key.admits(b"sk-secret\0"), "padding must not be presentable");
    }

    #[test]
    fn keys_can_be_sent_in_a_header() {
        for bad in ["", " ", "two words", "schl\u{fc}ssel", &"k".repeat(MAX_BYTES + 1)] {
            assert!(bad.parse::<ApiKey>().is_err(), "{bad:?}");
        }
    }
}
