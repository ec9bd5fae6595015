//! `GET /cluster/events`: the cluster as it changes, as server-sent events.
//!
//! At first, and whenever something has changed, the whole view as `cluster`, in the shape of `GET /cluster`; before
//! it what happened since the last one, as `member`, `plan`, `failure` and `recovery` ([`Change`]). Views come four
//! times a second when only numbers move, at once when something happened, and in between only the latest is kept: so
//! nothing piles up for a client that reads slowly. A comment shows in silence that the stream lives. It ends when
//! the node stops.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::unfold;
use planaria_control::cluster_events::{Change, changes};
use planaria_control::cluster_view::ClusterView;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use super::error::ApiError;
use super::stream::HEADERS;

/// Four times a second: smooth for the eye, and a view of a dozen nodes is some ten kilobytes.
const PACE: Duration = Duration::from_millis(250);

/// As soon after the last view a death or a plan is told: it is worth more than an even pace, and rare.
const URGENT_PACE: Duration = Duration::from_millis(50);

/// A comment, which clients pass over.
const HEARTBEAT: &[u8] = b": waiting\n\n";

/// The cluster as it changes.
pub(super) async fn events(State(shared): State<Shared>) -> Result<Response, ApiError> {
    let Ok(place) = Arc::clone(&shared.watchers).try_acquire_owned() else {
        return Err(ApiError::too_many_watchers(
            "as many clients as may watch this node: ask another node, or `/cluster` now and then",
        ));
    };
    let watcher = Watcher {
        view: shared.view.clone(),
        closing: shared.closing.subscribe(),
        heartbeat: shared.limits.heartbeat,
        told: None,
        events: VecDeque::new(),
        _place: place,
    };
    let body = unfold(watcher, |mut watcher| async {
        let event = watcher.next().await?;
        Some((Ok::<_, Infallible>(event), watcher))
    });
    let kind = [(axum::http::header::CONTENT_TYPE, "text/event-stream")];
    Ok((HEADERS, kind, Body::from_stream(body)).into_response())
}

/// One client.
struct Watcher {
    view: watch::Receiver<Arc<ClusterView>>,
    closing: watch::Receiver<bool>,
    heartbeat: Duration,
    /// The view that was written last, and when.
    told: Option<(Instant, Arc<ClusterView>)>,
    /// Written and not yet taken: those of one change.
    events: VecDeque<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let mut closing = self.closing.clone();
        tokio::select! {
            // Also when the server is gone.
            _ = closing.wait_for(|closing| *closing) => None,
            news = timeout(self.heartbeat, self.news()) => match news {
                Ok(true) => self.events.pop_front(),
                Ok(false) => None,
                Err(_) => Some(Bytes::from_static(HEARTBEAT)),
            },
        }
    }

    /// Writes the next view; `false` when there will be none. Dropping the future loses nothing.
    async fn news(&mut self) -> bool {
        if let Some((at, told)) = &self.told
            && !next(&self.view, *at, told).await
        {
            return false;
        }
        let view = Arc::clone(&self.view.borrow());
        let happened = self.told.as_ref().map(|(_, told)| changes(told, &view)).unwrap_or_default();
        self.events.extend(happened.iter().map(|change: &Change| event(change.name(), change)));
        self.events.push_back(event("cluster", &*view));
        self.told = Some((Instant::now(), view));
        true
    }
}

/// Waits until there is a view to tell after `told`; `false` when there will be none.
async fn next(
    view: &watch::Receiver<Arc<ClusterView>>,
    at: Instant,
    told: &Arc<ClusterView>,
) -> bool {
    let (mut urgent, mut calm) = (view.clone(), view.clone());
    let urgent = async {
        sleep_until(at + URGENT_PACE).await;
        urgent.wait_for(|view| !changes(told, view).is_empty()).await.is_ok()
    };
    let calm = async {
        sleep_until(at + PACE).await;
        calm.wait_for(|view| !Arc::ptr_eq(view, told)).await.is_ok()
    };
    tokio::select! {
        there = urgent => there,
        there = calm => there,
    }
}

/// JSON has no line breaks of its own, so one line holds it.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    match serde_json::to_string(data) {
        Ok(data) => format!("event: {name}\ndata: {data}\n\n").into(),
        Err(error) => {
            tracing::error!(%error, name, "an event could not be written");
            Bytes::from_static(HEARTBEAT)
        }
    }
}
