//! Reading a request's body within bounds of size and time.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::request::Parts as Head;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::time::timeout;

use super::Parts;
use super::error::ApiError;
use super::preparation::{Preparations, Room, SHORT_BYTES};

/// The body of a request that has passed [`take`].
#[derive(Clone)]
pub(super) struct Read {
    /// In UTF-8, or no text at all.
    pub(super) bytes: Bytes,
    /// To be kept until nothing is left of it.
    pub(super) room: Room,
}

/// Reads the body of a request, which bears it as a [`Read`] from there on.
pub(super) async fn take(
    request: Request<Body>,
    shared: &Parts,
) -> Result<Request<Body>, ApiError> {
    if !matches!(*request.method(), Method::POST | Method::PUT) {
        return Ok(request);
    }
    let (mut parts, body) = request.into_parts();
    let read = read(&parts, body, shared).await?;
    parts.extensions.insert(read);
    Ok(Request::from_parts(parts, Body::empty()))
}

async fn read(parts: &Head, body: Body, shared: &Parts) -> Result<Read, ApiError> {
    let limits = &shared.limits;
    refuse_foreign(&parts.headers)?;
    let announced = announced(&parts.headers);
    if announced.is_some_and(|bytes| bytes > limits.body_bytes)
        && parts.headers.contains_key(header::EXPECT)
    {
        // The client waits to be told whether it may send.
        return Err(too_large(limits.body_bytes));
    }
    // A long one waits in the kernel's buffers, and in its client.
    let room = shared.preparations.room(announced.unwrap_or(0).min(limits.body_bytes)).await?;
    let collector =
        Collector { limit: limits.body_bytes, room, preparations: &shared.preparations };
    let read = timeout(limits.body_timeout, collector.collect(body.into_data_stream()));
    let (bytes, room) = read.await.unwrap_or_else(|_| Err(too_slow(limits.body_timeout)))?;
    Ok(Read { bytes: plain(bytes)?, room })
}

/// Refuses what is no plain text by its own account.
fn refuse_foreign(headers: &HeaderMap) -> Result<(), ApiError> {
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    for encoding in encodings.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
        let encoding = encoding.trim_ascii();
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case(b"identity") {
            let encoding = shown(encoding);
            return Err(foreign(format!(
                "the request's body has the content encoding `{encoding}`; this server reads none: send \
                 it as it is, without the header `Content-Encoding`"
            )));
        }
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let mut parameters = kind.unwrap_or_default().split(';').skip(1);
    let charset = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    match charset {
        Some(charset) if CHARSETS.iter().all(|known| !charset.eq_ignore_ascii_case(known)) => {
            Err(not_utf8(&shown(charset.as_bytes())))
        }
        _ => Ok(()),
    }
}

/// UTF-8, and what is a part of it.
const CHARSETS: [&str; 4] = ["utf-8", "utf8", "us-ascii", "ascii"];

/// Takes the byte order mark off that some editors and shells write before UTF-8.
fn plain(body: Bytes) -> Result<Bytes, ApiError> {
    match body.get(..) {
        Some([0xef, 0xbb, 0xbf, ..]) => Ok(body.slice(3..)),
        Some([0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'{', 0, ..] | [0, b'{', ..]) => {
            Err(not_utf8("utf-16"))
        }
        _ => Ok(body),
    }
}

fn not_utf8(charset: &str) -> ApiError {
    foreign(format!("the request's body is written in `{charset}`: send it in UTF-8"))
}

fn foreign(message: String) -> ApiError {
    ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
}

/// As much of a header as fits into a message.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(40).collect()
}

struct Collector<'a> {
    limit: usize,
    room: Room,
    preparations: &'a Preparations,
}

impl Collector<'_> {
    async fn collect(mut self, mut body: BodyDataStream) -> Result<(Bytes, Room), ApiError> {
        let mut bytes = BytesMut::new();
        while let Some(part) = body.next().await {
            let part = part.map_err(|_| ApiError::malformed("the request's body broke off"))?;
            if bytes.len() + part.len() > self.limit {
                drop((bytes, self.room));
                discard(body, DISCARDED_BODIES * self.limit).await;
                return Err(too_large(self.limit));
            }
            if self.room.is_none() && bytes.len() + part.len() > SHORT_BYTES {
                // It did not say how long it is.
                self.room = self.preparations.room(self.limit).await?;
            }
            bytes.extend_from_slice(&part);
        }
        Ok((bytes.freeze(), self.room))
    }
}

/// Most clients read no answer before they have sent their request, and lose it when the
/// connection is closed under them. So this much more than allowed is read and forgotten.
const DISCARDED_BODIES: usize = 8;

async fn discard(mut body: BodyDataStream, limit: usize) {
    let mut left = limit;
    while let Some(Ok(part)) = body.next().await {
        let Some(rest) = left.checked_sub(part.len()) else {
            return;
        };
        left = rest;
    }
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn too_large(limit: usize) -> ApiError {
    ApiError::refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        "request_too_large",
        format!("the request's body is longer than {limit} bytes: send less"),
    )
}

fn too_slow(limit: Duration) -> ApiError {
    ApiError::refused(
        StatusCode::REQUEST_TIMEOUT,
        "request_timeout",
        format!("the request's body did not arrive within {} seconds", limit.as_secs()),
    )
}
