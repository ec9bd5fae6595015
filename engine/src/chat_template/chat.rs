//! What a chat template is given: messages, tools, and how the prompt is to end.

use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr};
use serde_json::Map;

/// Everything that a prompt is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chat {
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// Tools that the model may call, each `{"type": "function", "function": {...}}`.
    pub tools: Vec<serde_json::Value>,
    /// Further inputs of the template, such as `enable_thinking`. They win over those that are always there.
    pub variables: Map<String, serde_json::Value>,
    /// How the prompt ends.
    pub ending: Ending,
}

/// How a prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// With the beginning of an answer.
    #[default]
    Answer,
    /// Behind the last message, as it is when it is over.
    Message,
    /// Within the last message, which the answer continues.
    Continue,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool` or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What was thought before it was said.
    pub reasoning: String,
    /// Calls of an assistant.
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool answers.
    pub tool_call_id: Option<String>,
    /// Who speaks, or which tool.
    pub name: Option<String>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// What its result refers to.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, serde_json::Value>,
}

/// Where a message ends that is gone on with: characters for private use, with a word between them.
pub(super) const END_MARK: &str = "\u{f8ff}continued\u{f8ff}";

/// As what a template sees arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arguments {
    /// An object whose text is JSON.
    Object,
    /// JSON text.
    Text,
}

impl Chat {
    /// A conversation without tools that is to be answered.
    #[must_use]
    pub fn of(messages: Vec<ChatMessage>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// Bytes of all messages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.messages.iter().map(ChatMessage::bytes).sum()
    }

    /// Bytes of tools and variables, about.
    #[must_use]
    pub fn extra_bytes(&self) -> usize {
        let tools: usize = self.tools.iter().map(bytes_of).sum();
        self.variables.iter().fold(tools, |sum, (name, value)| sum + name.len() + bytes_of(value))
    }

    /// The same with a mark behind the last word of the last message, which no template writes.
    pub(super) fn marked_at_its_end(&self) -> Self {
        let mut marked = self.clone();
        if let Some(last) = marked.messages.last_mut() {
            last.content.truncate(last.content.trim_end().len());
            last.content.push_str(END_MARK);
        }
        marked
    }

    pub(super) fn has_calls(&self) -> bool {
        self.messages.iter().any(|message| !message.tool_calls.is_empty())
    }
}

impl ChatMessage {
    /// A message that is nothing but text.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    fn bytes(&self) -> usize {
        let calls = self.tool_calls.iter();
        let calls: usize =
            calls.map(|c| c.id.len() + c.name.len() + bytes_of_object(&c.arguments)).sum();
        let names = [&self.tool_call_id, &self.name].into_iter().flatten().map(String::len);
        self.role.len() + self.content.len() + self.reasoning.len() + calls + names.sum::<usize>()
    }

    /// As the template `source` reads it.
    pub(super) fn to_value(&self, arguments: Arguments, source: &str) -> Value {
        let content =
            if self.content.is_empty() && !self.tool_calls.is_empty() && asks_for_none(source) {
                Value::from(())
            } else {
                Value::from(self.content.as_str())
            };
        let mut pairs = vec![("role", Value::from(self.role.as_str())), ("content", content)];
        if !self.reasoning.is_empty() {
            let reasoning = Value::from(self.reasoning.as_str());
            pairs.push(("reasoning_content", reasoning.clone()));
            pairs.push(("reasoning", reasoning.clone()));
            // Templates of gpt-oss refuse it beside a content.
            if self.content.is_empty() {
                pairs.push(("thinking", reasoning));
            }
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(|call| call.to_value(arguments));
            pairs.push(("tool_calls", calls.collect()));
        }
        let texts = [("tool_call_id", &self.tool_call_id), ("name", &self.name)];
        let texts = texts.into_iter().filter_map(|(key, text)| Some((key, text.as_deref()?)));
        pairs.extend(texts.map(|(key, text)| (key, Value::from(text))));
        Value::from_pairs(pairs)
    }
}

impl ToolCall {
    fn to_value(&self, arguments: Arguments) -> Value {
        let text = || serde_json::to_string(&self.arguments).unwrap_or_default();
        let arguments = match arguments {
            Arguments::Object => Value::from_object(ArgumentsObject {
                text: text(),
                values: of_object(&self.arguments),
            }),
            Arguments::Text => Value::from(text()),
        };
        let function = [("name", Value::from(self.name.as_str())), ("arguments", arguments)];
        Value::from_pairs([
            ("id", Value::from(self.id.as_str())),
            ("type", Value::from("function")),
            ("function", Value::from_pairs(function)),
        ])
    }
}

/// Some templates tell a message that only calls by its content.
fn asks_for_none(source: &str) -> bool {
    ["content'] is none", "content\"] is none", "content is none"]
        .iter()
        .any(|words| source.contains(words))
}

/// A JSON value as templates see it.
pub(super) fn of_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => {
            let whole = number.as_i64().map(Value::from).or(number.as_u64().map(Value::from));
            whole.unwrap_or_else(|| number.as_f64().map_or(Value::from(()), Value::from))
        }
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(list) => list.iter().map(of_json).collect(),
        serde_json::Value::Object(map) => of_object(map),
    }
}

fn of_object(map: &Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), of_json(value))))
}

/// Bytes of the JSON of a value, about.
fn bytes_of(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len() + 3,
        serde_json::Value::Array(list) => list.iter().map(bytes_of).sum::<usize>() + 2,
        serde_json::Value::Object(map) => bytes_of_object(map),
        _ => 8,
    }
}

fn bytes_of_object(map: &Map<String, serde_json::Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + 4 + bytes_of(value)).sum::<usize>() + 2
}

/// Arguments that are an object and, written out, JSON.
#[derive(Debug)]
struct ArgumentsObject {
    text: String,
    values: Value,
}

impl Object for ArgumentsObject {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.values.get_item(key).ok().filter(|value| !value.is_undefined())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.values.try_iter().map_or(Enumerator::Empty, |keys| Enumerator::Values(keys.collect()))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
