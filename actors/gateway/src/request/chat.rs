//! A conversation as chat completions have it: messages, tools, and what the template is told.

use planaria_engine::chat_template::{Chat, ChatMessage, Ending, ToolCall};
use serde_json::{Map, Value};

use super::ChatAsked;
use super::fields::{Fields, is_empty, wrong_kind};
use super::forms::Form;
use super::tools::{self, Effort};
use crate::error::ApiError;

/// Inputs of templates that are not a client's to say.
const RESERVED: [&str; 7] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
];

/// Reads all that makes the prompt.
pub(super) fn asked(fields: &Fields<'_>, form: Option<Form>) -> Result<ChatAsked, ApiError> {
    let messages = messages(fields)?;
    let tools = tools::of_chat(fields)?;
    let tool_choice = tools::choice_of_chat(fields)?;
    tools::check_choice(&tool_choice, &tools)?;
    let ending = ending(fields, &messages)?;
    let variables = variables(fields)?;
    let chat = Chat { messages, tools, variables, ending };
    Ok(ChatAsked { chat, tool_choice, effort: Effort::of(fields, "reasoning_effort")?, form })
}

fn variables(fields: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let Some(variables) = fields.object("chat_template_kwargs")? else {
        return Ok(Map::new());
    };
    if let Some(key) = variables.keys().find(|key| RESERVED.contains(&key.as_str())) {
        let path = variables.path(key);
        let message = format!("`{path}` is not a request's to say: leave it out");
        return Err(ApiError::invalid(path, message));
    }
    let pairs = variables
        .keys()
        .map(|key| (key.clone(), variables.value(key).cloned().unwrap_or_default()));
    Ok(pairs.collect())
}

/// As vLLM has it.
fn ending(fields: &Fields<'_>, messages: &[ChatMessage]) -> Result<Ending, ApiError> {
    let continues = fields.flag("continue_final_message")?.unwrap_or(false);
    let begins = fields.flag("add_generation_prompt")?;
    let wrong = |message: &str| Err(ApiError::invalid("continue_final_message", message));
    match (continues, begins) {
        (true, Some(true)) => wrong(
            "`continue_final_message` and `add_generation_prompt` exclude each other: leave one out",
        ),
        (true, _) if messages.last().is_some_and(|last| last.role != "assistant") => wrong(
            "`continue_final_message` goes on with a message of the assistant, and the last one is none",
        ),
        (true, _) if messages.last().is_none_or(|last| last.content.trim().is_empty()) => wrong(
            "`continue_final_message` goes on with a message of the assistant that has no text",
        ),
        (true, _) => Ok(Ending::Continue),
        (false, Some(false)) => Ok(Ending::Message),
        (false, _) => Ok(Ending::Answer),
    }
}

/// Reads `messages`, at least one.
fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
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
    let role = match fields.required_text("role")? {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" => "tool",
        _ => {
            let path = fields.path("role");
            let message =
                format!("`{path}` has to be `system`, `developer`, `user`, `assistant` or `tool`");
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
    let is_assistant = role == "assistant";
    let tool_calls = if is_assistant { calls(fields)? } else { Vec::new() };
    if role == "tool" {
        fields.required("tool_call_id")?;
    }
    Ok(ChatMessage {
        role: role.to_owned(),
        content: content(fields, is_assistant)?,
        reasoning: if is_assistant { reasoning(fields)? } else { String::new() },
        tool_calls,
        tool_call_id: fields.text("tool_call_id")?.map(str::to_owned),
        name: fields.text("name")?.map(str::to_owned),
    })
}

fn content(fields: &Fields<'_>, is_assistant: bool) -> Result<String, ApiError> {
    match fields.value("content") {
        // The answer was a call, or a refusal, or was cut off before its first token.
        None if is_assistant => Ok(fields.text("refusal")?.unwrap_or_default().to_owned()),
        None => fields.required("content").map(|_| String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .map(|(index, part)| text_part(fields.path(&format!("content[{index}]")), part))
            .collect(),
        Some(other) => Err(wrong_kind(fields.path("content"), other, "a text or a list of parts")),
    }
}

/// Under whichever of its names a client kept it; the first that is there.
fn reasoning(fields: &Fields<'_>) -> Result<String, ApiError> {
    for key in ["reasoning_content", "reasoning"] {
        if let Some(text) = fields.text(key)? {
            return Ok(text.to_owned());
        }
    }
    Ok(String::new())
}

fn calls(fields: &Fields<'_>) -> Result<Vec<ToolCall>, ApiError> {
    let list = fields.list("tool_calls")?.unwrap_or_default();
    let call = |(index, value)| {
        let call = Fields::of(fields.path(&format!("tool_calls[{index}]")), value)?;
        let function = call.required_object("function")?;
        let name = function.required_text("name")?.to_owned();
        let id = call.text("id")?.unwrap_or_default().to_owned();
        Ok(ToolCall { id, name, arguments: arguments(&function)? })
    };
    list.iter().enumerate().map(call).collect()
}

/// The text of an object, or the object itself; nothing at all is an empty one.
pub(crate) fn arguments(function: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let parsed = match function.value("arguments") {
        None => return Ok(Map::new()),
        Some(Value::Object(map)) => return Ok(map.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        Some(_) => None,
    };
    parsed.ok_or_else(|| {
        let path = function.path("arguments");
        let message = format!("`{path}` has to be the JSON text of an object");
        ApiError::invalid(path, message)
    })
}

/// What a message may hold beside its words that nobody here understands.
const UNSUPPORTED: [&str; 5] = ["function_call", "audio", "images", "thinking", "prefix"];

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
