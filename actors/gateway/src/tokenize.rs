//! `/tokenize` and `/detokenize`, as vLLM has them: prompts as the tokens that they become, and tokens as text.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use planaria_telemetry::wall_clock::unix_seconds;
use serde::Serialize;
use serde_json::Value;

use super::Shared;
use super::body::Read;
use super::error::ApiError;
use super::preparation::Work;
use super::request::fields::Fields;
use super::request::{Prompt, json_of, model_of};
use crate::served::ServedModel;

/// The answer of `/tokenize`.
#[derive(Serialize)]
pub(super) struct Tokenized {
    count: usize,
    /// Longest sequence of the model, prompt and answer together.
    max_model_len: u32,
    tokens: Vec<u32>,
    /// `null` unless it was asked for.
    token_strs: Option<Vec<String>>,
}

/// The answer of `/detokenize`.
#[derive(Serialize)]
pub(super) struct Detokenized {
    prompt: String,
}

/// `POST /tokenize`
pub(super) async fn tokenize(
    State(shared): State<Shared>,
    Extension(Read { bytes, room }): Extension<Read>,
) -> Result<Json<Tokenized>, ApiError> {
    let length = bytes.len();
    let asked = shared.preparations.run(Work::Parse, length, move || Asked::parse(&bytes)).await?;
    let name = shared.served_name(&asked.model)?;
    let model = shared.words_of(&name).await?;
    let max_model_len = shared.context_of(&name).min(model.max_context);
    let length = asked.text.bytes();
    let work = move || {
        let _until_it_is_read = room;
        let token_strs = asked.token_strs;
        let tokens = asked.tokens(&model)?;
        let text = |token: &u32| model.tokenizer.token_text(*token);
        let token_strs = token_strs.then(|| tokens.iter().map(text).collect());
        Ok(Tokenized { count: tokens.len(), max_model_len, tokens, token_strs })
    };
    Ok(Json(shared.preparations.run(Work::Tokenize, length, work).await?))
}

/// `POST /detokenize`
pub(super) async fn detokenize(
    State(shared): State<Shared>,
    Extension(Read { bytes, room }): Extension<Read>,
) -> Result<Json<Detokenized>, ApiError> {
    let length = bytes.len();
    let parse = move || model_and_tokens(&bytes);
    let (model, tokens) = shared.preparations.run(Work::Parse, length, parse).await?;
    let name = shared.served_name(&model)?;
    let model = shared.words_of(&name).await?;
    let work = move || {
        let _until_it_is_read = room;
        let prompt = text_of(&model, &tokens)?;
        Ok(Detokenized { prompt })
    };
    Ok(Json(shared.preparations.run(Work::Tokenize, length, work).await?))
}

/// A prompt to be tokenized.
struct Asked {
    model: String,
    text: Text,
    token_strs: bool,
}

enum Text {
    /// As it would be answered; which field holds it.
    Prompt(&'static str, Prompt),
    /// Without tokens that the tokenizer adds.
    Bare(String),
}

impl Text {
    fn bytes(&self) -> usize {
        match self {
            Self::Prompt(_, prompt) => prompt.bytes(),
            Self::Bare(text) => text.len(),
        }
    }
}

impl Asked {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let body = json_of(body)?;
        let fields = Fields::of(String::new(), &body)?;
        let model = model_of(&fields)?;
        let token_strs = fields.flag("return_token_strs")?.unwrap_or(false);
        let adds = fields.flag("add_special_tokens")?;
        let text = match (fields.value("messages").is_some(), fields.text("prompt")?) {
            (true, Some(_)) => {
                let message = "`prompt` and `messages` are both there: leave one out";
                return Err(ApiError::invalid("prompt", message));
            }
            (true, None) if adds == Some(true) => {
                let message = "chat templates write special tokens themselves: leave \
                               `add_special_tokens` out";
                return Err(ApiError::invalid("add_special_tokens", message));
            }
            (true, None) => {
                refuse_template(&fields)?;
                Text::Prompt("messages", Prompt::of_chat(&fields)?)
            }
            (false, Some(text)) if adds == Some(false) => Text::Bare(text.to_owned()),
            (false, Some(text)) => Text::Prompt("prompt", Prompt::Text(text.to_owned())),
            (false, None) => {
                let message = "`prompt` or `messages` has to be there";
                return Err(ApiError::invalid("prompt", message));
            }
        };
        Ok(Self { model, text, token_strs })
    }

    /// Its tokens, also where they are more than the model's context holds.
    fn tokens(self, model: &Arc<ServedModel>) -> Result<Vec<u32>, ApiError> {
        match self.text {
            Text::Prompt(field, prompt) => {
                let now = i64::try_from(unix_seconds()).unwrap_or(i64::MAX);
                prompt.tokens(field, model, now, u32::MAX)
            }
            Text::Bare(text) => model
                .tokenizer
                .encode_rendered(&text)
                .map_err(|error| ApiError::internal(error.to_string())),
        }
    }
}

fn refuse_template(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.value("chat_template") {
        None => Ok(()),
        Some(_) => {
            let message = "chat templates come with the model, never with a request: leave it out";
            Err(ApiError::invalid("chat_template", message).coded("unsupported_parameter"))
        }
    }
}

fn model_and_tokens(body: &[u8]) -> Result<(String, Vec<u32>), ApiError> {
    let body = json_of(body)?;
    let fields = Fields::of(String::new(), &body)?;
    fields.required("tokens")?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let tokens = fields.list("tokens")?.unwrap_or_default().iter().map(id).collect::<Option<_>>();
    let wrong = || ApiError::invalid("tokens", "`tokens` has to be a list of token ids");
    Ok((model_of(&fields)?, tokens.ok_or_else(wrong)?))
}

fn text_of(model: &ServedModel, tokens: &[u32]) -> Result<String, ApiError> {
    if let Some(id) = tokens.iter().find(|id| **id >= model.vocab) {
        let message =
            format!("`tokens` holds {id}; the model's token ids are below {}", model.vocab);
        return Err(ApiError::invalid("tokens", message));
    }
    let text = model.tokenizer.decode(tokens, false);
    text.map_err(|error| ApiError::internal(error.to_string()))
}
