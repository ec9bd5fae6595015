//! Answers as server-sent events.
//!
//! The status line waits for the first event, so that a request that fails before its first token
//! fails with a status that clients know how to retry. Later failures are an event, and the stream
//! ends without `[DONE]`.

use std::collections::VecDeque;
use std::fmt::Display;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::unfold;
use tokio::time::timeout;

use super::answer::{Counts, Progress};
use super::error::ApiError;
use super::reply::Reply;
use super::running::Running;

/// Answers with a stream, once there is something to send.
pub(super) async fn respond(
    mut running: Running,
    heartbeat: Duration,
) -> Result<Response, ApiError> {
    let mut events = VecDeque::from_iter(running.reply().opening().map(data));
    let over = loop {
        match running.next().await {
            Progress::Failed(error) => return Err(error),
            Progress::Recovering => {}
            progress => {
                let over = matches!(progress, Progress::Last(..));
                events.extend(written(running.reply(), progress, running.counts()));
                break over;
            }
        }
    };
    let stream = Stream { running, events, over, heartbeat };
    let body = unfold(stream, |mut stream| async {
        let event = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), stream))
    });
    Ok((HEADERS, Body::from_stream(body)).into_response())
}

/// The headers of every stream of events.
pub(super) const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    // nginx collects answers otherwise.
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
];

/// What is left to send. Dropping it, as hyper does when the client is gone, cancels the
/// generation.
struct Stream {
    running: Running,
    /// Written and not yet taken: those of one step.
    events: VecDeque<Bytes>,
    /// Nothing will be added.
    over: bool,
    heartbeat: Duration,
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            let Ok(progress) = timeout(self.heartbeat, self.running.next()).await else {
                return Some(Bytes::from_static(HEARTBEAT));
            };
            self.over = !matches!(progress, Progress::More(_) | Progress::Recovering);
            let counts = self.running.counts();
            self.events.extend(written(self.running.reply(), progress, counts));
        }
    }
}

/// Comments, which every client passes over.
const HEARTBEAT: &[u8] = b": waiting\n\n";
const RECOVERING: &[u8] = b": recovering\n\n";

/// The events that show `progress`.
fn written(reply: &Reply, progress: Progress, counts: Counts) -> Vec<Bytes> {
    match progress {
        Progress::More(piece) => reply.piece(piece).map(data).into_iter().collect(),
        Progress::Last(piece, reason) => reply
            .piece(piece)
            .into_iter()
            .chain([reply.closing(reason)])
            .chain(reply.usage(counts))
            .chain(["[DONE]".to_owned()])
            .map(data)
            .collect(),
        Progress::Recovering => vec![Bytes::from_static(RECOVERING)],
        Progress::Failed(error) => vec![data(error.body())],
    }
}

/// JSON has no line breaks of its own, so one line holds it.
fn data(line: impl Display) -> Bytes {
    format!("data: {line}\n\n").into()
}
