//! Reading a request's body within bounds of size and time.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, Request, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::time::timeout;

use super::Limits;
use super::error::ApiError;

/// Reads the whole body.
pub(super) async fn read(request: Request<Body>, limits: &Limits) -> Result<Bytes, ApiError> {
    let (parts, body) = request.into_parts();
    if announced(&parts.headers).is_some_and(|bytes| bytes > limits.body_bytes)
        && parts.headers.contains_key(header::EXPECT)
    {
        // The client waits to be told whether it may send.
        return Err(too_large(limits.body_bytes));
    }
    timeout(limits.body_timeout, collect(body.into_data_stream(), limits.body_bytes))
        .await
        .unwrap_or_else(|_| Err(too_slow(limits.body_timeout)))
}

async fn collect(mut body: BodyDataStream, limit: usize) -> Result<Bytes, ApiError> {
    let mut bytes = BytesMut::new();
    while let Some(part) = body.next().await {
        let part = part.map_err(|_| ApiError::malformed("the request's body broke off"))?;
        if bytes.len() + part.len() > limit {
            discard(body, DISCARDED_BODIES * limit).await;
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes.freeze())
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

fn too_large(limit: usize) -> ApiError {
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
