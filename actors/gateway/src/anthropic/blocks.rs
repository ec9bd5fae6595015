//! The conversation: messages of blocks, which become messages of the core.
//!
//! Anthropic's users bring the results of tools and speak in one message; templates know a role of its own for
//! results. Neighbours of one role are one message, as Anthropic has it, and as many templates demand.

use std::collections::HashMap;

use planaria_engine::chat_template::{ChatMessage, ToolCall};
use serde_json::Value;

use super::MESSAGES;
use crate::error::ApiError;
use crate::request::fields::{Fields, wrong_kind};

/// Between texts that are blocks of their own. None between those of an assistant: they are parts of what it
/// said in one go.
const BETWEEN: &str = "\n";

/// How Claude Code's note to its own service begins. It is no part of what the system says, and differs in each
/// request, so that no two prompts would begin alike.
const BILLING: &str = "x-anthropic-billing-header:";

/// Before a result that is an error: templates have no place to say so.
const ERROR: &str = "Error: ";

/// Reads `system` and `messages`, which has one at least.
pub(super) fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    fields.required(MESSAGES)?;
    let list = fields.list(MESSAGES)?.unwrap_or_default();
    if list.is_empty() {
        let message = "`messages` is empty; there has to be one at least";
        return Err(ApiError::invalid(MESSAGES, message));
    }
    let mut conversation = Conversation::default();
    if fields.value("system").is_some() {
        conversation.push(ChatMessage::new("system", system(fields, "system")?));
    }
    for (index, value) in list.iter().enumerate() {
        conversation.read(&Fields::of(format!("{MESSAGES}[{index}]"), value)?)?;
    }
    conversation.check_end(list.len() - 1)?;
    Ok(conversation.messages)
}

#[derive(Default)]
struct Conversation {
    messages: Vec<ChatMessage>,
    /// The tools of the calls so far, by the names of these.
    called: HashMap<String, String>,
}

impl Conversation {
    fn read(&mut self, message: &Fields<'_>) -> Result<(), ApiError> {
        message.required("role")?;
        message.required("content")?;
        match message.text("role")? {
            Some("user") => self.user(message),
            Some("assistant") => {
                self.push(assistant(message)?);
                Ok(())
            }
            // In the middle, where models are told what changed.
            Some("system") => {
                self.push(ChatMessage::new("system", system(message, "content")?));
                Ok(())
            }
            _ => {
                let path = message.path("role");
                let message = format!("`{path}` has to be `user` or `assistant`");
                Err(ApiError::invalid(path, message))
            }
        }
    }

    /// The results first: they answer the calls right before.
    fn user(&mut self, message: &Fields<'_>) -> Result<(), ApiError> {
        let mut texts = Vec::new();
        let mut has_results = false;
        for block in blocks(message, "content")? {
            match block {
                Block::Text(text) => texts.push(text),
                Block::Of("tool_result", block) => {
                    has_results = true;
                    let result = self.result(&block)?;
                    self.messages.push(result);
                }
                Block::Of(_, block) => return Err(refused(&block, "`text` or `tool_result`")),
            }
        }
        if !has_results || !texts.is_empty() {
            self.push(ChatMessage::new("user", texts.join(BETWEEN)));
        }
        Ok(())
    }

    fn result(&self, block: &Fields<'_>) -> Result<ChatMessage, ApiError> {
        let id = block.required_text("tool_use_id")?;
        let mut content = texts(block, "content")?.join(BETWEEN);
        let says_so = content.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("error"));
        if block.flag("is_error")?.unwrap_or(false) && !says_so {
            content.insert_str(0, ERROR);
        }
        let name = self.called.get(id).cloned();
        let tool_call_id = Some(id.to_owned());
        Ok(ChatMessage { tool_call_id, name, ..ChatMessage::new("tool", content) })
    }

    /// Adds a message, or what it says to the last one if that is of the same role.
    fn push(&mut self, message: ChatMessage) {
        let calls = message.tool_calls.iter();
        self.called.extend(calls.map(|call| (call.id.clone(), call.name.clone())));
        match self.messages.last_mut() {
            Some(last) if last.role == message.role => {
                join(&mut last.content, &message.content);
                join(&mut last.reasoning, &message.reasoning);
                last.tool_calls.extend(message.tool_calls);
            }
            _ => self.messages.push(message),
        }
    }

    /// A message of the assistant at the end is gone on with, so there has to be something of it.
    fn check_end(&self, index: usize) -> Result<(), ApiError> {
        let problem = match self.messages.last() {
            Some(last) if last.role != "assistant" => return Ok(()),
            Some(last) if !last.tool_calls.is_empty() => {
                "calls tools: a message with a `tool_result` for each has to follow"
            }
            Some(last) if last.content.trim().is_empty() => {
                "is the assistant's and has no text to go on with: leave it out"
            }
            _ => return Ok(()),
        };
        let path = format!("{MESSAGES}[{index}]");
        let message = format!("`{path}` {problem}");
        Err(ApiError::invalid(path, message))
    }
}

fn join(before: &mut String, more: &str) {
    if !before.is_empty() && !more.is_empty() {
        before.push_str(BETWEEN);
    }
    before.push_str(more);
}

fn system(fields: &Fields<'_>, key: &str) -> Result<String, ApiError> {
    let mut texts = texts(fields, key)?;
    texts.retain(|text| !text.starts_with(BILLING));
    Ok(texts.join(BETWEEN))
}

fn assistant(message: &Fields<'_>) -> Result<ChatMessage, ApiError> {
    let mut said = ChatMessage::new("assistant", "");
    for block in blocks(message, "content")? {
        match block {
            Block::Text(text) => said.content.push_str(text),
            Block::Of("thinking", block) => {
                let thought = block.text("thinking")?.unwrap_or_default();
                join(&mut said.reasoning, thought);
            }
            // Nobody but Anthropic can read it.
            Block::Of("redacted_thinking", _) => {}
            Block::Of("tool_use", block) => said.tool_calls.push(call(&block)?),
            Block::Of(_, block) => return Err(refused(&block, "`text`, `thinking` or `tool_use`")),
        }
    }
    Ok(said)
}

fn call(block: &Fields<'_>) -> Result<ToolCall, ApiError> {
    for key in ["id", "name"] {
        block.required(key)?;
    }
    let arguments = match block.required("input")? {
        Value::Object(map) => map.clone(),
        other => return Err(wrong_kind(block.path("input"), other, "an object")),
    };
    let text = |key| block.text(key).map(|text| text.unwrap_or_default().to_owned());
    Ok(ToolCall { id: text("id")?, name: text("name")?, arguments })
}

/// A part of a message.
enum Block<'a> {
    Text(&'a str),
    /// Of this type.
    Of(&'a str, Fields<'a>),
}

/// The content `key`, which may be one text.
fn blocks<'a>(fields: &Fields<'a>, key: &str) -> Result<Vec<Block<'a>>, ApiError> {
    match fields.value(key) {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![Block::Text(text)]),
        Some(Value::Array(list)) => list
            .iter()
            .enumerate()
            .map(|(index, block)| {
                let block = Fields::of(fields.path(&format!("{key}[{index}]")), block)?;
                match block.required_text("type")? {
                    "text" => Ok(Block::Text(block.required_text("text")?)),
                    kind => Ok(Block::Of(kind, block)),
                }
            })
            .collect(),
        Some(other) => Err(wrong_kind(fields.path(key), other, "a text or a list of blocks")),
    }
}

/// The content `key` where there is nothing but text.
fn texts<'a>(fields: &Fields<'a>, key: &str) -> Result<Vec<&'a str>, ApiError> {
    let text = |block| match block {
        Block::Text(text) => Ok(text),
        Block::Of(_, block) => Err(refused(&block, "`text`")),
    };
    blocks(fields, key)?.into_iter().map(text).collect()
}

/// A block that cannot be where it is, or anywhere.
fn refused(block: &Fields<'_>, wanted: &str) -> ApiError {
    let path = block.path("type");
    let kind = block.text("type").ok().flatten().unwrap_or_default();
    let kind: String = kind.chars().take(100).collect();
    let why = match kind.as_str() {
        "image" => "this server reads no images",
        "document" => "this server reads no documents: send their text",
        _ => "this server reads no such block here",
    };
    let message = format!("`{path}` is `{kind}`; it has to be {wanted}: {why}");
    ApiError::invalid(path, message).coded("unsupported_content")
}
