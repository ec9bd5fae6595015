//! The messages of a chat.

use planaria_engine::chat_template::ChatMessage;
use serde_json::Value;

use super::fields::{Fields, is_empty, wrong_kind};
use crate::error::ApiError;

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
    for key in UNSUPPORTED {
        if fields.value(key).is_some_and(|value| !is_empty(value)) {
            let path = fields.path(key);
            let message = format!("`{path}` is not supported by this server: leave it out");
            return Err(ApiError::invalid(path, message).coded("unsupported_parameter"));
        }
    }
    let content = match fields.value("content") {
        // The answer was a call, or a refusal, or was cut off before its first token.
        None if role == "assistant" => fields.text("refusal")?.unwrap_or_default().to_owned(),
        None => {
            fields.required("content")?;
            String::new()
        }
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .map(|(index, part)| text_part(fields.path(&format!("content[{index}]")), part))
            .collect::<Result<_, _>>()?,
        Some(other) => {
            let path = fields.path("content");
            return Err(wrong_kind(path, other, "a text or a list of parts"));
        }
    };
    Ok(ChatMessage { role: role.to_owned(), content })
}

/// What a message may hold beside its words. It would be a part of the prompt, or change how that ends.
const UNSUPPORTED: [&str; 8] = [
    "tool_calls",
    "function_call",
    "audio",
    "images",
    "reasoning",
    "reasoning_content",
    "thinking",
    "prefix",
];

/// Parts follow each other without anything between them, as in templates that know of parts.
fn text_part(path: String, part: &Value) -> Result<&str, ApiError> {
    let fields = Fields::of(path, part)?;
    let key = match fields.text("type")? {
        Some("text") => "text",
        Some("refusal") => "refusal",
        _ => {
            let path = fields.path("type");
            let message = format!("`{path}` has to be `text`: this server reads nothing else");
            return Err(ApiError::invalid(path, message));
        }
    };
    fields.required(key)?;
    Ok(fields.text(key)?.unwrap_or_default())
}
