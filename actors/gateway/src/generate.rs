//! `/v1/chat/completions` and `/v1/completions`: from a request to an answer, whole or streamed.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::FutureExt as _;
use planaria_config::ModelName;
use planaria_engine::detokenizer::Detokenizer;
use planaria_engine::stop::StopStrings;
use planaria_protocol::generation::{Request, SubmitError};
use planaria_protocol::state::ModelState;
use planaria_telemetry::wall_clock::unix_seconds;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, Piece, Progress};
use super::body::Read;
use super::error::ApiError;
use super::preparation::{Room, Work};
use super::reply::Reply;
use super::request::{Asked, Delivery, Endpoint, Given};
use super::running::Running;
use super::traced::Traced;
use super::{Shared, stream};
use crate::generation::Generation;
use crate::stored_answers::{Record, Recorder};

pub(super) async fn chat(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Extension(body): Extension<Read>,
) -> Result<Response, ApiError> {
    respond(shared, Endpoint::Chat, &headers, body).await
}

pub(super) async fn completion(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Extension(body): Extension<Read>,
) -> Result<Response, ApiError> {
    respond(shared, Endpoint::Completion, &headers, body).await
}

async fn respond(
    shared: Shared,
    endpoint: Endpoint,
    headers: &HeaderMap,
    Read { bytes, room }: Read,
) -> Result<Response, ApiError> {
    if shared.is_leaving() {
        return Err(ApiError::not_admitted(&SubmitError::Leaving, endpoint.prompt_field()));
    }
    let parent = Traced::parent(headers);
    let length = bytes.len();
    let parse = move || Asked::parse(endpoint, &bytes);
    let asked = shared.preparations.run(Work::Parse, length, parse).await?;
    let model = shared.served_name(&asked.model)?;
    if asked.delivery.store.is_some() && !shared.stored.has_room() {
        let message =
            "this node stores no answers (its setting `stored-answers` is 0): leave it out";
        return Err(ApiError::invalid("store", message));
    }
    if asked.delivery.store.is_some()
        && let Some(closed) = shared.stored.closed()
    {
        return Err(cannot_store(&closed));
    }
    let is_streamed = asked.delivery.stream;
    let heartbeat = shared.limits.heartbeat;
    let traced = Traced::begin(endpoint, model.as_str(), parent);
    let beginning = async move {
        let begun = begin(&shared, endpoint, model, (asked, room), &traced).await;
        if let Err(error) = &begun {
            traced.failed(error.word());
        }
        begun
    };
    if is_streamed {
        stream::respond(beginning.boxed(), heartbeat).await
    } else {
        whole(beginning.await?).await
    }
}

/// Has a request tokenized and admitted.
async fn begin(
    shared: &Shared,
    endpoint: Endpoint,
    model: ModelName,
    asked: (Asked, Room),
    traced: &Traced,
) -> Result<Running, ApiError> {
    let prepared = prepare(shared, endpoint, model, asked, traced).await?;
    submit(shared, endpoint, prepared, traced.clone()).await
}

struct Prepared {
    request: Request,
    delivery: Delivery,
    answer: Answer,
}

/// Renders and tokenizes, away from the threads that serve connections.
async fn prepare(
    shared: &Shared,
    endpoint: Endpoint,
    name: ModelName,
    (asked, room): (Asked, Room),
    traced: &Traced,
) -> Result<Prepared, ApiError> {
    let _preparing = traced.preparing();
    let model = shared.words_of(&name).await?;
    let given = Given {
        context: shared.context_of(&name),
        draw: rand::random(),
        now: i64::try_from(unix_seconds()).unwrap_or(i64::MAX),
    };
    let length = asked.text_bytes();
    let work = move || {
        let _until_it_is_read = room;
        let (request, delivery) = asked.resolve(&model, given)?;
        let tokenizer = Arc::clone(&model.tokenizer);
        let detokenizer = match endpoint {
            Endpoint::Chat => Detokenizer::new(Arc::clone(&tokenizer)),
            // Its text goes on where the prompt ends.
            Endpoint::Completion => Detokenizer::after(Arc::clone(&tokenizer), &request.prompt)
                .map_err(|error| ApiError::internal(error.to_string()))?,
        };
        let stop = StopStrings::new(delivery.stop.clone());
        Ok(Prepared { request, delivery, answer: Answer::new(tokenizer, detokenizer, stop) })
    };
    shared.preparations.run(Work::Tokenize, length, work).await
}

/// Does what takes a moment and no tokenizer, away from the threads that serve connections.
pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("the request could not be prepared")))
}

async fn submit(
    shared: &Shared,
    endpoint: Endpoint,
    prepared: Prepared,
    traced: Traced,
) -> Result<Running, ApiError> {
    let Prepared { mut request, delivery, answer } = prepared;
    traced.asks(&request);
    request.trace = traced.context();
    let name = request.model.to_string();
    let prompt = request.prompt.clone();
    let created = unix_seconds();
    let record = delivery.store.as_ref().map(|metadata| Record {
        created,
        model: request.model.clone(),
        sampling: request.sampling.clone(),
        until: request.until.clone(),
        stop: delivery.stop.clone(),
        token_ids: delivery.token_ids,
        metadata: metadata.clone(),
        outcome: None,
    });
    let generation = admitted(shared, request).await.map_err(|error| {
        tracing::info!(model = name, %error, "a request was not admitted");
        ApiError::not_admitted(&error, endpoint.prompt_field())
    })?;
    let recorder = match record {
        Some(record) => Some(stored(shared, &generation, record, &prompt).await?),
        None => None,
    };
    let reply = Reply {
        endpoint,
        delivery,
        id: endpoint.answer_id(generation.id),
        created,
        model: name,
        prompt,
    };
    traced.answers(&reply.id);
    let metrics = Arc::clone(&shared.metrics);
    Ok(Running::new(generation, answer, reply, recorder, metrics, traced))
}

/// Begins to store an answer. Its id is told to nobody before it is on disk.
async fn stored(
    shared: &Shared,
    generation: &Generation,
    record: Record,
    prompt: &[u32],
) -> Result<Recorder, ApiError> {
    let recorder = shared.stored.begin(generation.id, record, prompt);
    match recorder.written().await {
        Ok(()) => Ok(recorder),
        Err(why) => {
            recorder.forget();
            Err(cannot_store(&why))
        }
    }
}

fn cannot_store(why: &str) -> ApiError {
    ApiError::store_closed(format!(
        "the answer cannot be stored: {why}; ask again later, or without `store`"
    ))
}

/// Has a request admitted. One that comes while the model's layers are being loaded waits a moment for
/// them: a client would ask again after seconds, and they are mostly there sooner.
async fn admitted(shared: &Shared, request: Request) -> Result<Generation, SubmitError> {
    let until = Instant::now() + shared.limits.hold;
    let mut view = shared.view.clone();
    loop {
        // What changes from here on is seen.
        view.mark_unchanged();
        let answer = shared.generator.submit(request.clone()).await;
        let Err(SubmitError::NoPlan { model, .. }) = &answer else {
            return answer;
        };
        let hopeless = view
            .borrow()
            .models
            .iter()
            .any(|known| known.name == *model && known.state == ModelState::Unavailable);
        if hopeless || !matches!(timeout_at(until, view.changed()).await, Ok(Ok(()))) {
            return answer;
        }
    }
}

/// Waits for the end and answers in one.
async fn whole(mut running: Running) -> Result<Response, ApiError> {
    let mut all = Piece::default();
    loop {
        match running.next().await {
            Progress::More(piece) => all.append(piece),
            Progress::Recovering => {}
            Progress::Last(piece, reason) => {
                all.append(piece);
                return Ok(json(running.reply().whole(all, reason, running.counts())));
            }
            Progress::Failed(error) => return Err(error),
        }
    }
}

/// A text that is JSON, as an answer.
pub(super) fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, JSON)], text).into_response()
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
