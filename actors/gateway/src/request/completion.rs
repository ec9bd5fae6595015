//! The prompt of a plain completion.

use serde_json::Value;

use super::Prompt;
use super::fields::{Fields, wrong_kind};
use crate::error::ApiError;

const WANTED: &str = "a text, a list of token ids, or a list with one of either";

/// Reads `prompt`: OpenAI takes several at once, this server one.
pub(super) fn prompt(fields: &Fields<'_>) -> Result<Prompt, ApiError> {
    match fields.required("prompt")? {
        Value::Array(list) => match list.as_slice() {
            [Value::String(text)] => Ok(Prompt::Text(text.clone())),
            [Value::Array(ids)] => token_ids(ids),
            [Value::String(_) | Value::Array(_), ..] => Err(ApiError::invalid(
                "prompt",
                "`prompt` has several prompts: send one request for each",
            )),
            ids => token_ids(ids),
        },
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        other => Err(wrong_kind("prompt".to_owned(), other, WANTED)),
    }
}

fn token_ids(list: &[Value]) -> Result<Prompt, ApiError> {
    list.iter()
        .map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect::<Option<_>>()
        .map(Prompt::Tokens)
        .ok_or_else(|| ApiError::invalid("prompt", format!("`prompt` has to be {WANTED}")))
}
