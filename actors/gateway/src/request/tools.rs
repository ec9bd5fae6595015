//! Tools that a model may call, whether it has to, and how much it is to think.

use std::collections::BTreeSet;
use std::sync::Arc;

use planaria_engine::chat_template::Chat;
use planaria_engine::reply::{Dialect, ToolTypes};
use serde_json::{Map, Value, json};

use super::fields::{Fields, wrong_kind};
use super::{ChatAsked, Reading};
use crate::error::ApiError;
use crate::served::ServedModel;

/// Several times what agents with many servers of tools have.
const MOST_TOOLS: usize = 1024;
/// OpenAI has 64; names that agents make of a server's and a tool's name are longer now and then.
const LONGEST_NAME: usize = 128;
/// Values within values of a tool. Templates write them by recursion.
const DEEPEST: usize = 64;

/// Whether the model has to call a tool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It may not.
    None,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

/// How much a model is to think, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Not at all.
    None,
    /// Little.
    Low,
    /// As much as is usual.
    Medium,
    /// Much.
    High,
}

impl Effort {
    /// Reads the field `key`.
    pub(crate) fn of(fields: &Fields<'_>, key: &str) -> Result<Option<Self>, ApiError> {
        let Some(word) = fields.text(key)? else {
            return Ok(None);
        };
        match word {
            "none" => Ok(Some(Self::None)),
            "minimal" | "low" => Ok(Some(Self::Low)),
            "medium" => Ok(Some(Self::Medium)),
            "high" | "xhigh" | "max" => Ok(Some(Self::High)),
            _ => {
                let path = fields.path(key);
                let message = format!(
                    "`{path}` has to be `none`, `minimal`, `low`, `medium`, `high` or `xhigh`"
                );
                Err(ApiError::invalid(path, message))
            }
        }
    }

    const fn word(self) -> &'static str {
        match self {
            // Models that know efforts know no other than these.
            Self::None | Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// Tells the template, in the ways that it reads. What the request says itself counts more.
    fn tell(self, model: &ServedModel, variables: &mut Map<String, Value>) {
        let thinks = self != Self::None;
        for (input, value) in [
            ("reasoning_effort", json!(self.word())),
            ("enable_thinking", json!(thinks)),
            ("thinking", json!(thinks)),
        ] {
            // gpt-oss reads thoughts of former messages by that name.
            let is_input = input != "thinking" || !model.template.reads("reasoning_effort");
            if is_input && model.template.reads(input) {
                variables.entry(input).or_insert(value);
            }
        }
    }
}

impl ChatAsked {
    /// The conversation as the template of `model` is given it.
    pub(super) fn for_model(mut self, model: &ServedModel) -> Result<Chat, ApiError> {
        if self.tool_choice == ToolChoice::None {
            self.chat.tools.clear();
        }
        if !self.chat.tools.is_empty() && !model.template.reads("tools") {
            let message = format!(
                "the chat template of `{}` has no place for tools: the model would not know of them. Ask \
                 another model, or leave `tools` out",
                model.name
            );
            return Err(ApiError::invalid("tools", message).coded("tools_unsupported"));
        }
        if let Some(effort) = self.effort {
            effort.tell(model, &mut self.chat.variables);
        }
        Ok(self.chat)
    }

    /// How the answer of a model that speaks `dialect` is read.
    pub(super) fn reading(&self, dialect: Dialect) -> Reading {
        let marked = || Reading::Chat(Some(Arc::new(ToolTypes::new(&self.chat.tools))));
        match self.tool_choice {
            _ if self.chat.tools.is_empty() => Reading::Chat(None),
            ToolChoice::None => Reading::Chat(None),
            // Its calls are messages of their own, also where the answer is held to a form.
            _ if dialect.is_harmony(true) => marked(),
            ToolChoice::Auto if self.form.is_some() => Reading::Calls { or_text: true },
            ToolChoice::Auto => marked(),
            ToolChoice::Required | ToolChoice::Named(_) => Reading::Calls { or_text: false },
        }
    }
}

/// A tool's name, its description and the schema of its arguments, as templates are given it.
pub(crate) fn function(
    path: &str,
    name: &str,
    description: Option<&str>,
    parameters: Option<&Value>,
) -> Result<Value, ApiError> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    if !(1..=LONGEST_NAME).contains(&name.len()) || !name.chars().all(is_fit) {
        let path = format!("{path}.name");
        let message = format!(
            "`{path}` has to have 1 to {LONGEST_NAME} letters, digits, or `_`, `-`, `.`, `:`, `/`"
        );
        return Err(ApiError::invalid(path, message));
    }
    let mut function = Map::from_iter([("name".to_owned(), json!(name))]);
    if let Some(description) = description {
        function.insert("description".to_owned(), json!(description));
    }
    let parameters = match parameters {
        None => json!({"type": "object", "properties": {}}),
        Some(Value::Object(_)) => parameters.cloned().unwrap_or_default(),
        Some(other) => return Err(wrong_kind(format!("{path}.parameters"), other, "an object")),
    };
    if depth(&parameters) > DEEPEST {
        let path = format!("{path}.parameters");
        let message = format!("`{path}` has more than {DEEPEST} values within one another");
        return Err(ApiError::invalid(path, message));
    }
    function.insert("parameters".to_owned(), parameters);
    Ok(json!({"type": "function", "function": function}))
}

/// Refuses too many tools, before anything is made of them.
pub(crate) fn check_count(count: usize) -> Result<(), ApiError> {
    if count > MOST_TOOLS {
        let message = format!("`tools` has {count} entries; {MOST_TOOLS} are allowed");
        return Err(ApiError::invalid("tools", message));
    }
    Ok(())
}

/// Refuses two tools of a name.
pub(crate) fn check(tools: &[Value]) -> Result<(), ApiError> {
    let mut names = BTreeSet::new();
    for (index, name) in tools.iter().map(name_of).enumerate() {
        if !names.insert(name) {
            let path = format!("tools[{index}]");
            let message = format!("`{path}` has the name of another tool, `{name}`");
            return Err(ApiError::invalid(path, message));
        }
    }
    Ok(())
}

/// The name of a tool as [`function`] makes them.
pub(crate) fn name_of(tool: &Value) -> &str {
    tool.pointer("/function/name").and_then(Value::as_str).unwrap_or_default()
}

/// Refuses a choice of tools that there are not.
pub(crate) fn check_choice(choice: &ToolChoice, tools: &[Value]) -> Result<(), ApiError> {
    let wrong = |message: String| Err(ApiError::invalid("tool_choice", message));
    match choice {
        ToolChoice::Auto | ToolChoice::None => Ok(()),
        ToolChoice::Required | ToolChoice::Named(_) if tools.is_empty() => {
            wrong("`tool_choice` asks for a call, and there are no `tools`".to_owned())
        }
        ToolChoice::Required => Ok(()),
        ToolChoice::Named(name) if tools.iter().any(|tool| name_of(tool) == name) => Ok(()),
        ToolChoice::Named(name) => {
            let name: String = name.chars().take(LONGEST_NAME).collect();
            wrong(format!("`tool_choice` names `{name}`, which is none of `tools`"))
        }
    }
}

/// Reads `tools` as chat completions have it.
pub(crate) fn of_chat(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    check_count(list.len())?;
    let tools = list.iter().enumerate().map(|(index, tool)| {
        let tool = Fields::of(format!("tools[{index}]"), tool)?;
        tool.required("type")?;
        if tool.text("type")? != Some("function") {
            let path = tool.path("type");
            let message =
                format!("`{path}` has to be `function`: this server knows no other tools");
            return Err(ApiError::invalid(path, message));
        }
        let named = tool.required_object("function")?;
        let name = named.required_text("name")?;
        function(
            &tool.path("function"),
            name,
            named.text("description")?,
            named.value("parameters"),
        )
    });
    let tools = tools.collect::<Result<Vec<_>, _>>()?;
    check(&tools)?;
    Ok(tools)
}

/// Reads `tool_choice` as chat completions have it.
pub(super) fn choice_of_chat(fields: &Fields<'_>) -> Result<ToolChoice, ApiError> {
    let message = "`tool_choice` has to be `none`, `auto`, `required`, or `{\"type\": \"function\", \
                   \"function\": {\"name\": ...}}`";
    let wrong = || ApiError::invalid("tool_choice", message);
    match fields.value("tool_choice") {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" | "any" => Ok(ToolChoice::Required),
            _ => Err(wrong()),
        },
        Some(choice) => {
            let name = choice.pointer("/function/name").and_then(Value::as_str);
            name.map(|name| ToolChoice::Named(name.to_owned())).ok_or_else(wrong)
        }
    }
}

/// Values within one another.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
