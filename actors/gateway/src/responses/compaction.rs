//! `/v1/responses/compact`: a conversation that became long, in fewer words.
//!
//! What users and the system said stays as it is. What the model did, and what came of its calls, is summed up by the
//! model itself, in one item that later requests hand back in place of all that.

use std::sync::{Arc, OnceLock};

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use planaria_config::SequenceId;
use planaria_engine::chat_template::ChatMessage;
use serde_json::{Value, json};

use super::items::{self, Turn};
use super::kept::name_of;
use super::references::References;
use super::reply::{self, usage};
use super::request::{self, Told, Transport};
use crate::answer::{Counts, Finish, Piece};
use crate::body::Read;
use crate::error::ApiError;
use crate::generate;
use crate::request::tools::{Effort, ToolChoice};
use crate::request::{Asked, ChatAsked, Delivery, Prompt};
use crate::writer::{Dialect, Head, Writer};
use crate::{Parts, Shared};

/// What the model is asked for behind the conversation.
const TASK: &str = "Sum up this conversation so that somebody who has read nothing of it can go on with it: what was asked \
                    for, what was done and found out, what was decided, and what is left to do. Keep names, numbers, \
                    paths and commands as they are. Write the summary and nothing else.";

/// Tokens of a summary where the request does not say how many: a few pages.
const USUAL_TOKENS: u32 = 4096;

/// Has a conversation summed up.
pub(crate) async fn compact(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Extension(body): Extension<Read>,
) -> Result<Response, ApiError> {
    let memory = Arc::clone(&shared.responses);
    let compacting = Arc::new(Compacting {
        references: References::new(memory, None),
        told: OnceLock::new(),
        written: Arc::default(),
    });
    let dialect = Arc::clone(&compacting) as Arc<dyn Dialect>;
    let begun = generate::begun(Shared::clone(&shared), dialect, &headers, body).await?;
    begun.beginning.await?.whole().await?;
    compacting.response().map(generate::json)
}

/// The dialect of one request.
#[derive(Debug)]
struct Compacting {
    references: References,
    /// What the request says; once it is read.
    told: OnceLock<Told>,
    written: Arc<OnceLock<Written>>,
}

/// What a model wrote.
#[derive(Debug)]
struct Written {
    /// The name of what comes of it.
    id: String,
    created: u64,
    summary: String,
    finish: Finish,
    /// Tokens of the prompt.
    prompt: usize,
    counts: Counts,
}

impl Compacting {
    /// The conversation as it is to be handed back.
    fn response(&self) -> Result<String, ApiError> {
        let written = self.written.get().filter(|written| !written.summary.trim().is_empty());
        let (Some(told), Some(written)) = (self.told.get(), written) else {
            let message = "the model has written no summary: go on with the conversation as it is";
            return Err(ApiError::refused(StatusCode::UNPROCESSABLE_ENTITY, "no_summary", message));
        };
        let stays = |item: &Arc<items::Item>| {
            matches!(item.turn, Turn::User(_) | Turn::System(_)).then(|| item.value.clone())
        };
        let mut output: Vec<Value> = told.input.iter().filter_map(stays).collect();
        output.push(items::of_summary(&items::drawn_id("cmp"), &written.summary));
        let is_cut_off = written.finish == Finish::Length;
        let response = json!({
            "id": written.id,
            "object": "response.compaction",
            "created_at": written.created,
            "incomplete_details": is_cut_off.then(|| json!({"reason": "max_output_tokens"})),
            "output": output,
            "usage": usage(written.prompt, written.counts),
        });
        Ok(response.to_string())
    }
}

impl Dialect for Compacting {
    fn parse(&self, body: &[u8]) -> Result<Asked, ApiError> {
        let (mut asked, told) =
            self.references.read(|known| request::read(body, known, Transport::Http))?;
        if asked.delivery.stream || told.is_background {
            let field = if asked.delivery.stream { "stream" } else { "background" };
            let message = format!("`{field}` is not supported by this route: leave it out");
            return Err(ApiError::invalid(field, message).coded("unsupported_parameter"));
        }
        if let Prompt::Chat(chat) = &mut asked.prompt {
            ask_for_summary(chat);
        }
        asked.delivery.stop.clear();
        asked.ignore_eos = false;
        asked.max_tokens = asked.max_tokens.or(USUAL_TOKENS.try_into().ok());
        self.told.get_or_init(|| told);
        Ok(asked)
    }

    fn recalls<'a>(&'a self, shared: &'a Parts) -> BoxFuture<'a, Result<bool, ApiError>> {
        self.references.recalls(shared).boxed()
    }

    fn prompt_field(&self) -> &'static str {
        request::PROMPT
    }

    fn answer_id(&self, sequence: SequenceId) -> String {
        name_of(sequence)
    }

    fn writer(&self, head: Head, _delivery: &Delivery) -> Box<dyn Writer> {
        Box::new(SummaryWriter { head, written: Arc::clone(&self.written) })
    }

    fn failed(&self, error: &ApiError) -> Vec<Bytes> {
        vec![reply::error_event(error)]
    }
}

/// Adds the task to a conversation, of which many templates want that user and model take turns.
fn ask_for_summary(asked: &mut ChatAsked) {
    let messages = &mut asked.chat.messages;
    match messages.last_mut() {
        Some(last) if last.role == "user" => {
            last.content.push_str("\n\n");
            last.content.push_str(TASK);
        }
        _ => messages.push(ChatMessage::new("user", TASK)),
    }
    // Thoughts about a summary are lost.
    asked.effort = asked.effort.or(Some(Effort::None));
    asked.tool_choice = ToolChoice::None;
    asked.form = None;
}

/// Takes down a summary, which nobody sees grow.
#[derive(Debug)]
struct SummaryWriter {
    head: Head,
    written: Arc<OnceLock<Written>>,
}

impl Writer for SummaryWriter {
    fn opening(&mut self) -> Vec<Bytes> {
        Vec::new()
    }

    fn piece(&mut self, _answer: usize, _piece: Piece) -> Vec<Bytes> {
        Vec::new()
    }

    fn finished(&mut self, _answer: usize, _finish: &Finish) -> Vec<Bytes> {
        Vec::new()
    }

    fn closing(&mut self, _counts: Counts) -> Vec<Bytes> {
        Vec::new()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![reply::error_event(error)]
    }

    fn whole(&mut self, answers: Vec<(Piece, Finish)>, counts: Counts) -> String {
        for (piece, finish) in answers {
            self.written.get_or_init(|| Written {
                id: self.head.id.clone(),
                created: self.head.created,
                summary: piece.text(),
                finish,
                prompt: self.head.prompt.len(),
                counts,
            });
        }
        String::new()
    }
}
