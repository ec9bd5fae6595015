//! Answers as server-sent events.
//!
//! The status line waits for the first token, so that a request that is refused or fails before it has a
//! status that clients know how to retry; but not for longer than a comment is due, since clients and proxies
//! give up on a server that sends nothing. Later failures are an event, and the stream ends without `[DONE]`.

use std::collections::VecDeque;
use std::fmt::Display;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::unfold;
use tokio::time::timeout;

use super::answer::{Counts, Progress};
use super::error::ApiError;
use super::reply::Reply;
use super::running::Running;

/// A request on its way to be admitted. Dropping it withdraws it.
pub(super) type Beginning = BoxFuture<'static, Result<Running, ApiError>>;

/// Answers with a stream: as soon as there is something to send, or `heartbeat` from now.
pub(super) async fn respond(
    beginning: Beginning,
    heartbeat: Duration,
) -> Result<Response, ApiError> {
    let source = Source::Beginning(beginning);
    let mut stream = Stream { source, events: VecDeque::new(), heartbeat };
    match timeout(heartbeat, stream.first()).await {
        Ok(first) => first?,
        Err(_) => stream.events.push_back(HEARTBEAT),
    }
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
    source: Source,
    /// Written and not yet taken.
    events: VecDeque<Bytes>,
    heartbeat: Duration,
}

/// Where events come from.
enum Source {
    /// It waits to be tokenized or admitted.
    Beginning(Beginning),
    Running(Box<Running>),
    /// Nothing will be added.
    Over,
}

impl Stream {
    /// Waits for the first token, or why there is none. Dropping the future loses nothing.
    async fn first(&mut self) -> Result<(), ApiError> {
        loop {
            match self.progress().await {
                Progress::Failed(error) => return Err(error),
                Progress::Recovering => {}
                progress => {
                    self.write(progress);
                    return Ok(());
                }
            }
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if matches!(self.source, Source::Over) {
                return None;
            }
            match timeout(self.heartbeat, self.progress()).await {
                Ok(progress) => self.write(progress),
                Err(_) => self.events.push_back(HEARTBEAT),
            }
        }
    }

    /// Waits for what comes next. Dropping the future loses nothing.
    async fn progress(&mut self) -> Progress {
        if let Source::Beginning(beginning) = &mut self.source {
            match beginning.await {
                Ok(running) => {
                    self.events.extend(running.reply().opening().map(data));
                    self.source = Source::Running(Box::new(running));
                }
                Err(error) => return Progress::Failed(error),
            }
        }
        match &mut self.source {
            Source::Running(running) => running.next().await,
            // Nobody asks what comes after the end.
            Source::Beginning(_) | Source::Over => Progress::Failed(ApiError::broken_off()),
        }
    }

    fn write(&mut self, progress: Progress) {
        let over = !matches!(progress, Progress::More(_) | Progress::Recovering);
        match &self.source {
            Source::Running(running) => {
                self.events.extend(written(running.reply(), progress, running.counts()));
            }
            Source::Beginning(_) | Source::Over => {
                if let Progress::Failed(error) = progress {
                    self.events.push_back(data(error.body()));
                }
            }
        }
        if over {
            self.source = Source::Over;
        }
    }
}

/// Comments, which every client passes over.
const HEARTBEAT: Bytes = Bytes::from_static(b": waiting\n\n");
const RECOVERING: Bytes = Bytes::from_static(b": recovering\n\n");

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
        Progress::Recovering => vec![RECOVERING],
        Progress::Failed(error) => vec![data(error.body())],
    }
}

/// JSON has no line breaks of its own, so one line holds it.
fn data(line: impl Display) -> Bytes {
    format!("data: {line}\n\n").into()
}
