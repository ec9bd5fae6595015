//! What an answer has to be: JSON, JSON of a schema, a match of an expression, one of some texts.

use serde_json::Value;

use super::fields::{Fields, wrong_kind};
use crate::error::ApiError;

/// What an answer has to be, and which field says so.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    /// The field.
    pub(crate) field: &'static str,
    /// What it says.
    pub(crate) kind: FormKind,
}

/// What an answer has to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FormKind {
    /// A JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Value),
    /// A match of this regular expression, as a whole.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
}

/// Reads all fields that say what the answer has to be: OpenAI's, and vLLM's of former and of these days.
pub(super) fn of(fields: &Fields<'_>) -> Result<Option<Form>, ApiError> {
    let mut forms = Vec::new();
    if let Some(format) = fields.object("response_format")? {
        let kind = response_format(&format)?;
        forms.extend(kind.map(|kind| Form { field: "response_format", kind }));
    }
    forms.extend(words_of_vllm(fields, ["guided_json", "guided_regex", "guided_choice"])?);
    if let Some(structured) = fields.object("structured_outputs")? {
        for key in structured.keys().filter(|key| structured.value(key).is_some()) {
            if !["json", "regex", "choice", "json_object"].contains(&key.as_str()) {
                let message = format!("`structured_outputs.{key}` is not supported by this server");
                let error = ApiError::invalid("structured_outputs", message);
                return Err(error.coded("unsupported_parameter"));
            }
        }
        let read = words_of_vllm(&structured, ["json", "regex", "choice"])?;
        forms.extend(read.into_iter().map(|form| Form { field: "structured_outputs", ..form }));
        if structured.flag("json_object")? == Some(true) {
            forms.push(Form { field: "structured_outputs", kind: FormKind::JsonObject });
        }
    }
    if let [first, second, ..] = forms.as_slice() {
        let message = format!(
            "`{}` and `{}` both say what the answer has to be: leave one of them out",
            first.field, second.field
        );
        return Err(ApiError::invalid(second.field, message));
    }
    Ok(forms.pop())
}

/// Plain completions are constrained by nothing.
pub(super) fn refuse_for_completions(form: Option<&Form>) -> Result<(), ApiError> {
    match form {
        None => Ok(()),
        Some(form) => {
            let message = format!("`{}` is for chats: ask /v1/chat/completions", form.field);
            Err(ApiError::invalid(form.field, message).coded("unsupported_parameter"))
        }
    }
}

/// OpenAI's `response_format`, whose schema is in an object of its own.
fn response_format(format: &Fields<'_>) -> Result<Option<FormKind>, ApiError> {
    kind_of(format, || format.required_object("json_schema"))
}

/// The `format` of OpenAI's responses, which has its schema beside its type.
pub(crate) fn text_format(format: &Fields<'_>) -> Result<Option<FormKind>, ApiError> {
    kind_of(format, || Ok(format.clone()))
}

/// What a format says, with its schema in what `holder` gives.
fn kind_of<'a>(
    format: &Fields<'a>,
    holder: impl FnOnce() -> Result<Fields<'a>, ApiError>,
) -> Result<Option<FormKind>, ApiError> {
    match format.required_text("type")? {
        "text" => Ok(None),
        "json_object" => Ok(Some(FormKind::JsonObject)),
        "json_schema" => {
            let holder = holder()?;
            let schema = schema_of(&holder.path("schema"), holder.required("schema")?)?;
            Ok(Some(FormKind::JsonSchema(schema)))
        }
        _ => {
            let path = format.path("type");
            let message = format!("`{path}` has to be `text`, `json_object` or `json_schema`");
            Err(ApiError::invalid(path, message))
        }
    }
}

/// A schema, which is an object or a truth.
pub(crate) fn schema_of(path: &str, schema: &Value) -> Result<Value, ApiError> {
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(schema.clone()),
        other => Err(wrong_kind(path.to_owned(), other, "a JSON schema")),
    }
}

/// A schema, an expression and a choice, under these names.
fn words_of_vllm(
    fields: &Fields<'_>,
    [json, regex, choice]: [&'static str; 3],
) -> Result<Vec<Form>, ApiError> {
    let mut forms = Vec::new();
    let schema = match fields.value(json) {
        None => None,
        // Some clients send it as text.
        Some(Value::String(text)) => {
            let parsed: Value = serde_json::from_str(text).map_err(|error| {
                let path = fields.path(json);
                ApiError::invalid(&path, format!("`{path}` is not JSON: {error}"))
            })?;
            Some(schema_of(&fields.path(json), &parsed)?)
        }
        Some(schema) => Some(schema_of(&fields.path(json), schema)?),
    };
    forms.extend(schema.map(|schema| Form { field: json, kind: FormKind::JsonSchema(schema) }));
    let expression = fields.text(regex)?.filter(|text| !text.is_empty());
    if let Some(text) = expression {
        forms.push(Form { field: regex, kind: FormKind::Regex(text.to_owned()) });
    }
    let texts = fields.list(choice)?.unwrap_or_default();
    if !texts.is_empty() {
        let path = fields.path(choice);
        let wrong = || {
            ApiError::invalid(
                &path,
                format!("`{path}` has to be a list of texts that are not empty"),
            )
        };
        let texts = texts.iter().map(|text| text.as_str().filter(|text| !text.is_empty()));
        let texts: Option<Vec<_>> = texts.map(|text| text.map(str::to_owned)).collect();
        forms.push(Form { field: choice, kind: FormKind::Choice(texts.ok_or_else(wrong)?) });
    }
    Ok(forms)
}
