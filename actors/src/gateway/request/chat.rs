//! The messages of a chat.

use planaria_engine::chat_template::ChatMessage;
use serde_json::Value;

use super::fields::{Fields, wrong_kind};
use crate::gateway::error::ApiError;

/// Reads `messages`, at least one.
pub(super) fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    fields.required("messages")?;
    let list = fields.list("messages")?.unwrap_or_default();
    if list.is_empty() {
        let message = "`messages` is empty; there has to be one at least";
        return Err(ApiError::invalid("messages", message));
    }
    list.iter()
        .enumerate()
        .map(|(index, value)| message(&Fields::of(format!("messages[{index}]"), value)?))
        .collect()
}

fn message(fields: &Fields<'_>) -> Result<ChatMessage, ApiError> {
    fields.required("role")?;
    let role = match fields.text("role")?.unwrap_or_default() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        _ => {
            let path = fields.path("role");
            let message = format!(
                "`{path}` has to be `system`, `developer`, `user` or `assistant`; tools are not \
                 supported by this server"
            );
            return Err(ApiError::invalid(path, message));
        }
    };
    for calls in ["tool_calls", "function_call", "audio"] {
        if fields.value(calls).is_some_and(|value| *value != Value::Array(Vec::new())) {
            let path = fields.path(calls);
            let message = format!("`{path}` is not supported by this server: leave it out");
            return Err(ApiError::invalid(path, message).coded("unsupported_parameter"));
        }
    }
    let content = match fields.required("content")? {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .enumerate()
            .map(|(index, part)| text_part(fields.path(&format!("content[{index}]")), part))
            .collect::<Result<_, _>>()?,
        other => {
            let path = fields.path("content");
            return Err(wrong_kind(path, other, "a text or a list of parts"));
        }
    };
    Ok(ChatMessage { role: role.to_owned(), content })
}

/// Parts follow each other without anything between them, as in templates that know of parts.
fn text_part(path: String, part: &Value) -> Result<&str, ApiError> {
    let fields = Fields::of(path, part)?;
    if fields.text("type")? != Some("text") {
        let path = fields.path("type");
        let message = format!("`{path}` has to be `text`: this server reads nothing else");
        return Err(ApiError::invalid(path, message));
    }
    fields.required("text")?;
    Ok(fields.text("text")?.unwrap_or_default())
}
