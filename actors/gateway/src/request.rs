//! A request's body as a type whose bad states cannot be written, and from there to tokens.
//!
//! Nothing here waits or does I/O; rendering and tokenizing a long prompt takes long enough to
//! belong on a blocking thread.

pub(super) mod chat;
mod completion;
mod constraint;
pub(super) mod fields;
pub(super) mod forms;
pub(super) mod sampling;
pub(super) mod storing;
pub(super) mod tools;
pub(super) mod unsupported;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use planaria_config::SequenceId;
use planaria_engine::chat_template::{Chat, ChatError};
use planaria_engine::reply::{Dialect as ReplyDialect, ToolTypes};
use planaria_engine::sampler::SamplingParams;
use planaria_protocol::generation::{Request, Until};
use serde_json::Value;

use self::constraint::Demand;
use self::fields::{Fields, wrong_kind};
use self::forms::Form;
use self::sampling::SamplingAsked;
use self::tools::{Effort, ToolChoice};
use super::error::ApiError;
use super::reply::Reply;
use super::writer::{Dialect, Head, Writer, event};
use crate::served::ServedModel;
use crate::stored_answers::{Calls, Record};

/// Which of OpenAI's two ways to ask for text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// What a client asks for, in whatever dialect.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    /// The model's name as it was written, perhaps of no model at all.
    pub(super) model: String,
    /// The field that holds the prompt.
    pub(super) prompt_field: &'static str,
    /// What is to be answered.
    pub(super) prompt: Prompt,
    /// How tokens are chosen.
    pub(super) sampling: SamplingAsked,
    /// Most tokens of an answer.
    pub(super) max_tokens: Option<NonZeroU32>,
    /// Whether the model's own end is none.
    pub(super) ignore_eos: bool,
    /// Tokens that end the answer too.
    pub(super) stop_token_ids: Vec<u32>,
    /// How the answer is to come.
    pub(super) delivery: Delivery,
}

/// What a request does not say itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given {
    /// Longest sequence that this node admits, in tokens.
    pub(super) context: u32,
    /// The seed of a request without one.
    pub(super) draw: u64,
    /// In seconds since 1970; some templates tell the model what day it is.
    pub(super) now: i64,
}

/// How an answer is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Texts that end the answer and are not part of it.
    pub(super) stop: Vec<String>,
    /// Token by token.
    pub(super) stream: bool,
    /// With a chunk that counts tokens, at the end of a stream.
    pub(super) include_usage: bool,
    /// With the ids of prompt and answer, as vLLM gives them.
    pub(super) token_ids: bool,
    /// With log-probabilities.
    pub(super) logprobs: bool,
    /// To be read again later, with this written on it.
    pub(super) store: Option<BTreeMap<String, String>>,
    /// Answers that are drawn from the prompt, at least 1.
    pub(super) answers: usize,
    /// Whether the model may call several tools at once.
    pub(super) parallel_calls: bool,
}

impl Delivery {
    /// What is to be stored of an answer.
    pub(super) fn record(&self, created: u64, request: &Request, reading: &Reading) -> Record {
        Record {
            created,
            model: request.model.clone(),
            sampling: request.sampling.clone(),
            until: request.until.clone(),
            stop: self.stop.clone(),
            token_ids: self.token_ids,
            metadata: self.store.clone().unwrap_or_default(),
            outcome: None,
            ended: None,
            reused: 0,
            calls: reading.recorded(self.parallel_calls),
        }
    }
}

/// What is to be answered.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    /// A conversation.
    Chat(Box<ChatAsked>),
    /// A text to go on with.
    Text(String),
    /// The same in tokens.
    Tokens(Vec<u32>),
}

/// A conversation that is to be answered, and how.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct ChatAsked {
    /// Messages, tools, and what the template is told beside them.
    pub(super) chat: Chat,
    /// Whether the model has to call a tool.
    pub(super) tool_choice: ToolChoice,
    /// How much the model is to think.
    pub(super) effort: Option<Effort>,
    /// What the answer has to be.
    pub(super) form: Option<Form>,
}

/// A request in tokens, and how its answer is read.
#[derive(Debug)]
pub(super) struct Resolved {
    /// What the cluster is asked.
    pub(super) request: Request,
    /// How the answer is to come.
    pub(super) delivery: Delivery,
    /// How its tokens are read.
    pub(super) reading: Reading,
}

/// How the tokens of an answer are read.
#[derive(Debug, Clone)]
pub(super) enum Reading {
    /// As text.
    Text,
    /// As the reply of a chat, which may call these tools.
    Chat(Option<Arc<ToolTypes>>),
    /// As the reply of a chat whose text is a list of calls.
    Calls {
        /// Whether it may be an answer in its place.
        or_text: bool,
    },
}

impl Reading {
    /// How a stored answer is read.
    pub(super) fn of_recorded(calls: Option<&Calls>) -> Self {
        match calls {
            None => Self::Chat(None),
            Some(Calls::Marked { types, .. }) => Self::Chat(Some(Arc::new(types.clone()))),
            Some(Calls::Listed { or_text, .. }) => Self::Calls { or_text: *or_text },
        }
    }

    fn recorded(&self, parallel: bool) -> Option<Calls> {
        match self {
            Self::Text | Self::Chat(None) => None,
            Self::Chat(Some(types)) => Some(Calls::Marked { types: (**types).clone(), parallel }),
            Self::Calls { or_text } => Some(Calls::Listed { parallel, or_text: *or_text }),
        }
    }
}

/// Of stop texts, and of stop tokens: many times what clients send, and still compared within microseconds
/// at each token. OpenAI takes 4.
const MOST_STOPS: usize = 64;
/// A stop text is compared at every token, and as much text is held back.
const LONGEST_STOP: usize = 1024;
/// OpenAI's default for plain completions, which have no natural end.
const COMPLETION_TOKENS: Option<NonZeroU32> = NonZeroU32::new(16);

/// Answers that may be drawn from one prompt.
const MOST_ANSWERS: u32 = 8;

impl Endpoint {
    /// How names of answers begin.
    pub(super) const fn answer_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completion => "cmpl-",
        }
    }
}

impl Dialect for Endpoint {
    fn parse(&self, body: &[u8]) -> Result<Asked, ApiError> {
        Asked::parse(*self, body)
    }

    fn operation(&self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "text_completion",
        }
    }

    fn prompt_field(&self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completion => "prompt",
        }
    }

    fn answer_id(&self, sequence: SequenceId) -> String {
        format!("{}{sequence}", self.answer_prefix())
    }

    fn writer(&self, head: Head, delivery: &Delivery) -> Box<dyn Writer> {
        Box::new(Reply::new(*self, head, delivery))
    }

    fn failed(&self, error: &ApiError) -> Vec<bytes::Bytes> {
        vec![event(error.body())]
    }
}

/// A request's body as JSON.
pub(super) fn json_of(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::malformed(format!("the request's body is not JSON: {error}")))
}

/// The field `model`.
pub(super) fn model_of(fields: &Fields<'_>) -> Result<String, ApiError> {
    match fields.required("model")? {
        Value::String(model) => Ok(model.clone()),
        other => Err(wrong_kind("model".to_owned(), other, "a text")),
    }
}

impl Asked {
    /// Reads the body of a request to OpenAI's endpoints.
    fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, ApiError> {
        let body = json_of(body)?;
        let fields = Fields::of(String::new(), &body)?;
        let model = model_of(&fields)?;
        unsupported::refuse(endpoint, &fields)?;
        let form = forms::of(&fields)?;
        let prompt = match endpoint {
            Endpoint::Chat => Prompt::Chat(Box::new(chat::asked(&fields, form)?)),
            Endpoint::Completion => {
                forms::refuse_for_completions(form.as_ref())?;
                completion::prompt(&fields)?
            }
        };
        let sampling = SamplingAsked::parse(endpoint, &fields)?;
        Ok(Self {
            model,
            prompt_field: endpoint.prompt_field(),
            prompt,
            max_tokens: max_tokens(endpoint, &fields)?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            stop_token_ids: stop_token_ids(&fields)?,
            delivery: delivery(endpoint, &fields, sampling.wants_logprobs())?,
            sampling,
        })
    }

    /// How much there is to render and to tokenize.
    pub(super) fn text_bytes(&self) -> usize {
        self.prompt.bytes()
    }

    /// Turns words into tokens and fills what was left open.
    pub(super) fn resolve(self, model: &ServedModel, given: Given) -> Result<Resolved, ApiError> {
        let field = self.prompt_field;
        let context = given.context.min(model.max_context);
        // Clients ask for more than a model's context holds: they do not know it, and have one number for all
        // models.
        let most_tokens = self.max_tokens.map_or(u32::MAX, NonZeroU32::get);
        let ends = self.ends(model)?;
        let mut sampling = self.sampling.resolve(model, given.draw)?;
        let reading = self.prompt.reading(model.dialect);
        let demand = match &self.prompt {
            Prompt::Chat(asked) => Demand::of(asked, self.delivery.parallel_calls)?,
            Prompt::Text(_) | Prompt::Tokens(_) => None,
        };
        let prompt = self.prompt.tokens(field, model, given.now, context)?;
        let room = u32::try_from(prompt.len())
            .ok()
            .and_then(|tokens| context.checked_sub(tokens))
            .and_then(NonZeroU32::new);
        let Some(room) = room else {
            return Err(ApiError::prompt_too_long(field, prompt.len(), context));
        };
        if prompt.is_empty() {
            return Err(ApiError::invalid(field, "the prompt has no tokens"));
        }
        if let Some(demand) = demand {
            sampling.constraint = Some(demand.constraint(model, &prompt, &ends)?);
        }
        let request = Request {
            model: model.name.clone(),
            sampling: SamplingParams { prompt_tokens: context - room.get(), ..sampling },
            prompt,
            begun: Vec::new(),
            until: Until { eos: ends, max_tokens: most_tokens.min(room.get()) },
            trace: None,
        };
        Ok(Resolved { request, delivery: self.delivery, reading })
    }

    /// Tokens of the prompt, also of one that is too long to be answered.
    pub(super) fn count(self, model: &ServedModel, now: i64) -> Result<usize, ApiError> {
        Ok(self.prompt.tokens(self.prompt_field, model, now, u32::MAX)?.len())
    }

    /// Tokens that end the answer.
    fn ends(&self, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
        if let Some(id) = self.stop_token_ids.iter().find(|id| **id >= model.vocab) {
            return Err(ApiError::invalid(
                "stop_token_ids",
                format!(
                    "`stop_token_ids` holds {id}; the model's token ids are below {}",
                    model.vocab
                ),
            ));
        }
        let own: &[u32] = if self.ignore_eos { &[] } else { &model.eos };
        Ok(own.iter().chain(&self.stop_token_ids).copied().collect())
    }
}

impl Prompt {
    /// A conversation as chat completions have it.
    pub(super) fn of_chat(fields: &Fields<'_>) -> Result<Self, ApiError> {
        Ok(Self::Chat(Box::new(chat::asked(fields, None)?)))
    }

    /// How much there is to render and to tokenize.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Chat(asked) => asked.chat.bytes() + asked.chat.extra_bytes(),
            Self::Text(text) => text.len(),
            // They are tokens already.
            Self::Tokens(_) => 0,
        }
    }

    fn reading(&self, dialect: ReplyDialect) -> Reading {
        match self {
            Self::Chat(asked) => asked.reading(dialect),
            Self::Text(_) | Self::Tokens(_) => Reading::Text,
        }
    }

    /// Its tokens, fewer than `context`; `field` holds it.
    pub(super) fn tokens(
        self,
        field: &'static str,
        model: &ServedModel,
        now: i64,
        context: u32,
    ) -> Result<Vec<u32>, ApiError> {
        let tokenizer = &model.tokenizer;
        let encoded = match self {
            Self::Chat(asked) => {
                let chat = asked.for_model(model)?;
                let rendered = model.template.render(&chat, now);
                let text = rendered.map_err(|error| refused_by_template(field, &chat, &error))?;
                fits(field, &text, model, context)?;
                tokenizer.encode_rendered(&text)
            }
            Self::Text(text) => {
                fits(field, &text, model, context)?;
                tokenizer.encode_prompt(&text)
            }
            Self::Tokens(ids) => {
                return match ids.iter().find(|id| **id >= model.vocab) {
                    None => Ok(ids),
                    Some(id) => Err(ApiError::invalid(
                        "prompt",
                        format!(
                            "`prompt` holds the token {id}, and the model has {} tokens",
                            model.vocab
                        ),
                    )),
                };
            }
        };
        let ids = encoded.map_err(|error| ApiError::internal(error.to_string()))?;
        match ids.iter().find(|id| **id >= model.vocab) {
            None => Ok(ids),
            Some(id) => Err(ApiError::invalid(
                field,
                format!(
                    "`{field}` holds `{}`, which the model's tokenizer makes the token {id}, and the model \
                     has {} tokens: leave it out",
                    tokenizer.token_text(*id),
                    model.vocab
                ),
            )),
        }
    }
}

/// Refuses a text that cannot fit the context, before it is tokenized: that takes seconds for a long one.
fn fits(
    field: &'static str,
    text: &str,
    model: &ServedModel,
    context: u32,
) -> Result<(), ApiError> {
    // A token stands for a byte at least.
    if text.len() < context as usize {
        return Ok(());
    }
    let least = model.tokenizer.least_tokens(text);
    if least < context as usize {
        Ok(())
    } else {
        Err(ApiError::text_too_long(field, least - 1, context))
    }
}

fn refused_by_template(field: &'static str, chat: &Chat, error: &ChatError) -> ApiError {
    let message = error.to_string();
    match error {
        // It may have broken over what a client has put in.
        ChatError::Broken(_) if !chat.variables.is_empty() => {
            ApiError::invalid("chat_template_kwargs", message)
        }
        ChatError::Broken(_) if !chat.tools.is_empty() => ApiError::invalid("tools", message),
        ChatError::NoTemplate => ApiError::invalid("model", message).coded("no_chat_template"),
        ChatError::Refused(_) | ChatError::Runaway(_) => ApiError::invalid(field, message),
        ChatError::Broken(_) => ApiError::internal(message),
    }
}

fn max_tokens(endpoint: Endpoint, fields: &Fields<'_>) -> Result<Option<NonZeroU32>, ApiError> {
    // The first that is there counts; the other has to make sense nevertheless.
    let names: &[_] = match endpoint {
        Endpoint::Chat => &["max_completion_tokens", "max_tokens"],
        Endpoint::Completion => &["max_tokens"],
    };
    let mut asked = None;
    for name in names {
        let tokens = whole_number(fields, name)?;
        asked = asked.or(tokens);
    }
    let default = match endpoint {
        Endpoint::Chat => None,
        Endpoint::Completion => COMPLETION_TOKENS,
    };
    Ok(asked.or(default))
}

/// A number of tokens, at least 1. Past all contexts it makes no difference how far.
pub(super) fn whole_number(fields: &Fields<'_>, key: &str) -> Result<Option<NonZeroU32>, ApiError> {
    let parse = |value: &Value| {
        value.as_u64().and_then(|n| NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX)))
    };
    fields.parsed(key, "a whole number of at least 1", parse)
}

/// As vLLM has them: like the model's own end, but for one answer.
fn stop_token_ids(fields: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
    let field = "stop_token_ids";
    let list = fields.list(field)?.unwrap_or_default();
    let wrong = |problem: String| ApiError::invalid(field, format!("`{field}` {problem}"));
    if list.len() > MOST_STOPS {
        return Err(wrong(format!("has {} entries; {MOST_STOPS} are allowed", list.len())));
    }
    list.iter()
        .map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| wrong("has to be a list of token ids".to_owned()))
}

fn delivery(endpoint: Endpoint, fields: &Fields<'_>, logprobs: bool) -> Result<Delivery, ApiError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let include_usage = match fields.object("stream_options")? {
        Some(_) if !stream => {
            return Err(ApiError::invalid(
                "stream_options",
                "`stream_options` needs `stream: true` beside it",
            ));
        }
        Some(options) => options.flag("include_usage")?.unwrap_or(false),
        None => false,
    };
    Ok(Delivery {
        stop: stop(fields, "stop")?,
        stream,
        include_usage,
        token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
        logprobs,
        store: match endpoint {
            Endpoint::Chat => storing::metadata(fields)?,
            // OpenAI stores none of these.
            Endpoint::Completion => None,
        },
        answers: answers(fields)?,
        parallel_calls: fields.flag("parallel_tool_calls")?.unwrap_or(true),
    })
}

fn answers(fields: &Fields<'_>) -> Result<usize, ApiError> {
    let answers = fields.whole("n", 1..=MOST_ANSWERS)?.unwrap_or(1);
    Ok(answers as usize)
}

/// Texts that end an answer, in the field `stop` or another one.
pub(super) fn stop(fields: &Fields<'_>, key: &str) -> Result<Vec<String>, ApiError> {
    let texts = match fields.value(key) {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|value| value.as_str().map(ToOwned::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| {
                ApiError::invalid(key, format!("the entries of `{key}` have to be texts"))
            })?,
        Some(other) => {
            return Err(wrong_kind(key.to_owned(), other, "a text or a list of them"));
        }
    };
    let count = texts.len();
    if count > MOST_STOPS {
        let message = format!("`{key}` has {count} entries; {MOST_STOPS} are allowed");
        return Err(ApiError::invalid(key, message));
    }
    if texts.iter().any(|text| !(1..=LONGEST_STOP).contains(&text.len())) {
        let message = format!("the entries of `{key}` have to have 1 to {LONGEST_STOP} bytes");
        return Err(ApiError::invalid(key, message));
    }
    Ok(texts)
}
