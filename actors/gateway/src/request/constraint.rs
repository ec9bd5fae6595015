//! From what an answer has to be to what the cluster is asked to hold it to.

use std::sync::Arc;

use planaria_engine::chat_template::Ending;
use planaria_engine::grammar::{Channels, Constraint, Form, GrammarError, Thinking};
use planaria_engine::reply::{ReasoningFormat, Reply};
use serde_json::{Map, Value, json};

use super::forms::FormKind;
use super::tools::{ToolChoice, name_of};
use super::{ChatAsked, forms};
use crate::error::ApiError;
use crate::served::ServedModel;

/// Calls that an answer may have at most where it has to have one.
const MOST_CALLS: u32 = 16;

/// What an answer has to be, and the field to blame where it cannot be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Demand {
    field: &'static str,
    wanted: Wanted,
}

#[derive(Debug, Clone, PartialEq)]
enum Wanted {
    Answer(FormKind),
    Calls(Calls),
    Either(FormKind, Calls),
}

impl Demand {
    /// What a chat asks for; `None` if the answer is free.
    pub(super) fn of(asked: &ChatAsked, parallel_calls: bool) -> Result<Option<Self>, ApiError> {
        let calls = Calls::of(asked, parallel_calls);
        let (forms::Form { field, kind }, calls) = match (&asked.form, calls) {
            (None, None) => return Ok(None),
            // Free, or a call as its model marks it.
            (None, Some(_)) if asked.tool_choice == ToolChoice::Auto => return Ok(None),
            (None, Some(calls)) => {
                return Ok(Some(Self { field: "tools", wanted: Wanted::Calls(calls) }));
            }
            (Some(form), calls) => (form, calls),
        };
        let wanted = match (kind, calls) {
            (_, Some(_)) if asked.tool_choice != ToolChoice::Auto => {
                let message = format!(
                    "`tool_choice` asks for a call and `{field}` for an answer: leave one of them out"
                );
                return Err(ApiError::invalid(*field, message));
            }
            _ if asked.chat.ending == Ending::Continue => {
                let message = format!("`{field}` is for whole answers: leave the beginning out");
                return Err(ApiError::invalid(*field, message));
            }
            (FormKind::Regex(_) | FormKind::Choice(_), Some(_)) => {
                let message =
                    format!("`{field}` leaves no way to call `tools`: leave one of them out");
                return Err(ApiError::invalid(*field, message));
            }
            (kind, Some(calls)) => Wanted::Either(kind.clone(), calls),
            (kind, None) => Wanted::Answer(kind.clone()),
        };
        Ok(Some(Self { field, wanted }))
    }

    /// The constraint for an answer to `prompt` that ends at `ends`.
    pub(super) fn constraint(
        self,
        model: &ServedModel,
        prompt: &[u32],
        ends: &[u32],
    ) -> Result<Arc<Constraint>, ApiError> {
        let Self { field, wanted } = self;
        if ends.is_empty() {
            let message = format!(
                "`{field}` needs a token that ends the answer: leave `ignore_eos` out, or ask a model that \
                 has one"
            );
            return Err(ApiError::invalid(field, message));
        }
        let check = |form: Form, thinking| {
            let constraint = Constraint { form, thinking, ends: ends.to_vec() };
            model.check(&constraint).map_err(|error| refused(field, &error))?;
            Ok(constraint)
        };
        let plain = wanted.as_text();
        if !model.dialect.is_harmony(wanted.may_call()) {
            let thinking = thinking(model, prompt, ends, field)?;
            return check(plain, thinking).map(Arc::new);
        }
        // What is wrong with a part is said of that part, and not of the channels around it.
        check(plain, None)?;
        let channels = in_channels(&wanted, model, prompt, ends, field)?;
        check(channels, None).map(Arc::new)
    }
}

impl Wanted {
    /// As a form of the text in which answers and lists of calls come.
    fn as_text(&self) -> Form {
        match self {
            Self::Answer(kind) => form_of(kind),
            Self::Calls(calls) => Form::JsonSchema(calls.schema().to_string()),
            Self::Either(FormKind::JsonSchema(schema), calls) => {
                Form::JsonSchema(calls.or(schema.clone()).to_string())
            }
            // Of other kinds than JSON there are none beside calls.
            Self::Either(_, calls) => {
                Form::JsonSchema(calls.or(json!({"type": "object"})).to_string())
            }
        }
    }

    const fn may_call(&self) -> bool {
        matches!(self, Self::Calls(_) | Self::Either(..))
    }
}

fn form_of(kind: &FormKind) -> Form {
    match kind {
        FormKind::JsonObject => Form::JsonObject,
        FormKind::JsonSchema(schema) => Form::JsonSchema(schema.to_string()),
        FormKind::Regex(expression) => Form::Regex(expression.clone()),
        FormKind::Choice(texts) => Form::Choice(texts.clone()),
    }
}

fn refused(field: &'static str, error: &GrammarError) -> ApiError {
    let error_code = match error {
        GrammarError::Unsupported(_) | GrammarError::Vocabulary(_) => "unsupported_form",
        GrammarError::TooComplex(_) => "form_too_complex",
        _ => "invalid_form",
    };
    ApiError::invalid(field, format!("`{field}`: {error}")).coded(error_code)
}

/// How thoughts that come before the answer are told from it.
fn thinking(
    model: &ServedModel,
    prompt: &[u32],
    ends: &[u32],
    field: &'static str,
) -> Result<Option<Thinking>, ApiError> {
    // Harmony's are a part of the form.
    let Some((open, close)) = model.dialect.reasoning.and_then(ReasoningFormat::markers) else {
        return Ok(None);
    };
    let begun = ends_in_thoughts(model, prompt)?;
    match model.tokenizer.id_of(close) {
        Some(token) => {
            check_marker(token, close, ends, field)?;
            Ok(Some(Thinking { open: model.tokenizer.id_of(open), close: token, begun }))
        }
        // It may think in text then, and is not let.
        None if !begun => Ok(None),
        None => Err(unmarked(model, field)),
    }
}

/// What is wanted, in the channels of gpt-oss.
fn in_channels(
    wanted: &Wanted,
    model: &ServedModel,
    prompt: &[u32],
    ends: &[u32],
    field: &'static str,
) -> Result<Form, ApiError> {
    let tokenizer = &model.tokenizer;
    for marker in Channels::MARKERS {
        let token = tokenizer.id_of(marker).filter(|token| tokenizer.is_marker(*token));
        let token = token.ok_or_else(|| unmarked(model, field))?;
        check_marker(token, marker, ends, field)?;
    }
    let begun = ends_in_thoughts(model, prompt)?;
    let header = tokenizer.encode_rendered(Channels::HEADER);
    let header = header.map_err(|error| ApiError::internal(error.to_string()))?;
    if !begun && !prompt.ends_with(&header) {
        let message = format!(
            "`{field}` is for answers that begin with their header: leave `add_generation_prompt` and \
             `continue_final_message` out"
        );
        return Err(ApiError::invalid(field, message));
    }
    let (answer, calls) = match wanted {
        Wanted::Answer(kind) => (Some(form_of(kind)), &[][..]),
        Wanted::Calls(calls) => (None, calls.tools.as_slice()),
        Wanted::Either(kind, calls) => (Some(form_of(kind)), calls.tools.as_slice()),
    };
    let channels = Channels { begun, answer: answer.as_ref(), calls };
    channels.form().map_err(|error| refused(field, &error))
}

/// A marker that comes before the answer does not end it.
fn check_marker(
    token: u32,
    marker: &str,
    ends: &[u32],
    field: &'static str,
) -> Result<(), ApiError> {
    if !ends.contains(&token) {
        return Ok(());
    }
    let message = format!(
        "`{field}` needs the token {token}, `{marker}`, before the answer: it cannot end it"
    );
    Err(ApiError::invalid("stop_token_ids", message))
}

/// Whether the model thinks where the prompt ends.
fn ends_in_thoughts(model: &ServedModel, prompt: &[u32]) -> Result<bool, ApiError> {
    let reply = Reply::new(Arc::clone(&model.tokenizer), model.dialect, None, prompt);
    Ok(reply.map_err(|error| ApiError::internal(error.to_string()))?.in_reasoning())
}

fn unmarked(model: &ServedModel, field: &'static str) -> ApiError {
    let message = format!(
        "`{field}` cannot be asked of `{}`: its thoughts are not told from its answers by tokens of their own",
        model.name
    );
    ApiError::invalid(field, message).coded("unsupported_form")
}

/// Calls that an answer may make.
#[derive(Debug, Clone, PartialEq)]
struct Calls {
    /// Names of tools, each with the schema of its arguments, which is of an object.
    tools: Vec<(String, Value)>,
    /// So many at once.
    most: u32,
}

impl Calls {
    /// Those that an answer may make, or has to; `None` if there are none.
    fn of(asked: &ChatAsked, parallel: bool) -> Option<Self> {
        let may_be_called = |tool: &&Value| match &asked.tool_choice {
            ToolChoice::None => false,
            ToolChoice::Auto | ToolChoice::Required => true,
            ToolChoice::Named(name) => name_of(tool) == name,
        };
        let tools = asked.chat.tools.iter().filter(may_be_called).map(|tool| {
            let mut arguments = tool.pointer("/function/parameters").cloned().unwrap_or(json!({}));
            if let Value::Object(arguments) = &mut arguments {
                arguments.entry("type").or_insert(json!("object"));
            }
            (name_of(tool).to_owned(), arguments)
        });
        let tools: Vec<_> = tools.collect();
        let most = if parallel { MOST_CALLS } else { 1 };
        (!tools.is_empty()).then_some(Self { tools, most })
    }

    /// The schema of a list of calls, each `{"name", "arguments"}`; and those of the arguments, to which it refers.
    fn list(&self) -> (Value, Map<String, Value>) {
        let mut definitions = Map::new();
        let mut calls = Vec::new();
        for (number, (name, arguments)) in self.tools.iter().enumerate() {
            let place = format!("tool{number}");
            let mut arguments = arguments.clone();
            move_references(&mut arguments, &format!("#/$defs/{place}"));
            definitions.insert(place.clone(), arguments);
            calls.push(json!({
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "arguments": {"$ref": format!("#/$defs/{place}")},
                },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            }));
        }
        let call = json!({"anyOf": calls});
        let list = json!({"type": "array", "items": call, "minItems": 1, "maxItems": self.most});
        (list, definitions)
    }

    /// A list of calls.
    fn schema(&self) -> Value {
        let (mut list, definitions) = self.list();
        if let Value::Object(list) = &mut list {
            list.insert("$defs".to_owned(), Value::Object(definitions));
        }
        list
    }

    /// A list of calls, or an answer of this schema.
    fn or(&self, mut schema: Value) -> Value {
        let (list, mut definitions) = self.list();
        move_references(&mut schema, "#/$defs/answer");
        definitions.insert("answer".to_owned(), schema);
        json!({"anyOf": [list, {"$ref": "#/$defs/answer"}], "$defs": definitions})
    }
}

/// Has references that begin at the root of a schema begin at `root`, where it is from now on.
fn move_references(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(rest) = reference.strip_prefix('#')
                && (rest.is_empty() || rest.starts_with('/'))
            {
                *reference = format!("{root}{rest}");
            }
            for (key, value) in map {
                // What is in them is no schema.
                if !matches!(key.as_str(), "const" | "enum" | "default" | "examples") {
                    move_references(value, root);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| move_references(value, root)),
        _ => {}
    }
}
