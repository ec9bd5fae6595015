//! A request's body as a type whose bad states cannot be written, and from there to tokens.
//!
//! Nothing here waits or does I/O; rendering and tokenizing a long prompt takes long enough to
//! belong on a blocking thread.

mod chat;
mod completion;
mod fields;
mod sampling;
mod storing;
mod unsupported;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use planaria_config::SequenceId;
use planaria_engine::chat_template::{ChatError, ChatMessage};
use planaria_engine::sampler::SamplingParams;
use planaria_protocol::generation::{Request, Until};
use serde_json::Value;

use self::fields::{Fields, wrong_kind};
use self::sampling::SamplingAsked;
use super::error::ApiError;
use crate::served::ServedModel;

/// Which of OpenAI's two ways to ask for text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    /// The model's name as it was written, perhaps of no model at all.
    pub(super) model: String,
    endpoint: Endpoint,
    prompt: Prompt,
    sampling: SamplingAsked,
    max_tokens: Option<NonZeroU32>,
    ignore_eos: bool,
    stop_token_ids: Vec<u32>,
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
}

#[derive(Debug, Clone, PartialEq)]
enum Prompt {
    Chat(Vec<ChatMessage>),
    Text(String),
    Tokens(Vec<u32>),
}

/// Of stop texts, and of stop tokens: many times what clients send, and still compared within microseconds
/// at each token. OpenAI takes 4.
const MOST_STOPS: usize = 64;
/// A stop text is compared at every token, and as much text is held back.
const LONGEST_STOP: usize = 1024;
/// OpenAI's default for plain completions, which have no natural end.
const COMPLETION_TOKENS: u32 = 16;

impl Endpoint {
    /// The name of an answer.
    pub(super) fn answer_id(self, sequence: SequenceId) -> String {
        format!("{}{sequence}", self.answer_prefix())
    }

    /// How names of answers begin.
    pub(super) const fn answer_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completion => "cmpl-",
        }
    }

    /// The field that holds the prompt.
    pub(super) const fn prompt_field(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completion => "prompt",
        }
    }
}

impl Asked {
    /// Reads a request's body.
    pub(super) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, ApiError> {
        let body: Value = serde_json::from_slice(body).map_err(|error| {
            ApiError::malformed(format!("the request's body is not JSON: {error}"))
        })?;
        let fields = Fields::of(String::new(), &body)?;
        let model = match fields.required("model")? {
            Value::String(model) => model.clone(),
            other => return Err(wrong_kind("model".to_owned(), other, "a text")),
        };
        unsupported::refuse(endpoint, &fields)?;
        let prompt = match endpoint {
            Endpoint::Chat => Prompt::Chat(chat::messages(&fields)?),
            Endpoint::Completion => completion::prompt(&fields)?,
        };
        let sampling = SamplingAsked::parse(endpoint, &fields)?;
        Ok(Self {
            model,
            endpoint,
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
    pub(super) fn resolve(
        self,
        model: &ServedModel,
        given: Given,
    ) -> Result<(Request, Delivery), ApiError> {
        let field = self.endpoint.prompt_field();
        let context = given.context.min(model.max_context);
        let most_tokens = self.most_tokens();
        let ends = self.ends(model)?;
        let sampling = self.sampling.resolve(model, given.draw)?;
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
        let request = Request {
            model: model.name.clone(),
            sampling: SamplingParams { prompt_tokens: context - room.get(), ..sampling },
            prompt,
            begun: Vec::new(),
            until: Until { eos: ends, max_tokens: most_tokens.min(room.get()) },
            trace: None,
        };
        Ok((request, self.delivery))
    }

    /// Tokens that the answer may have, had it all the room it wants. Clients ask for more than a model's
    /// context holds: they do not know it, and have one number for all models.
    fn most_tokens(&self) -> u32 {
        match (self.max_tokens, self.endpoint) {
            (Some(tokens), _) => tokens.get(),
            (None, Endpoint::Chat) => u32::MAX,
            (None, Endpoint::Completion) => COMPLETION_TOKENS,
        }
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
    fn bytes(&self) -> usize {
        match self {
            Self::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
            Self::Text(text) => text.len(),
            // They are tokens already.
            Self::Tokens(_) => 0,
        }
    }

    fn tokens(
        self,
        field: &'static str,
        model: &ServedModel,
        now: i64,
        context: u32,
    ) -> Result<Vec<u32>, ApiError> {
        let tokenizer = &model.tokenizer;
        let encoded = match self {
            Self::Chat(messages) => {
                let text = model
                    .template
                    .render(&messages, true, now)
                    .map_err(|error| refused_by_template(&error))?;
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

fn refused_by_template(error: &ChatError) -> ApiError {
    let message = error.to_string();
    match error {
        ChatError::NoTemplate => ApiError::invalid("model", message).coded("no_chat_template"),
        ChatError::Refused(_) | ChatError::Runaway(_) => ApiError::invalid("messages", message),
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
        // Past all contexts it makes no difference how far.
        let parse = |value: &Value| {
            value.as_u64().and_then(|n| NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX)))
        };
        let tokens = fields.parsed(name, "a whole number of at least 1", parse)?;
        asked = asked.or(tokens);
    }
    Ok(asked)
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
        stop: stop(fields)?,
        stream,
        include_usage,
        token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
        logprobs,
        store: match endpoint {
            Endpoint::Chat => storing::metadata(fields)?,
            // OpenAI stores none of these.
            Endpoint::Completion => None,
        },
    })
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let texts = match fields.value("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|value| value.as_str().map(ToOwned::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| ApiError::invalid("stop", "the entries of `stop` have to be texts"))?,
        Some(other) => {
            return Err(wrong_kind("stop".to_owned(), other, "a text or a list of them"));
        }
    };
    let count = texts.len();
    if count > MOST_STOPS {
        let message = format!("`stop` has {count} entries; {MOST_STOPS} are allowed");
        return Err(ApiError::invalid("stop", message));
    }
    if texts.iter().any(|text| !(1..=LONGEST_STOP).contains(&text.len())) {
        let message = format!("the entries of `stop` have to have 1 to {LONGEST_STOP} bytes");
        return Err(ApiError::invalid("stop", message));
    }
    Ok(texts)
}
