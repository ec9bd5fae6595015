//! Tools as requests for responses have them.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::request::fields::Fields;
use crate::request::tools::{self, ToolChoice};

/// The tools as templates are given them, and as responses show them.
pub(super) fn tools_of(fields: &Fields<'_>) -> Result<(Vec<Value>, Vec<Value>), ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    tools::check_count(list.len())?;
    let mut tools = Vec::new();
    let mut shown = Vec::new();
    for (index, tool) in list.iter().enumerate() {
        let tool = Fields::of(format!("tools[{index}]"), tool)?;
        let kind = tool.required_text("type")?;
        if kind != "function" {
            let (path, kind) = (tool.path("type"), kind.chars().take(64).collect::<String>());
            let message =
                format!("`{path}` is `{kind}`; this server knows `function` and no other tools");
            return Err(ApiError::invalid(path, message).coded("unsupported_parameter"));
        }
        for key in ["async", "defer_loading"] {
            if tool.flag(key)? == Some(true) {
                let path = tool.path(key);
                let message = format!("`{path}` is not supported by this server: leave it out");
                return Err(ApiError::invalid(path, message).coded("unsupported_parameter"));
            }
        }
        tool.required("name")?;
        let (name, description) =
            (tool.text("name")?.unwrap_or_default(), tool.text("description")?);
        let parameters = tool.value("parameters");
        let path = format!("tools[{index}]");
        tools.push(tools::function(&path, name, description, parameters)?);
        shown.push(json!({"type": kind, "name": name, "description": description,
                          "parameters": parameters, "strict": tool.flag("strict")?}));
    }
    tools::check(&tools)?;
    Ok((tools, shown))
}

/// Whether the model has to call a tool.
pub(super) fn tool_choice(fields: &Fields<'_>) -> Result<ToolChoice, ApiError> {
    let wrong = || {
        let message = "`tool_choice` has to be `none`, `auto`, `required`, or `{\"type\": \
                       \"function\", \"name\": ...}`";
        ApiError::invalid("tool_choice", message)
    };
    match fields.value("tool_choice") {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Ok(ToolChoice::Required),
            _ => Err(wrong()),
        },
        Some(choice) if choice.get("type").and_then(Value::as_str) == Some("function") => {
            let name = choice.get("name").and_then(Value::as_str).ok_or_else(wrong)?;
            Ok(ToolChoice::Named(name.to_owned()))
        }
        Some(_) => Err(wrong()),
    }
}

/// The same as responses show it.
pub(super) fn shown_choice(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::Auto => json!("auto"),
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Named(name) => json!({"type": "function", "name": name}),
    }
}
