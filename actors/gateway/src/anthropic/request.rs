//! A request's fields, all but the conversation.

use planaria_engine::chat_template::{Chat, Ending};
use serde_json::{Map, Value};

use super::{MESSAGES, blocks};
use crate::error::ApiError;
use crate::request::fields::{Fields, is_empty};
use crate::request::forms::{self, Form, FormKind};
use crate::request::sampling::SamplingAsked;
use crate::request::tools::{self, Effort, ToolChoice};
use crate::request::{self, Asked, ChatAsked, Delivery, Prompt};

/// Fields that are read here.
const HONOURED: &[&str] = &[
    "model",
    "messages",
    "system",
    "max_tokens",
    "stop_sequences",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    // Not Anthropic's.
    "seed",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "output_format",
];

/// Fields that are taken and not read: who asks and what it costs, and what only Anthropic's own servers keep.
const IGNORED: &[&str] = &[
    "metadata",
    "service_tier",
    "inference_geo",
    "speed",
    "user_profile_id",
    "workspace_id",
    "billing_policy",
    "fallback_credit_token",
    "diagnostics",
    "container",
    // What it would have cleared stays in the prompt: dearer, and no less true.
    "context_management",
    "cache_control",
    // Where headers cannot be sent.
    "anthropic_version",
    "anthropic_beta",
    "betas",
];

/// What a tool may say beside what is read of it: when the call of it is shown and who may call. `strict` is kept
/// where a call has to be made; calls that a model makes by itself are held to no schema.
const OF_TOOLS: &[&str] = &[
    "type",
    "name",
    "description",
    "input_schema",
    "cache_control",
    "strict",
    "defer_loading",
    "allowed_callers",
    "eager_input_streaming",
];

/// From so many tokens of thoughts on, much thinking is asked for: what Claude Code calls "think hard" is more.
const MUCH_THINKING: u32 = 8192;

/// Reads the body of a request that is to be answered.
pub(super) fn to_answer(body: &[u8]) -> Result<Asked, ApiError> {
    let body = request::json_of(body)?;
    let fields = Fields::of(String::new(), &body)?;
    fields.required("max_tokens")?;
    asked(&fields)
}

/// Reads the body of a request whose prompt is to be counted.
pub(super) fn to_count(body: &[u8]) -> Result<Asked, ApiError> {
    let body = request::json_of(body)?;
    asked(&Fields::of(String::new(), &body)?)
}

fn asked(fields: &Fields<'_>) -> Result<Asked, ApiError> {
    let model = request::model_of(fields)?;
    refuse_unknown(fields, &[HONOURED, IGNORED])?;
    let tools = tools(fields)?;
    let (tool_choice, parallel_calls) = choice(fields)?;
    tools::check_choice(&tool_choice, &tools)?;
    let messages = blocks::messages(fields)?;
    let ending = match messages.last() {
        Some(last) if last.role == "assistant" => Ending::Continue,
        _ => Ending::Answer,
    };
    let chat = Chat { messages, tools, variables: Map::new(), ending };
    let config = fields.object("output_config")?;
    let effort = effort(fields, config.as_ref())?;
    let form = form(fields, config.as_ref())?;
    let chat = ChatAsked { chat, tool_choice, effort: Some(effort), form };
    Ok(Asked {
        model,
        prompt_field: MESSAGES,
        prompt: Prompt::Chat(Box::new(chat)),
        sampling: sampling(fields)?,
        max_tokens: request::whole_number(fields, "max_tokens")?,
        ignore_eos: false,
        stop_token_ids: Vec::new(),
        delivery: Delivery {
            stop: request::stop(fields, "stop_sequences")?,
            stream: fields.flag("stream")?.unwrap_or(false),
            include_usage: true,
            token_ids: false,
            logprobs: false,
            store: None,
            answers: 1,
            parallel_calls,
        },
    })
}

/// Refuses fields that are not among `known`, unless they ask for nothing.
fn refuse_unknown(fields: &Fields<'_>, known: &[&[&str]]) -> Result<(), ApiError> {
    let is_known = |key: &str| known.iter().any(|keys| keys.contains(&key));
    let unknown =
        |key: &&String| !is_known(key) && fields.value(key).is_some_and(|value| !is_empty(value));
    match fields.keys().find(unknown) {
        None => Ok(()),
        Some(key) => {
            let key: String = key.chars().take(100).collect();
            let path = fields.path(&key);
            let message = format!("`{path}` is not supported by this server: leave it out");
            Err(ApiError::invalid(path, message).coded("unsupported_parameter"))
        }
    }
}

fn sampling(fields: &Fields<'_>) -> Result<SamplingAsked, ApiError> {
    let mut sampling = SamplingAsked::default();
    sampling.temperature = fields.number("temperature")?;
    sampling.top_p = fields.number("top_p")?;
    sampling.top_k = fields.whole("top_k", 0..=u32::MAX)?;
    sampling.seed = fields.parsed("seed", "a whole number of 64 bits", Value::as_u64)?;
    Ok(sampling)
}

fn tools(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    tools::check_count(list.len())?;
    let tools = list.iter().enumerate().map(|(index, tool)| {
        let path = format!("tools[{index}]");
        let tool = Fields::of(path.clone(), tool)?;
        match tool.text("type")? {
            None | Some("custom") => {}
            Some(kind) => {
                let kind: String = kind.chars().take(100).collect();
                let message = format!(
                    "`{path}.type` is `{kind}`: this server has no tools of its own. Leave it out, or \
                     describe a tool that you run (`name`, `description`, `input_schema`)"
                );
                let error = ApiError::invalid(format!("{path}.type"), message);
                return Err(error.coded("unsupported_parameter"));
            }
        }
        refuse_unknown(&tool, &[OF_TOOLS])?;
        tool.required("name")?;
        tool.required("input_schema")?;
        tool.object("input_schema")?;
        let name = tool.text("name")?.unwrap_or_default();
        tools::function(&path, name, tool.text("description")?, tool.value("input_schema"))
    });
    let tools = tools.collect::<Result<Vec<_>, _>>()?;
    tools::check(&tools)?;
    Ok(tools)
}

/// Whether the model has to call a tool, and whether it may call several at once.
fn choice(fields: &Fields<'_>) -> Result<(ToolChoice, bool), ApiError> {
    let Some(choice) = fields.object("tool_choice")? else {
        return Ok((ToolChoice::Auto, true));
    };
    choice.required("type")?;
    let kind = match choice.text("type")? {
        Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("any") => ToolChoice::Required,
        Some("tool") => ToolChoice::Named(choice.required_text("name")?.to_owned()),
        _ => {
            let path = choice.path("type");
            let message = format!("`{path}` has to be `auto`, `any`, `tool` or `none`");
            return Err(ApiError::invalid(path, message));
        }
    };
    let one_at_most = choice.flag("disable_parallel_tool_use")?.unwrap_or(false);
    Ok((kind, !one_at_most))
}

/// How much the model is to think: not at all unless that is asked for, as Anthropic has it.
fn effort(fields: &Fields<'_>, config: Option<&Fields<'_>>) -> Result<Effort, ApiError> {
    let asked = config.map_or(Ok(None), |config| Effort::of(config, "effort"))?;
    let Some(thinking) = fields.object("thinking")? else {
        return Ok(asked.unwrap_or(Effort::None));
    };
    thinking.required("type")?;
    let budget = thinking.whole("budget_tokens", 1..=u32::MAX)?;
    match thinking.text("type")? {
        Some("disabled") => Ok(Effort::None),
        Some("adaptive") => Ok(asked.unwrap_or(Effort::Medium)),
        Some("enabled") => Ok(asked.unwrap_or(match budget {
            Some(MUCH_THINKING..) => Effort::High,
            _ => Effort::Medium,
        })),
        _ => {
            let path = thinking.path("type");
            let message = format!("`{path}` has to be `enabled`, `disabled` or `adaptive`");
            Err(ApiError::invalid(path, message))
        }
    }
}

/// What the answer has to be, by the field of these days or by its former name.
fn form(fields: &Fields<'_>, config: Option<&Fields<'_>>) -> Result<Option<Form>, ApiError> {
    let current = match config {
        None => None,
        Some(config) => {
            refuse_unknown(config, &[&["effort", "format"]])?;
            config.object("format")?.map(|format| ("output_config.format", format))
        }
    };
    let former = fields.object("output_format")?.map(|format| ("output_format", format));
    let (field, format) = match (current, former) {
        (None, None) => return Ok(None),
        (Some(named), None) | (None, Some(named)) => named,
        (Some(_), Some(_)) => {
            let message = "`output_config.format` and `output_format` both say what the answer has to be: leave \
                           one of them out";
            return Err(ApiError::invalid("output_format", message));
        }
    };
    format.required("type")?;
    if format.text("type")? != Some("json_schema") {
        let path = format.path("type");
        let message = format!("`{path}` has to be `json_schema`");
        return Err(ApiError::invalid(path, message));
    }
    let schema = forms::schema_of(&format.path("schema"), format.required("schema")?)?;
    Ok(Some(Form { field, kind: FormKind::JsonSchema(schema) }))
}
