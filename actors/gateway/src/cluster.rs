//! What people and scripts ask a node about itself and its cluster.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use planaria_config::{InvalidModelName, ModelName, Strategy};
use planaria_control::cluster_view::ClusterView;
use planaria_control::scheduler::preview::{Preview, Question};
use planaria_protocol::state::{ModelState, NodeState};
use planaria_telemetry::metrics;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::error::{ApiError, RETRY_WHEN_UNPLANNED};

/// Answer of `/health`.
#[derive(Serialize)]
pub(super) struct Health {
    status: &'static str,
    problems: Vec<String>,
}

/// Answer of `/ready`.
#[derive(Serialize)]
pub(super) struct Ready {
    ready: bool,
    reasons: Vec<String>,
    /// What only some requests would meet.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// What is wrong with a node that was asked to stop.
const STOPPING: &str = "this node is stopping: it takes no requests any more";

/// 200 while the process works, with what is wrong in words.
pub(super) async fn health(State(shared): State<Shared>) -> Json<Health> {
    let view = current(&shared);
    let mut problems = view.obstacles();
    problems.extend(shared.is_leaving().then(|| STOPPING.to_owned()));
    let down = view.nodes.iter().filter(|n| n.state == NodeState::Down);
    problems.extend(view.complaints());
    problems.extend(shared.stored.closed());
    problems.extend(down.map(|node| format!("the node {} cannot be reached", node.name)));
    Json(Health { status: if problems.is_empty() { "ok" } else { "impaired" }, problems })
}

/// 200 when every desired model would answer a request to this node now.
pub(super) async fn ready(State(shared): State<Shared>) -> Response {
    let view = current(&shared);
    let mut reasons = view.obstacles();
    // The cluster can compute; can this node turn words into tokens?
    for model in view.models.iter().filter(|model| model.state == ModelState::Ready) {
        if let Err(error) = shared.words_of(&model.name).await {
            reasons.push(error.message().to_owned());
        }
    }
    reasons.extend(shared.is_leaving().then(|| STOPPING.to_owned()));
    let ready = reasons.is_empty();
    let warning = shared.stored.closed();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = (status, Json(Ready { ready, reasons, warning })).into_response();
    if !ready {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_WHEN_UNPLANNED));
    }
    response
}

/// What this node counts, for Prometheus.
pub(super) async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let models = shared.catalog.list().models;
    let layers = |name: &str| {
        let model = models.iter().find(|model| model.name.as_str() == name)?;
        model.held.first().map(|held| held.layers)
    };
    let text = shared.metrics.text(&current(&shared), shared.traces.counts(), layers);
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], text)
}

const TEXT_FORMAT: HeaderValue = HeaderValue::from_static(metrics::TEXT_FORMAT);

/// The cluster as this node sees it.
pub(super) async fn cluster(State(shared): State<Shared>) -> Json<Arc<ClusterView>> {
    Json(current(&shared))
}

/// A question to `/cluster/plan`.
#[derive(Deserialize)]
pub(super) struct PlanQuery {
    model: String,
    strategy: Option<String>,
    without: Option<String>,
}

/// What a model's plan would be.
pub(super) async fn plan(
    State(shared): State<Shared>,
    query: Result<Query<PlanQuery>, QueryRejection>,
) -> Result<Json<Preview>, ApiError> {
    let wrong = |param: &'static str, problem: String| ApiError::invalid(param, problem);
    let Query(PlanQuery { model, strategy, without }) =
        query.map_err(|error| wrong("model", error.body_text()))?;
    let model: ModelName =
        model.parse().map_err(|e: InvalidModelName| wrong("model", e.to_string()))?;
    let strategy = strategy.map(|strategy| strategy.parse::<Strategy>()).transpose();
    let strategy = strategy.map_err(|problem| wrong("strategy", problem))?;
    let question = Question { model, strategy, without };
    let previewer = shared.previewer.clone();
    // Some milliseconds of computing.
    let preview = tokio::task::spawn_blocking(move || previewer.preview(&question)).await;
    let preview = preview.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Json(preview.map_err(|error| wrong("without", error.to_string()))?))
}

/// Answer of `/cluster/backup`.
#[derive(Serialize)]
pub(super) struct Written {
    path: PathBuf,
}

/// Has the node copy what it remembers into a file of its own. The file holds its key, so it is not
/// sent.
pub(super) async fn backup(State(shared): State<Shared>) -> Result<Json<Written>, ApiError> {
    let backups = shared.backups.clone();
    let written = tokio::task::spawn_blocking(move || backups.write()).await;
    let failed = |error: String| match shared.stored.closed() {
        Some(_) => ApiError::store_closed(error),
        None => ApiError::internal(error),
    };
    let written = written.map_err(|error| failed(error.to_string()))?;
    Ok(Json(Written { path: written.map_err(|error| failed(error.to_string()))? }))
}

fn current(shared: &Shared) -> Arc<ClusterView> {
    Arc::clone(&shared.view.borrow())
}
