//! The events of a response for whoever asks: those that there are, and then those that come.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::unfold;
use tokio::sync::watch;
use tokio::time::timeout;

use super::memory::Entry;
use crate::stream::HEADERS;

/// The events from this number on.
pub(super) fn stream(entry: Arc<Entry>, number: usize, heartbeat: Duration) -> Response {
    let grown = entry.watch();
    let follower = Follower { entry, grown, number, events: VecDeque::new(), heartbeat };
    let body = unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    (HEADERS, kind, Body::from_stream(body)).into_response()
}

/// One reader.
struct Follower {
    entry: Arc<Entry>,
    grown: watch::Receiver<()>,
    /// Of the event that was not read yet.
    number: usize,
    events: VecDeque<Bytes>,
    heartbeat: Duration,
}

impl Follower {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            // What comes after the look is seen.
            self.grown.mark_unchanged();
            let (events, is_over) = self.entry.events_from(self.number);
            self.number += events.len();
            self.events.extend(events);
            if !self.events.is_empty() {
                continue;
            }
            if is_over {
                return None;
            }
            match timeout(self.heartbeat, self.grown.changed()).await {
                Ok(Ok(())) => {}
                // The response holds the other end.
                Ok(Err(_)) => return None,
                Err(_) => return Some(Bytes::from_static(b": waiting\n\n")),
            }
        }
    }
}
