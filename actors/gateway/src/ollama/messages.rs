//! The conversation: messages whose calls and results are told apart by names and by their order.

use std::collections::VecDeque;

use planaria_engine::chat_template::{ChatMessage, ToolCall};
use serde_json::{Map, Value};

use super::request::MESSAGES;
use crate::error::ApiError;
use crate::request::fields::{Fields, is_empty, wrong_kind};

/// Reads `messages`, at least one.
pub(super) fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let list = fields.list(MESSAGES)?.unwrap_or_default();
    if list.is_empty() {
        let message = "`messages` is empty; there has to be one at least";
        return Err(ApiError::invalid(MESSAGES, message));
    }
    let mut calls = Calls::default();
    list.iter()
        .enumerate()
        .map(|(index, value)| {
            message(&Fields::of(format!("{MESSAGES}[{index}]"), value)?, &mut calls)
        })
        .collect()
}

fn message(fields: &Fields<'_>, calls: &mut Calls) -> Result<ChatMessage, ApiError> {
    let role = match fields.required_text("role")? {
        role @ ("system" | "user" | "assistant" | "tool") => role,
        _ => {
            let path = fields.path("role");
            let message = format!("`{path}` has to be `system`, `user`, `assistant` or `tool`");
            return Err(ApiError::invalid(path, message));
        }
    };
    if fields.value("images").is_some_and(|images| !is_empty(images)) {
        let path = fields.path("images");
        let message = format!("`{path}` is not supported by this server: leave it out");
        return Err(ApiError::invalid(path, message).coded("unsupported_parameter"));
    }
    let content = fields.text("content")?.unwrap_or_default();
    let mut message = ChatMessage::new(role, content);
    match role {
        "assistant" => {
            message.reasoning = fields.text("thinking")?.unwrap_or_default().to_owned();
            message.tool_calls = calls.read(fields)?;
        }
        "tool" => {
            let name = fields.text("tool_name")?.or(fields.text("name")?);
            let id = fields.text("tool_call_id")?;
            let call = calls.answered(name, id);
            let (known_id, known_name) = call.map(|call| (call.id, call.name)).unzip();
            message.tool_call_id = id.map(str::to_owned).or(known_id);
            message.name = name.map(str::to_owned).or(known_name);
        }
        _ => {}
    }
    Ok(message)
}

/// A call that waits for its result.
struct Open {
    id: String,
    name: String,
}

/// Calls that are looked through for a result; no model makes so many at once.
const MOST_OPEN: usize = 1024;

/// The calls so far. Most of Ollama's clients know no names of calls, and templates do.
#[derive(Default)]
struct Calls {
    made: usize,
    open: VecDeque<Open>,
}

impl Calls {
    fn read(&mut self, fields: &Fields<'_>) -> Result<Vec<ToolCall>, ApiError> {
        let list = fields.list("tool_calls")?.unwrap_or_default();
        let call = |(index, value)| {
            let call = Fields::of(fields.path(&format!("tool_calls[{index}]")), value)?;
            let function = call.required_object("function")?;
            let name = function.required_text("name")?.to_owned();
            let id = match call.text("id")? {
                Some(id) if !id.is_empty() => id.to_owned(),
                // Templates of Mistral want nine letters or digits.
                _ => format!("call{:05}", self.made),
            };
            self.made += 1;
            self.open.push_back(Open { id: id.clone(), name: name.clone() });
            if self.open.len() > MOST_OPEN {
                self.open.pop_front();
            }
            Ok(ToolCall { id, name, arguments: arguments(&function)? })
        };
        list.iter().enumerate().map(call).collect()
    }

    /// The call that a result answers: the one of that id, or else the first of that tool, or the first.
    fn answered(&mut self, name: Option<&str>, id: Option<&str>) -> Option<Open> {
        let is_meant = |call: &Open| match (id, name) {
            (Some(id), _) => call.id == id,
            (None, Some(name)) => call.name == name,
            (None, None) => true,
        };
        let at = self.open.iter().position(is_meant)?;
        self.open.remove(at)
    }
}

fn arguments(function: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    match function.value("arguments") {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(other) => Err(wrong_kind(function.path("arguments"), other, "an object")),
    }
}
