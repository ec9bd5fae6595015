//! From a request to its answers, whole or streamed, in whatever dialect.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::FutureExt;
use planaria_config::ModelName;
use planaria_engine::detokenizer::Detokenizer;
use planaria_engine::reply::{Dialect as ReplyDialect, Reply};
use planaria_engine::stop::StopStrings;
use planaria_engine::tokenizer::TokenizerError;
use planaria_protocol::generation::{Request, SubmitError};
use planaria_protocol::state::ModelState;
use planaria_telemetry::wall_clock::unix_seconds;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::answer::{Answer, Reader};
use super::body::Read;
use super::choices::{Choices, Rest};
use super::error::ApiError;
use super::preparation::{Room, Work};
use super::recording::{Recording, Wish, demand_store};
use super::request::{Asked, Delivery, Endpoint, Given, Reading, Resolved};
use super::running::Running;
use super::stream::{self, Beginning};
use super::traced::Traced;
use super::writer::{Dialect, Head};
use crate::generation::Generation;
use crate::served::ServedModel;

pub(super) async fn chat(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Extension(body): Extension<Read>,
) -> Result<Response, ApiError> {
    respond(shared, &Endpoint::Chat, &headers, body).await
}

pub(super) async fn completion(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Extension(body): Extension<Read>,
) -> Result<Response, ApiError> {
    respond(shared, &Endpoint::Completion, &headers, body).await
}

/// Answers a request of a dialect.
pub(super) async fn respond(
    shared: Shared,
    dialect: &'static dyn Dialect,
    headers: &HeaderMap,
    body: Read,
) -> Result<Response, ApiError> {
    begun(shared, Arc::new(dialect), headers, body).await?.respond().await
}

/// A request that was read, and is to be answered.
pub(super) struct Begun {
    dialect: Arc<dyn Dialect>,
    /// Its answers, once they are admitted. Nothing happens before it is asked for them.
    pub(super) beginning: Beginning,
    /// Whether they are to come as they are computed.
    pub(super) is_streamed: bool,
    heartbeat: Duration,
}

impl Begun {
    /// Answers it, as long as its client stays.
    pub(super) async fn respond(self) -> Result<Response, ApiError> {
        if self.is_streamed {
            stream::respond(self.dialect, self.beginning, self.heartbeat).await
        } else {
            Ok(json(self.beginning.await?.whole().await?))
        }
    }
}

/// Reads a request.
pub(super) async fn begun(
    shared: Shared,
    dialect: Arc<dyn Dialect>,
    headers: &HeaderMap,
    Read { bytes, room }: Read,
) -> Result<Begun, ApiError> {
    if shared.is_leaving() {
        return Err(ApiError::not_admitted(&SubmitError::Leaving, dialect.prompt_field()));
    }
    let parent = Traced::parent(headers);
    let asked = asked(&shared, &dialect, &bytes).await?;
    let model = shared.served_name(&asked.model)?;
    if asked.delivery.store.is_some() {
        demand_store(&shared, &asked.delivery)?;
    }
    let is_streamed = asked.delivery.stream;
    let heartbeat = shared.limits.heartbeat;
    let traced = Traced::begin(dialect.operation(), model.as_str(), parent);
    let asking = Arc::clone(&dialect);
    let beginning = async move {
        let begun = begin(&shared, asking, model, (asked, room), &traced).await;
        if let Err(error) = &begun {
            traced.failed(error.word());
        }
        begun
    };
    Ok(Begun { dialect, beginning: beginning.boxed(), is_streamed, heartbeat })
}

/// Times that a request is parsed anew with more of what it refers to.
const MOST_RECALLS: usize = 16;

/// Parses a request, with what it refers to.
async fn asked(
    shared: &Shared,
    dialect: &Arc<dyn Dialect>,
    bytes: &Bytes,
) -> Result<Asked, ApiError> {
    let mut recalls = 0;
    loop {
        let (reader, body) = (Arc::clone(dialect), bytes.clone());
        let parse = move || reader.parse(&body);
        let asked = shared.preparations.run(Work::Parse, bytes.len(), parse).await;
        if asked.is_ok() || recalls == MOST_RECALLS || !dialect.recalls(shared).await? {
            return asked;
        }
        recalls += 1;
    }
}

/// Has a request tokenized and admitted.
async fn begin(
    shared: &Shared,
    dialect: Arc<dyn Dialect>,
    model: ModelName,
    asked: (Asked, Room),
    traced: &Traced,
) -> Result<Choices, ApiError> {
    let Prepared { request, delivery, reading, mut answers } =
        prepare(shared, model, asked, traced).await?;
    let created = unix_seconds();
    let prompt: Arc<[u32]> = request.prompt.as_slice().into();
    let head = Head { id: String::new(), created, model: request.model.to_string(), prompt };
    let count = answers.len();
    let first = answers.pop().ok_or_else(|| ApiError::internal("no answer was asked for"))?;
    let wish = Wish::of(dialect.as_ref(), &delivery, (created, &request, &reading))?;
    dialect.asks(&request);
    let submitting = Submitting { shared: Shared::clone(shared), dialect, traced: traced.clone() };
    let (running, head) = submitting.submit(head, request.clone(), first, wish).await?;
    traced.answers(&head.id);
    let writer = submitting.dialect.writer(head.clone(), &delivery);
    let seed = request.sampling.seed;
    let rest = (!answers.is_empty()).then(|| -> Rest {
        async move {
            let mut others = Vec::new();
            for (number, answer) in (1..).zip(answers) {
                let mut request = request.clone();
                request.sampling.seed = seed.wrapping_add(number);
                let (running, _) = submitting.submit(head.clone(), request, answer, None).await?;
                others.push(running);
            }
            Ok(others)
        }
        .boxed()
    });
    Ok(Choices::new(writer, running, rest, count))
}

struct Prepared {
    request: Request,
    delivery: Delivery,
    /// How its answers are read.
    reading: Reading,
    answers: Vec<Answer>,
}

/// Renders and tokenizes, away from the threads that serve connections.
async fn prepare(
    shared: &Shared,
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
        let Resolved { request, delivery, reading } = asked.resolve(&model, given)?;
        let answer = |_| {
            let answer = answer(&model, &reading, &request.prompt, &delivery);
            answer.map_err(|error| ApiError::internal(error.to_string()))
        };
        let answers = (0..delivery.answers).map(answer).collect::<Result<_, ApiError>>()?;
        Ok(Prepared { request, delivery, reading, answers })
    };
    shared.preparations.run(Work::Tokenize, length, work).await
}

/// An answer to `prompt` in the words of a model.
pub(super) fn answer(
    model: &ServedModel,
    reading: &Reading,
    prompt: &[u32],
    delivery: &Delivery,
) -> Result<Answer, TokenizerError> {
    let tokenizer = Arc::clone(&model.tokenizer);
    let reply = |dialect: ReplyDialect, tools| {
        Reply::new(Arc::clone(&tokenizer), dialect, tools, prompt).map(Box::new)
    };
    let reader = match reading {
        // Its text goes on where the prompt ends.
        Reading::Text => Reader::Text(Detokenizer::after(Arc::clone(&tokenizer), prompt)?),
        Reading::Chat(tools) => Reader::Chat(reply(model.dialect, tools.clone())?),
        Reading::Calls { or_text } => {
            let (list, may_be_text) = (String::new(), *or_text);
            Reader::Calls { reply: reply(model.dialect, None)?, list, may_be_text }
        }
    };
    let stop = StopStrings::new(delivery.stop.clone());
    Ok(Answer::new(tokenizer, reader, stop, delivery.parallel_calls))
}

/// Does what takes a moment and no tokenizer, away from the threads that serve connections.
pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("the request could not be prepared")))
}

/// What the answers of a request share on their way to the cluster.
struct Submitting {
    shared: Shared,
    dialect: Arc<dyn Dialect>,
    traced: Traced,
}

impl Submitting {
    /// Has an answer admitted, which gives it its name.
    async fn submit(
        &self,
        head: Head,
        mut request: Request,
        answer: Answer,
        wish: Option<Wish>,
    ) -> Result<(Running, Head), ApiError> {
        let Self { shared, dialect, traced } = self;
        traced.asks(&request);
        request.trace = traced.context();
        let mut recording = match &wish {
            Some(wish) => wish.before_admission(shared, dialect, &head).await?,
            None => None,
        };
        let generation = match admitted(shared, request).await {
            Ok(generation) => generation,
            Err(error) => {
                tracing::info!(model = head.model, %error, "a request was not admitted");
                let error = ApiError::not_admitted(&error, dialect.prompt_field());
                if let Some(recording) = recording {
                    recording.refused(&error);
                }
                return Err(error);
            }
        };
        if let (None, Some(wish)) = (&recording, &wish) {
            recording = wish.after_admission(shared, dialect, &head, generation.id).await?;
        }
        let head = Head { id: dialect.answer_id(generation.id), ..head };
        let answer = answer.of(recording.as_ref().map_or(generation.id, |recording| recording.key));
        let recorder = recording.and_then(Recording::admitted);
        let metrics = Arc::clone(&shared.metrics);
        let traced = traced.clone();
        let running = Running::new(generation, answer, head.clone(), recorder, metrics, traced);
        Ok((running, head))
    }
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

/// A text that is JSON, as an answer.
pub(super) fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, JSON)], text).into_response()
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
