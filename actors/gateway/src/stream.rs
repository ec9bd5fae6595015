//! Answers as they come: as server-sent events, or what else the dialect has.
//!
//! The status line waits for the first token, so that a request that is refused or fails before it has a
//! status that clients know how to retry; but not for longer than a comment is due, since clients and proxies
//! give up on a server that sends nothing. Later failures are an event, and the stream ends without `[DONE]`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::unfold;
use tokio::time::timeout;

use super::answer::Progress;
use super::choices::Choices;
use super::error::ApiError;
use super::writer::Dialect;

/// A request on its way to be admitted. Dropping it withdraws it.
pub(super) type Beginning = BoxFuture<'static, Result<Choices, ApiError>>;

/// Answers with a stream: as soon as there is something to send, or `heartbeat` from now.
pub(super) async fn respond(
    dialect: Arc<dyn Dialect>,
    beginning: Beginning,
    heartbeat: Duration,
) -> Result<Response, ApiError> {
    let kind = [(header::CONTENT_TYPE, dialect.content_type())];
    let mut stream = Stream::new(dialect, beginning, heartbeat);
    match timeout(heartbeat, stream.first()).await {
        Ok(first) => first?,
        Err(_) => stream.events.push_back(stream.dialect.waiting()),
    }
    let body = unfold(stream, |mut stream| async {
        let event = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), stream))
    });
    Ok((HEADERS, kind, Body::from_stream(body)).into_response())
}

/// The headers of every stream.
pub(super) const HEADERS: [(HeaderName, HeaderValue); 2] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    // nginx collects answers otherwise.
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
];

/// What is left to send. Dropping it, as hyper does when the client is gone, cancels the
/// generation.
pub(super) struct Stream {
    dialect: Arc<dyn Dialect>,
    source: Source,
    /// Written and not yet taken.
    events: VecDeque<Bytes>,
    heartbeat: Duration,
}

/// Where events come from.
enum Source {
    /// It waits to be tokenized or admitted.
    Beginning(Beginning),
    Running(Box<Choices>),
    /// Nothing will be added.
    Over,
}

impl Stream {
    pub(super) const fn new(
        dialect: Arc<dyn Dialect>,
        beginning: Beginning,
        heartbeat: Duration,
    ) -> Self {
        let source = Source::Beginning(beginning);
        Self { dialect, source, events: VecDeque::new(), heartbeat }
    }

    /// Waits for the first token, or why there is none. Dropping the future loses nothing.
    async fn first(&mut self) -> Result<(), ApiError> {
        loop {
            match self.progress().await {
                (_, Progress::Failed(error)) => return Err(error),
                (_, Progress::Recovering) => {}
                (answer, progress) => {
                    self.write(answer, progress);
                    return Ok(());
                }
            }
        }
    }

    /// Waits for the next event, or for the time to show that the stream lives. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if matches!(self.source, Source::Over) {
                return None;
            }
            match timeout(self.heartbeat, self.progress()).await {
                Ok((answer, progress)) => self.write(answer, progress),
                Err(_) => self.events.push_back(self.dialect.waiting()),
            }
        }
    }

    /// Waits for what comes next, and of which answer. Dropping the future loses nothing.
    async fn progress(&mut self) -> (usize, Progress) {
        if let Source::Beginning(beginning) = &mut self.source {
            match beginning.await {
                Ok(mut choices) => {
                    self.events.extend(choices.writer().opening());
                    self.source = Source::Running(Box::new(choices));
                }
                Err(error) => return (0, Progress::Failed(error)),
            }
        }
        match &mut self.source {
            Source::Running(choices) => choices.next().await,
            // Nobody asks what comes after the end.
            Source::Beginning(_) | Source::Over => (0, Progress::Failed(ApiError::broken_off())),
        }
    }

    fn write(&mut self, answer: usize, progress: Progress) {
        let is_failed = matches!(progress, Progress::Failed(_));
        let events = match (&mut self.source, progress) {
            (_, Progress::Recovering) => vec![self.dialect.recovering()],
            (Source::Running(choices), progress) => written(choices, answer, progress),
            (_, Progress::Failed(error)) => self.dialect.failed(&error),
            (_, Progress::More(_) | Progress::Last(..)) => Vec::new(),
        };
        self.events.extend(events);
        let are_over = matches!(&self.source, Source::Running(choices) if choices.are_over());
        if is_failed || are_over {
            self.source = Source::Over;
        }
    }
}

/// What shows `progress` to the client.
pub(super) fn written(choices: &mut Choices, answer: usize, progress: Progress) -> Vec<Bytes> {
    let counts = choices.counts();
    let are_over = choices.are_over();
    let writer = choices.writer();
    match progress {
        Progress::More(piece) => writer.piece(answer, piece),
        Progress::Last(piece, finish) => {
            let mut events = writer.piece(answer, piece);
            events.extend(writer.finished(answer, &finish));
            if are_over {
                events.extend(writer.closing(counts));
            }
            events
        }
        Progress::Recovering => Vec::new(),
        Progress::Failed(error) => writer.failed(&error),
    }
}
