//! The HTTP API: OpenAI's routes, Anthropic's, Ollama's, and what people and scripts ask a node about itself.
//!
//! A request passes `path` (which route is meant?), `host` (is it addressed to us?), `origin` (may its web
//! page ask?), `auth` (has it the key?), `places` (is there one for it?) and then a route. An answer is made
//! in four steps, each with a module: `request` turns a body into tokens, the [`Generator`] turns tokens into
//! more tokens, `answer` turns those into text, and `reply` writes that as JSON; `generate` connects them,
//! `preparation` bounds what that takes, and `stream` sends them as they come. An answer that is to be stored
//! is taken down on the way; `stored` shows it, and `resume` goes on with those that a restart of the node
//! interrupted. `responses`, `anthropic` and `ollama` are dialects of their own. `models`, `cluster`, `events` and
//! `catalog` hold the other routes, `page` what people see in a browser, `openapi` what machines read of all routes,
//! `server` the connections, `error` all that can go wrong, and `error_shapes` how that is written.
//!
//! A generation lives as long as the response that shows it: a client that leaves, is cut off or
//! has met its stop text drops it, and so cancels the work on every stage. Prompts and answers are never
//! logged.

mod answer;
mod anthropic;
mod auth;
pub mod backups;
mod body;
mod catalog;
mod choices;
mod cluster;
mod error;
mod error_shapes;
pub mod event_stream;
mod events;
mod generate;
pub mod generation;
mod host;
pub mod model_list;
mod models;
mod ollama;
mod openapi;
mod origin;
mod page;
mod path;
mod places;
mod preparation;
pub mod previewer;
mod recording;
mod reply;
mod request;
mod responses;
mod resume;
mod running;
mod scores;
pub mod served;
mod server;
mod stored;
pub mod stored_answers;
mod stream;
mod tokenize;
mod traced;
mod writer;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post, put};
use planaria_control::cluster_view::ClusterView;
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use planaria_telemetry::wall_clock::unix_seconds;
use tokio::sync::{Semaphore, watch};

use self::host::AllowedHosts;
use self::origin::AllowedOrigins;
use self::places::Places;
use self::preparation::Preparations;
use self::responses::Memory;
use crate::backups::Backups;
use crate::generation::Generator;
use crate::model_list::Catalog;
use crate::previewer::Previewer;
use crate::served::ServedModels;
use crate::stored_answers::StoredAnswers;

pub use self::auth::{ApiKey, InvalidApiKey};
pub use self::server::serve;

/// What the gateway needs of its node.
#[derive(Clone)]
pub struct State {
    /// Who computes answers.
    pub generator: Arc<dyn Generator>,
    /// The cluster as this node sees it.
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// The models of the cluster.
    pub catalog: Arc<dyn Catalog>,
    /// Tokenizers and templates of the models on this node.
    pub models: Arc<ServedModels>,
    /// The key that every route but `/health` and the page demands.
    pub api_key: Option<ApiKey>,
    /// Setting `allowed-hosts`.
    pub allowed_hosts: Vec<String>,
    /// Setting `cors-origins`.
    pub cors_origins: Vec<String>,
    /// Who answers what a plan would be.
    pub previewer: Previewer,
    /// Who copies what the node remembers.
    pub backups: Backups,
    /// The answers that were to be stored.
    pub stored: StoredAnswers,
    /// What this node counts.
    pub metrics: Arc<Metrics>,
    /// Where its spans go.
    pub traces: Traces,
    /// Setting `context`: longest sequence in tokens of a model that has no plan yet.
    pub context: u32,
    /// Whether the node was asked to stop. Set, no generation begins, and no connection is used twice.
    pub leaving: watch::Receiver<bool>,
    /// Bounds on what clients may take up.
    pub limits: Limits,
}

/// Bounds on what one client, or all of them, may take up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest body of a request, in bytes; past it 413. Far more text than any context holds.
    pub body_bytes: usize,
    /// Longest time for a body to arrive; past it 408.
    pub body_timeout: Duration,
    /// Longest time for a request's headers to arrive, also on a connection that was used before.
    pub header_timeout: Duration,
    /// Longest time that a client may refuse to take the next byte; past it the connection and the
    /// generation end.
    pub write_timeout: Duration,
    /// Silence in a stream after which a comment shows that it lives, and longest wait for its headers.
    pub heartbeat: Duration,
    /// Open connections; for one more, one that is idle is closed.
    pub connections: usize,
    /// Clients that watch the cluster (`/cluster/events`); past it 429.
    pub watchers: usize,
    /// Connections that are WebSockets; past it 429. Each holds a message of `body_bytes`, and a conversation as long.
    pub web_sockets: usize,
    /// Longest time for clients to read the ends of their answers after the shutdown began. Answers that run
    /// have ended by then (setting `drain-timeout`).
    pub drain: Duration,
    /// Longest time that a request waits for a model whose layers are being loaded; past it 503. A worker
    /// that is started again or a lost node that is replaced takes less, a start may take longer.
    pub hold: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            body_timeout: Duration::from_secs(30),
            // Longer than clients keep an idle connection (httpx and undici: 5 s), so that they
            // close it and never find it closed.
            header_timeout: Duration::from_secs(20),
            write_timeout: Duration::from_secs(30),
            // Clients are promised five, and a timer is late now and then.
            heartbeat: Duration::from_secs(4),
            // Of 1024 descriptors, the usual soft limit, the node needs some itself.
            connections: 512,
            // Many more than people look at one node, and a fraction of the connections.
            watchers: 64,
            // An agent has one.
            web_sockets: 64,
            drain: Duration::from_secs(10),
            hold: Duration::from_secs(3),
        }
    }
}

impl Limits {
    /// Requests that may be under way at once. Fewer than connections, so that there is one left to hear that
    /// there is no place, and one that asks how the node is.
    fn requests(&self) -> usize {
        (self.connections * 7 / 8).max(1)
    }
}

/// [`State`] in the form that routes want.
type Shared = Arc<Parts>;

struct Parts {
    generator: Arc<dyn Generator>,
    view: watch::Receiver<Arc<ClusterView>>,
    catalog: Arc<dyn Catalog>,
    models: Arc<ServedModels>,
    api_key: Option<ApiKey>,
    allowed_hosts: AllowedHosts,
    allowed_origins: AllowedOrigins,
    previewer: Previewer,
    backups: Backups,
    stored: StoredAnswers,
    /// The responses that are remembered.
    responses: Arc<Memory>,
    metrics: Arc<Metrics>,
    traces: Traces,
    context: u32,
    leaving: watch::Receiver<bool>,
    limits: Limits,
    /// Places of clients that watch.
    watchers: Arc<Semaphore>,
    /// Places of WebSockets.
    web_sockets: Arc<Semaphore>,
    /// Set when the server begins to shut down.
    closing: watch::Sender<bool>,
    /// Places of requests.
    places: Arc<Mutex<Places>>,
    /// Places of requests that are parsed and tokenized.
    preparations: Preparations,
    /// In seconds since 1970.
    started: u64,
}

impl Parts {
    /// Whether the node was asked to stop.
    fn is_leaving(&self) -> bool {
        *self.leaving.borrow()
    }
}

/// The API as a service, without connections of its own.
///
/// [`serve`] tells it the address of each connection; without that only loopback names and
/// `allowed_hosts` pass the Host check.
pub fn router(state: State) -> Router {
    routes(share(state))
}

fn share(state: State) -> Shared {
    Arc::new(Parts {
        generator: state.generator,
        view: state.view,
        catalog: state.catalog,
        models: state.models,
        api_key: state.api_key,
        allowed_hosts: AllowedHosts::new(&state.allowed_hosts),
        allowed_origins: AllowedOrigins::new(&state.cors_origins),
        previewer: state.previewer,
        backups: state.backups,
        stored: state.stored,
        responses: Arc::default(),
        metrics: state.metrics,
        traces: state.traces,
        context: state.context,
        leaving: state.leaving,
        limits: state.limits,
        watchers: Arc::new(Semaphore::new(state.limits.watchers)),
        web_sockets: Arc::new(Semaphore::new(state.limits.web_sockets)),
        closing: watch::Sender::new(false),
        places: Arc::new(Mutex::new(Places::new(state.limits.requests()))),
        preparations: Preparations::new(),
        started: unix_seconds(),
    })
}

fn routes(shared: Shared) -> Router {
    let page = page::paths().fold(Router::new(), |page, path| page.route(path, get(page::file)));
    let router = page
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/chat/completions/{id}", get(stored::one).delete(stored::delete))
        .route("/v1/completions", post(generate::completion))
        .route("/v1/responses", post(responses::create).get(responses::connect))
        .route("/v1/responses/compact", post(responses::compact))
        .route("/v1/responses/{id}", get(responses::one).delete(responses::delete))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .merge(ollama::routes())
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(cluster::health))
        .route("/ready", get(cluster::ready))
        .route("/metrics", get(cluster::metrics))
        .route("/openapi.json", get(openapi::document))
        .route("/cluster", get(cluster::cluster))
        .route("/cluster/events", get(events::events))
        .route("/cluster/plan", get(cluster::plan))
        .route("/cluster/backup", post(cluster::backup))
        .route("/cluster/models", get(catalog::list))
        .route("/cluster/models/{*name}", put(catalog::put).delete(catalog::delete))
        .fallback(path::no_such_route)
        .method_not_allowed_fallback(path::wrong_method)
        // The last layer is the first to see a request.
        .layer(from_fn_with_state(Arc::clone(&shared), places::demand_place))
        .layer(from_fn_with_state(Arc::clone(&shared), auth::demand_key));
    let router = shared
        .allowed_origins
        .allow(router)
        .layer(from_fn_with_state(Arc::clone(&shared), origin::refuse_foreign_pages))
        .layer(from_fn_with_state(Arc::clone(&shared), host::demand_known_host))
        // Around all that refuses a request.
        .layer(from_fn(error_shapes::write))
        .with_state(shared);
    // Around the router, which has chosen a route before its layers see a request.
    Router::new().fallback_service(router).layer(from_fn(path::tidy))
}
