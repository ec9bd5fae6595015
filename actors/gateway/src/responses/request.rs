//! A request for a response, as a type.

use std::num::NonZeroU32;
use std::sync::Arc;

use planaria_engine::chat_template::Chat;
use serde_json::{Value, json};

use super::conversation::messages;
use super::items::{self, Item};
use super::memory::Known;
use super::reply;
use super::tools::{shown_choice, tool_choice, tools_of};
use crate::error::ApiError;
use crate::request::fields::{Fields, wrong_kind};
use crate::request::forms::{Form, FormKind, text_format};
use crate::request::sampling::{SamplingAsked, count};
use crate::request::storing;
use crate::request::tools::{self, Effort};
use crate::request::unsupported::{Rule, Usual, message, refuse_by};
use crate::request::{Asked, ChatAsked, Delivery, Prompt, json_of, model_of, stop, whole_number};

/// The field that holds the prompt.
pub(super) const PROMPT: &str = "input";

/// The field with the name of the response that is gone on with.
const PREVIOUS: &str = "previous_response_id";

/// The sampler's limit, and OpenAI's.
const MOST_LOGPROBS: u8 = 20;

/// The way that a request comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// As the body of a request of HTTP.
    Http,
    /// As a message of a WebSocket, whose response comes as events.
    WebSocket,
}

/// The `type` of a message that is a request.
const CREATE: &str = "response.create";

/// What a request says beside what is to be computed.
#[derive(Debug)]
pub(super) struct Told {
    /// What its response shows of it.
    pub(super) asked: reply::Asked,
    /// The conversation, as items.
    pub(super) input: Vec<Arc<Item>>,
    /// Whether it is to be remembered.
    pub(super) is_stored: bool,
    /// Whether it is to be on disk too.
    pub(super) is_kept: bool,
    /// Whether it is to be computed without its client.
    pub(super) is_background: bool,
    /// Whether there is to be an answer. Without, its response holds the conversation for later ones.
    pub(super) generates: bool,
}

/// Fields that this dialect has under another name, or that would change an answer and are not known to it.
const UNSUPPORTED: &[Rule] = &[
    ("messages", Usual::Never),
    ("max_tokens", Usual::Never),
    ("max_completion_tokens", Usual::Never),
    ("reasoning_effort", Usual::Never),
    ("response_format", Usual::Empty),
    ("logprobs", Usual::Empty),
    ("verbosity", Usual::Word("medium")),
    // What OpenAI keeps for its clients, and does with it.
    ("prompt", Usual::Empty),
    ("conversation", Usual::Empty),
    ("context_management", Usual::Empty),
    ("moderation", Usual::Empty),
    ("image", Usual::Empty),
    ("background_options", Usual::Empty),
    ("stream_id", Usual::Empty),
    // Of chat completions, there and elsewhere.
    ("n", Usual::Number(1.0)),
    ("functions", Usual::Empty),
    ("function_call", Usual::Word("none")),
    ("modalities", Usual::Only("text")),
    ("audio", Usual::Never),
    ("web_search_options", Usual::Never),
    ("guided_json", Usual::Empty),
    ("guided_regex", Usual::Empty),
    ("guided_choice", Usual::Empty),
    ("structured_outputs", Usual::Empty),
    ("chat_template_kwargs", Usual::Empty),
    ("add_generation_prompt", Usual::Flag(true)),
    ("continue_final_message", Usual::Empty),
    ("add_special_tokens", Usual::Empty),
    ("stop_token_ids", Usual::Empty),
    ("return_token_ids", Usual::Empty),
];

/// Of other dialects' fields, those that this one has.
const KNOWN: [&str; 2] = ["reasoning", "max_output_tokens"];

/// Why `key` is refused, and what to write instead.
fn refusal(key: &str) -> String {
    let instead = match key {
        "messages" => "input",
        "max_tokens"
        | "max_completion_tokens"
        | "max_new_tokens"
        | "max_length"
        | "n_predict"
        | "num_predict" => "max_output_tokens",
        "reasoning_effort" => "reasoning.effort",
        "response_format" | "format" | "json_schema" => "text.format",
        "logprobs" => "top_logprobs",
        "system" => "instructions",
        "n" => return "`n` has to be 1: a request has one response".to_owned(),
        _ => return message(key),
    };
    format!("`{key}` is not supported by this server: its name here is `{instead}`")
}

/// Reads a request. What it goes on with is `known`.
pub(super) fn read(
    body: &[u8],
    known: &Known<'_>,
    transport: Transport,
) -> Result<(Asked, Told), ApiError> {
    let body = json_of(body)?;
    let fields = Fields::of(String::new(), &body)?;
    if let Some(id) = fields.text(PREVIOUS)? {
        known.goes_on_with(id);
    }
    let generates = generates(&fields, transport)?;
    let model = model_of(&fields)?;
    refuse_by(UNSUPPORTED, &KNOWN, &fields, refusal)?;
    let store = fields.flag("store")?;
    let (is_stored, is_kept) = (store.unwrap_or(true), store == Some(true) && generates);
    let is_background = fields.flag("background")?.unwrap_or(false);
    if is_background && !is_stored {
        let message = "`background` needs a response that is stored: leave `store` out";
        return Err(ApiError::invalid("background", message));
    }
    if is_background && transport == Transport::WebSocket {
        let message = "`background` is for requests of HTTP: leave it out";
        return Err(ApiError::invalid("background", message).coded("unsupported_parameter"));
    }
    let input = input(&fields, known)?;
    let instructions = fields.text("instructions")?;
    let messages = messages(instructions, &input)?;
    if messages.is_empty() {
        return Err(ApiError::invalid(PROMPT, "`input` is empty: there is nothing to answer"));
    }
    let (tools, shown_tools) = tools_of(&fields)?;
    let tool_choice = tool_choice(&fields)?;
    tools::check_choice(&tool_choice, &tools)?;
    let (form, text) = text(&fields)?;
    let (effort, reasoning) = reasoning(&fields)?;
    let include = include(&fields)?;
    let top_logprobs = top_logprobs(&fields)?;
    let scores = include.logprobs || top_logprobs.is_some_and(|count| count > 0);
    let most = whole_number(&fields, "max_output_tokens")?;
    // The prompt is computed for it, and it is not shown.
    let max_tokens = if generates { most } else { Some(NonZeroU32::MIN) };
    let parallel_calls = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    check_words(&fields)?;
    let shown = json!({
        "background": is_background,
        "frequency_penalty": fields.number("frequency_penalty")?.unwrap_or(0.0),
        "instructions": instructions,
        "max_output_tokens": most,
        "max_tool_calls": fields.whole("max_tool_calls", 1..=u32::MAX)?,
        "metadata": storing::pairs(&fields)?,
        "model": model,
        "parallel_tool_calls": parallel_calls,
        "presence_penalty": fields.number("presence_penalty")?.unwrap_or(0.0),
        "previous_response_id": fields.text(PREVIOUS)?,
        "prompt_cache_key": fields.text("prompt_cache_key")?,
        "reasoning": reasoning,
        "safety_identifier": fields.text("safety_identifier")?,
        "service_tier": "default",
        "store": is_stored,
        "temperature": fields.value("temperature"),
        "text": text,
        "tool_choice": shown_choice(&tool_choice),
        "tools": shown_tools,
        "top_logprobs": top_logprobs.unwrap_or(0),
        "top_p": fields.value("top_p"),
        // Nothing is ever left out of a conversation: what is too long is refused.
        "truncation": "disabled",
        "user": fields.text("user")?,
    });
    let shown = shown.as_object().cloned().unwrap_or_default();
    let chat = Chat { messages, tools, ..Chat::default() };
    let asked = Asked {
        model,
        prompt_field: PROMPT,
        prompt: Prompt::Chat(Box::new(ChatAsked { chat, tool_choice, effort, form })),
        sampling: SamplingAsked::with(
            &fields,
            "top_logprobs",
            scores.then(|| top_logprobs.unwrap_or(0)),
        )?,
        max_tokens,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        stop_token_ids: Vec::new(),
        delivery: Delivery {
            stop: stop(&fields, "stop")?,
            stream: fields.flag("stream")?.unwrap_or(false) || transport == Transport::WebSocket,
            include_usage: true,
            token_ids: false,
            logprobs: scores,
            // That is for chats: these are kept as far as that is possible.
            store: None,
            answers: 1,
            parallel_calls,
        },
    };
    let carries_reasoning = include.reasoning;
    let mut asked_of_reply = reply::Asked { fields: shown, carries_reasoning };
    if store == Some(true) && !generates {
        asked_of_reply.warn("without an answer there is nothing to write to the disk");
    }
    let told = Told { asked: asked_of_reply, input, is_stored, is_kept, is_background, generates };
    Ok((asked, told))
}

/// Checks that a message is a request; gives whether there is to be an answer.
fn generates(fields: &Fields<'_>, transport: Transport) -> Result<bool, ApiError> {
    let generates = fields.flag("generate")?.unwrap_or(true);
    match transport {
        Transport::WebSocket if fields.text("type")? != Some(CREATE) => {
            let message =
                format!("`type` has to be `{CREATE}`: this server knows no other message");
            Err(ApiError::invalid("type", message).coded("unsupported_event"))
        }
        Transport::Http if !generates => {
            let message = "`generate` is for requests on a WebSocket: leave it out";
            Err(ApiError::invalid("generate", message).coded("unsupported_parameter"))
        }
        _ => Ok(generates),
    }
}

/// The conversation: what a former response answered and put out, and what is new.
fn input(fields: &Fields<'_>, known: &Known<'_>) -> Result<Vec<Arc<Item>>, ApiError> {
    let mut all = match fields.text(PREVIOUS)? {
        Some(id) => previous(id, known)?,
        None => Vec::new(),
    };
    match fields.value(PROMPT) {
        None => {}
        Some(Value::String(text)) => all.push(Arc::new(items::of_text(text))),
        Some(Value::Array(list)) => {
            for (index, item) in list.iter().enumerate() {
                all.push(items::read(known, format!("{PROMPT}[{index}]"), item)?);
            }
        }
        Some(other) => {
            return Err(wrong_kind(PROMPT.to_owned(), other, "a text or a list of items"));
        }
    }
    Ok(all)
}

fn previous(id: &str, known: &Known<'_>) -> Result<Vec<Arc<Item>>, ApiError> {
    let Some(entry) = known.get(id) else {
        let short = items::shortened(id);
        let message = format!(
            "this node remembers no response `{short}`: it is another node's, or was not to be stored, or \
             newer ones needed the room, or the node was started again and its request did not say \
             `store: true`"
        );
        return Err(ApiError::invalid(PREVIOUS, message).coded("previous_response_not_found"));
    };
    entry.conversation().ok_or_else(|| has_not_ended(id))
}

/// A response that grows cannot be gone on with.
pub(super) fn has_not_ended(id: &str) -> ApiError {
    let message = format!("the response `{}` has not ended: wait for it", items::shortened(id));
    ApiError::invalid(PREVIOUS, message).coded("previous_response_in_progress")
}

/// What the answer has to be, and how that is shown.
fn text(fields: &Fields<'_>) -> Result<(Option<Form>, Value), ApiError> {
    let plain = |kind: &str| json!({"type": kind});
    let shown = |format: Value| json!({"format": format, "verbosity": "medium"});
    let Some(text) = fields.object("text")? else {
        return Ok((None, shown(plain("text"))));
    };
    if text.text("verbosity")?.is_some_and(|word| word != "medium") {
        let path = text.path("verbosity");
        let message = format!("`{path}` has to be `medium`: models here know no other");
        return Err(ApiError::invalid(path, message).coded("unsupported_parameter"));
    }
    let Some(format) = text.object("format")? else {
        return Ok((None, shown(plain("text"))));
    };
    if format.text("type")? == Some("json_schema") {
        format.required("name")?;
    }
    let kind = text_format(&format)?;
    let shown_format = match &kind {
        None => plain("text"),
        Some(FormKind::JsonSchema(schema)) => json!({
            "type": "json_schema",
            "name": format.text("name")?,
            "description": format.text("description")?,
            "schema": schema,
            "strict": format.flag("strict")?.unwrap_or(false),
        }),
        Some(_) => plain("json_object"),
    };
    Ok((kind.map(|kind| Form { field: "text.format", kind }), shown(shown_format)))
}

/// How much the model is to think, and how that is shown. Thoughts are shown as they are, so nothing comes of a
/// summary that is asked for.
fn reasoning(fields: &Fields<'_>) -> Result<(Option<Effort>, Value), ApiError> {
    let Some(reasoning) = fields.object("reasoning")? else {
        return Ok((None, json!({"effort": null, "summary": null})));
    };
    for (key, usual) in [("mode", "standard"), ("context", "auto")] {
        if reasoning.text(key)?.is_some_and(|word| word != usual) {
            let path = reasoning.path(key);
            let message = format!("`{path}` has to be `{usual}`: leave it out");
            return Err(ApiError::invalid(path, message).coded("unsupported_parameter"));
        }
    }
    for key in ["summary", "generate_summary"] {
        if !matches!(reasoning.text(key)?, None | Some("auto" | "concise" | "detailed" | "none")) {
            let path = reasoning.path(key);
            let message = format!("`{path}` has to be `auto`, `concise` or `detailed`");
            return Err(ApiError::invalid(path, message));
        }
    }
    let shown = json!({"effort": reasoning.text("effort")?, "summary": null});
    Ok((Effort::of(&reasoning, "effort")?, shown))
}

/// What is to be shown beside the rest.
#[derive(Default)]
struct Include {
    logprobs: bool,
    reasoning: bool,
}

/// What OpenAI has too, of tools that are not here.
const OF_OTHER_TOOLS: [&str; 6] = [
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];

fn include(fields: &Fields<'_>) -> Result<Include, ApiError> {
    let mut include = Include::default();
    for (index, value) in fields.list("include")?.unwrap_or_default().iter().enumerate() {
        match value.as_str() {
            Some("message.output_text.logprobs") => include.logprobs = true,
            Some("reasoning.encrypted_content") => include.reasoning = true,
            Some(word) if OF_OTHER_TOOLS.contains(&word) => {}
            _ => {
                let path = format!("include[{index}]");
                let message = format!(
                    "`{path}` has to be `message.output_text.logprobs` or `reasoning.encrypted_content`"
                );
                return Err(ApiError::invalid(path, message));
            }
        }
    }
    Ok(include)
}

fn top_logprobs(fields: &Fields<'_>) -> Result<Option<u8>, ApiError> {
    let top = count(fields, "top_logprobs")?;
    if top.is_some_and(|top| top > MOST_LOGPROBS) {
        let message = format!("`top_logprobs` has to be from 0 to {MOST_LOGPROBS}");
        return Err(ApiError::invalid("top_logprobs", message));
    }
    Ok(top)
}

/// What changes nothing here has to make sense nevertheless.
fn check_words(fields: &Fields<'_>) -> Result<(), ApiError> {
    fields.object("stream_options")?;
    match fields.text("truncation")? {
        None | Some("auto" | "disabled") => Ok(()),
        Some(_) => {
            let message = "`truncation` has to be `auto` or `disabled`";
            Err(ApiError::invalid("truncation", message))
        }
    }
}
