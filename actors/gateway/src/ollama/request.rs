//! Chats and prompts as Ollama's clients send them.
//!
//! A field that would change the answer and that this server does not know is refused by name; `keep_alive`,
//! `truncate`, `shift` and what nobody knows are ignored.

use planaria_engine::chat_template::{Chat, ChatMessage, Ending};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::messages;
use super::options::Options;
use crate::error::ApiError;
use crate::request::fields::{Fields, is_empty};
use crate::request::forms::{Form, FormKind, schema_of};
use crate::request::tools::{Effort, ToolChoice, of_chat};
use crate::request::{Asked, ChatAsked, Delivery, Prompt, json_of, model_of};

/// The field that holds a conversation.
pub(super) const MESSAGES: &str = "messages";
/// The field that holds a prompt.
pub(super) const PROMPT: &str = "prompt";

/// The tag of a name that says nothing. No model here has a tag, since no name has a colon.
const LATEST: &str = ":latest";

/// Longest body that may be no more than the wish to have a model ready, in bytes.
const LONGEST_LOAD: usize = 8 << 10;

/// Most log-probabilities at a position that Ollama tells.
const MOST_LOGPROBS: u32 = 20;

/// The name of a model without a tag that says nothing.
pub(super) fn plain_name(name: &str) -> &str {
    name.strip_suffix(LATEST).unwrap_or(name)
}

/// What may be the wish to have a model ready.
#[derive(Deserialize)]
struct Load {
    model: String,
    messages: Option<Vec<IgnoredAny>>,
    prompt: Option<String>,
}

/// The model that a request wants to be ready, and no answer of.
pub(super) fn to_load(body: &[u8]) -> Option<String> {
    if body.len() > LONGEST_LOAD {
        return None;
    }
    // Whatever is wrong with it is told by those who read it as a request.
    let load: Load = serde_json::from_slice(body).ok()?;
    let is_empty = load.messages.is_none_or(|messages| messages.is_empty())
        && load.prompt.is_none_or(|prompt| prompt.is_empty());
    is_empty.then(|| plain_name(&load.model).to_owned())
}

/// Reads the body of a request to `/api/chat`.
pub(super) fn chat(body: &[u8]) -> Result<Asked, ApiError> {
    let body = json_of(body)?;
    let fields = Fields::of(String::new(), &body)?;
    let model = model(&fields)?;
    refuse(&fields, &["system", "raw"])?;
    let messages = messages::messages(&fields)?;
    let asked = ChatAsked {
        chat: Chat {
            ending: ending(&messages),
            messages,
            tools: of_chat(&fields)?,
            ..Chat::default()
        },
        tool_choice: ToolChoice::Auto,
        effort: effort(&fields)?,
        form: form(&fields)?,
    };
    asked_for(model, MESSAGES, Prompt::Chat(Box::new(asked)), &fields)
}

/// Reads the body of a request to `/api/generate`.
pub(super) fn generate(body: &[u8]) -> Result<Asked, ApiError> {
    let body = json_of(body)?;
    let fields = Fields::of(String::new(), &body)?;
    let model = model(&fields)?;
    refuse(&fields, &["tools", MESSAGES])?;
    fields.required(PROMPT)?;
    let text = fields.text(PROMPT)?.unwrap_or_default();
    let system = fields.text("system")?.filter(|system| !system.is_empty());
    let (effort, form) = (effort(&fields)?, form(&fields)?);
    let prompt = if fields.flag("raw")?.unwrap_or(false) {
        let odd = [
            ("system", system.is_some()),
            ("format", form.is_some()),
            ("think", effort.is_some_and(|effort| effort != Effort::None)),
        ];
        if let Some((key, _)) = odd.iter().find(|(_, is_there)| *is_there) {
            let message = format!("`{key}` is for prompts in a template: leave it or `raw` out");
            return Err(ApiError::invalid(*key, message));
        }
        Prompt::Text(text.to_owned())
    } else {
        let system = system.map(|system| ChatMessage::new("system", system));
        let messages = system.into_iter().chain([ChatMessage::new("user", text)]).collect();
        let chat = Chat::of(messages);
        Prompt::Chat(Box::new(ChatAsked { chat, effort, form, ..ChatAsked::default() }))
    };
    asked_for(model, PROMPT, prompt, &fields)
}

fn model(fields: &Fields<'_>) -> Result<String, ApiError> {
    model_of(fields).map(|name| plain_name(&name).to_owned())
}

/// What both kinds of requests have.
fn asked_for(
    model: String,
    prompt_field: &'static str,
    prompt: Prompt,
    fields: &Fields<'_>,
) -> Result<Asked, ApiError> {
    let Options { mut sampling, max_tokens, stop } = Options::of(fields)?;
    let top = fields.whole("top_logprobs", 0..=MOST_LOGPROBS)?.unwrap_or(0);
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    if top > 0 && !logprobs {
        let message = "`top_logprobs` needs `logprobs: true` beside it";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    sampling.top_logprobs = u8::try_from(top).ok().filter(|_| logprobs);
    Ok(Asked {
        model,
        prompt_field,
        prompt,
        sampling,
        max_tokens,
        ignore_eos: false,
        stop_token_ids: Vec::new(),
        delivery: Delivery {
            stop,
            stream: fields.flag("stream")?.unwrap_or(true),
            include_usage: false,
            token_ids: false,
            logprobs,
            store: None,
            answers: 1,
            parallel_calls: true,
        },
    })
}

/// What would change the answer, wherever it is asked for.
const UNSUPPORTED: [&str; 7] =
    ["template", "suffix", "context", "images", "width", "height", "steps"];

/// Options, which some clients put beside the others.
const MISPLACED: [&str; 12] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop",
    "num_predict",
    "max_tokens",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "mirostat",
];

fn refuse(fields: &Fields<'_>, others: &[&str]) -> Result<(), ApiError> {
    let refused = |key: &str, message: String| {
        Err(ApiError::invalid(key, message).coded("unsupported_parameter"))
    };
    let is_there = |key: &&&str| fields.value(key).is_some_and(|value| !is_empty(value));
    if let Some(key) = UNSUPPORTED.iter().chain(others).find(is_there) {
        return refused(key, format!("`{key}` is not supported by this server here: leave it out"));
    }
    if let Some(key) = MISPLACED.iter().find(is_there) {
        return refused(key, format!("`{key}` is one of the `options`: put it in there"));
    }
    match fields.value("tool_choice") {
        None => Ok(()),
        Some(Value::String(word)) if word == "auto" => Ok(()),
        Some(_) => {
            let message = "Ollama's API has no `tool_choice`: leave it out, or ask \
                           /v1/chat/completions";
            refused("tool_choice", message.to_owned())
        }
    }
}

/// A message of the assistant at the end is gone on with.
fn ending(messages: &[ChatMessage]) -> Ending {
    let is_begun = |last: &ChatMessage| {
        last.role == "assistant" && last.tool_calls.is_empty() && !last.content.trim().is_empty()
    };
    if messages.last().is_some_and(is_begun) { Ending::Continue } else { Ending::Answer }
}

/// Reads `think`: whether, or how much.
fn effort(fields: &Fields<'_>) -> Result<Option<Effort>, ApiError> {
    match fields.value("think") {
        Some(Value::Bool(true)) => Ok(Some(Effort::Medium)),
        Some(Value::Bool(false)) => Ok(Some(Effort::None)),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        _ => Effort::of(fields, "think"),
    }
}

/// Reads `format`: `json`, or a schema.
fn form(fields: &Fields<'_>) -> Result<Option<Form>, ApiError> {
    let kind = match fields.value("format") {
        None => return Ok(None),
        Some(Value::String(word)) => match word.as_str() {
            "" => return Ok(None),
            "json" => FormKind::JsonObject,
            _ => {
                let message = "`format` has to be `json` or a JSON schema";
                return Err(ApiError::invalid("format", message));
            }
        },
        Some(schema) => FormKind::JsonSchema(schema_of("format", schema)?),
    };
    Ok(Some(Form { field: "format", kind }))
}
