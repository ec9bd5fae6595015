//! What a conversation consists of, in OpenAI's items: messages, thoughts, calls and what they yield.

use std::sync::Arc;

use axum::http::StatusCode;
use planaria_engine::chat_template::ToolCall;
use serde_json::{Value, json};

use super::memory::Known;
use crate::error::ApiError;
use crate::request::chat::arguments;
use crate::request::fields::{Fields, is_empty, wrong_kind};

/// Begins what is given as encrypted. None of it is secret: thoughts are in the content as well, and clients that leave
/// the content out hand them back all the same; a summary is for the model alone.
const CARRIED: &str = "planaria:";

/// An item of a conversation.
#[derive(Debug)]
pub(super) struct Item {
    /// Its name.
    pub(super) id: String,
    /// As clients are shown it.
    pub(super) value: Value,
    /// Of its JSON.
    pub(super) bytes: usize,
    /// What it adds to the conversation.
    pub(super) turn: Turn,
}

/// What an item adds to the conversation.
#[derive(Debug)]
pub(super) enum Turn {
    /// What the system or a developer says.
    System(String),
    /// What a user says.
    User(String),
    /// What a model says.
    Assistant(String),
    /// What it thinks.
    Reasoning(String),
    /// What it wrote in place of turns before.
    Summary(String),
    /// A tool that it calls.
    Call(ToolCall),
    /// What comes of a call.
    Yield {
        /// The call.
        call: String,
        /// What came of it.
        text: String,
    },
}

/// Reads the item at `path`, which may mean one that is `known`.
pub(super) fn read(known: &Known<'_>, path: String, value: &Value) -> Result<Arc<Item>, ApiError> {
    let fields = Fields::of(path, value)?;
    let kind = match fields.text("type")? {
        Some(kind) => kind,
        None if fields.value("role").is_some() => "message",
        None => "item_reference",
    };
    if kind != "item_reference" {
        return item(&fields, kind).map(Arc::new);
    }
    let id = fields.required_text("id")?;
    known.item(id).ok_or_else(|| {
        let (path, id) = (fields.path("id"), shortened(id));
        let message = format!("`{path}`: this node remembers no item `{id}`");
        ApiError::refused(StatusCode::NOT_FOUND, "not_found", message)
    })
}

/// Reads an item as it was shown: one that a response has put out or answers.
pub(super) fn of_shown(value: &Value) -> Result<Item, ApiError> {
    let fields = Fields::of("item".to_owned(), value)?;
    item(&fields, fields.text("type")?.unwrap_or_default())
}

/// A text as the message of a user.
pub(super) fn of_text(text: &str) -> Item {
    let content = json!([{"type": "input_text", "text": text}]);
    let value = json!({"id": drawn_id("msg"), "type": "message", "status": "completed",
                       "role": "user", "content": content});
    Item::of(value, Turn::User(text.to_owned()))
}

/// A text in the form in which clients hand it back without reading it.
pub(super) fn carried(text: &str) -> String {
    format!("{CARRIED}{text}")
}

/// What stands for a conversation that was summed up.
pub(super) fn of_summary(id: &str, summary: &str) -> Value {
    json!({"id": id, "type": "compaction", "encrypted_content": carried(summary)})
}

/// About what a value of JSON takes in memory beside its text.
const VALUE_BYTES: usize = 100;

/// Values within a value, and itself.
fn values(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(values).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(values).sum::<usize>(),
        _ => 1,
    }
}

impl Item {
    fn of(value: Value, turn: Turn) -> Self {
        let id = value.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let bytes = value.to_string().len() + VALUE_BYTES * values(&value);
        Self { id, bytes, value, turn }
    }
}

fn item(fields: &Fields<'_>, kind: &str) -> Result<Item, ApiError> {
    match kind {
        "message" => message(fields),
        "function_call" => call(fields),
        "function_call_output" => yielded(fields),
        "reasoning" => reasoning(fields),
        "compaction" => compaction(fields),
        _ => {
            let (path, kind) = (fields.path("type"), shortened(kind));
            let message = format!(
                "`{path}` is `{kind}`; this server knows `message`, `function_call`, `function_call_output`, \
                 `reasoning`, `compaction` and `item_reference`"
            );
            Err(ApiError::invalid(path, message).coded("unsupported_parameter"))
        }
    }
}

fn message(fields: &Fields<'_>) -> Result<Item, ApiError> {
    let role = fields.required_text("role")?;
    let text = text_of(fields, "content")?;
    let turn: fn(String) -> Turn = match role {
        "user" => Turn::User,
        "system" | "developer" => Turn::System,
        "assistant" => Turn::Assistant,
        _ => {
            let path = fields.path("role");
            let message =
                format!("`{path}` has to be `user`, `system`, `developer` or `assistant`");
            return Err(ApiError::invalid(path, message));
        }
    };
    let content = match fields.value("content") {
        Some(Value::String(text)) if role == "assistant" => {
            json!([{"type": "output_text", "text": text, "annotations": [], "logprobs": []}])
        }
        Some(Value::String(text)) => json!([{"type": "input_text", "text": text}]),
        content => json!(content),
    };
    let mut value = json!({"id": id_of(fields, "msg")?, "type": "message", "status": "completed",
                           "role": role, "content": content});
    if let (Some(phase), Some(value)) = (fields.text("phase")?, value.as_object_mut()) {
        value.insert("phase".to_owned(), json!(phase));
    }
    Ok(Item::of(value, turn(text)))
}

fn call(fields: &Fields<'_>) -> Result<Item, ApiError> {
    refuse_namespace(fields)?;
    let call = fields.required_text("call_id")?;
    let name = fields.required_text("name")?;
    // Only its text is one here.
    let text = fields.required_text("arguments")?;
    let arguments = arguments(fields)?;
    let value = json!({"id": id_of(fields, "fc")?, "type": "function_call", "status": "completed",
                       "call_id": call, "name": name, "arguments": text});
    let call = ToolCall { id: call.to_owned(), name: name.to_owned(), arguments };
    Ok(Item::of(value, Turn::Call(call)))
}

fn yielded(fields: &Fields<'_>) -> Result<Item, ApiError> {
    refuse_namespace(fields)?;
    let call = fields.required_text("call_id")?.to_owned();
    let text = text_of(fields, "output")?;
    let output = fields.required("output")?;
    let value = json!({"id": id_of(fields, "fco")?, "type": "function_call_output",
                       "status": "completed", "call_id": call, "output": output});
    Ok(Item::of(value, Turn::Yield { call, text }))
}

/// Thoughts are read where they are whole, and else in their summary.
fn reasoning(fields: &Fields<'_>) -> Result<Item, ApiError> {
    let content = texts(fields, "content", &["reasoning_text", "text"])?;
    let summary = texts(fields, "summary", &["summary_text", "text"])?;
    let encrypted = fields.text("encrypted_content")?;
    let carried = encrypted.and_then(|text| text.strip_prefix(CARRIED));
    let text = match carried {
        _ if !content.is_empty() => content.concat(),
        Some(carried) => carried.to_owned(),
        None if summary.is_empty() && encrypted.is_some_and(|text| !text.is_empty()) => {
            return Err(foreign(fields));
        }
        None => summary.join("\n\n"),
    };
    let parts = |kind: &str, texts: &[&str]| -> Vec<Value> {
        texts.iter().map(|text| json!({"type": kind, "text": text})).collect()
    };
    let value = json!({
        "id": id_of(fields, "rs")?,
        "type": "reasoning",
        "summary": parts("summary_text", &summary),
        "content": parts("reasoning_text", &content),
        "encrypted_content": encrypted,
        "status": "completed",
    });
    Ok(Item::of(value, Turn::Reasoning(text)))
}

/// A summary that this server gave.
fn compaction(fields: &Fields<'_>) -> Result<Item, ApiError> {
    let encrypted = fields.required_text("encrypted_content")?;
    let Some(summary) = encrypted.strip_prefix(CARRIED) else {
        return Err(foreign(fields));
    };
    let value = of_summary(&id_of(fields, "cmp")?, summary);
    Ok(Item::of(value, Turn::Summary(summary.to_owned())))
}

/// What another server wrote for itself.
fn foreign(fields: &Fields<'_>) -> ApiError {
    let path = fields.path("encrypted_content");
    let message = format!("`{path}` was not written by this server: leave the item out");
    ApiError::invalid(path, message).coded("invalid_encrypted_content")
}

/// A tool within another would have a name of two parts.
fn refuse_namespace(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.value("namespace") {
        Some(value) if !is_empty(value) => {
            let path = fields.path("namespace");
            let message = format!("`{path}` is not supported by this server: leave it out");
            Err(ApiError::invalid(path, message).coded("unsupported_parameter"))
        }
        _ => Ok(()),
    }
}

/// A text, or the texts of a list of parts without anything between them.
fn text_of(fields: &Fields<'_>, key: &str) -> Result<String, ApiError> {
    match fields.required(key)? {
        Value::String(text) => Ok(text.clone()),
        Value::Array(_) => {
            Ok(texts(fields, key, &["input_text", "output_text", "refusal"])?.concat())
        }
        other => Err(wrong_kind(fields.path(key), other, "a text or a list of parts")),
    }
}

/// The texts of a list of parts of these kinds.
fn texts<'a>(fields: &Fields<'a>, key: &str, kinds: &[&str]) -> Result<Vec<&'a str>, ApiError> {
    let list = fields.list(key)?.unwrap_or_default();
    let text = |(index, part)| {
        let part = Fields::of(fields.path(&format!("{key}[{index}]")), part)?;
        let kind = part.required_text("type")?;
        if !kinds.contains(&kind) {
            let (path, kind) = (part.path("type"), shortened(kind));
            let message = format!("`{path}` is `{kind}`; it has to be `{}`", kinds.join("` or `"));
            return Err(ApiError::invalid(path, message).coded("unsupported_parameter"));
        }
        let key = if kind == "refusal" { "refusal" } else { "text" };
        part.required(key)?;
        Ok(part.text(key)?.unwrap_or_default())
    };
    list.iter().enumerate().map(text).collect()
}

/// Its own name, or a new one.
fn id_of(fields: &Fields<'_>, prefix: &str) -> Result<String, ApiError> {
    let own = fields.text("id")?.filter(|id| !id.is_empty());
    Ok(own.map_or_else(|| drawn_id(prefix), str::to_owned))
}

/// A name that nothing else has.
pub(super) fn drawn_id(prefix: &str) -> String {
    format!("{prefix}_{:032x}", rand::random::<u128>())
}

/// As much as fits into a message.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}
