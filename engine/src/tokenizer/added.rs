//! Tokens that `tokenizer_config.json` adds to those of the tokenizer's own file.
//!
//! Whoever makes a model for chats of one that completes texts gives names to tokens that it has
//! already, and often writes them into `tokenizer_config.json` only. Read as plain text, such a
//! marker would be several tokens that the model has never seen there. Hugging Face's loader adds
//! them to the tokenizer, and so does this.

use serde_json::Value;
use tokenizers::AddedToken;

use super::parts::Inner;
use super::settings::TokenizerSettings;
use super::source::Format;
use super::{TokenizerError, guarded};
use crate::model_dir::ModelError;

const DECODER: &str = "added_tokens_decoder";
/// Lists of special tokens, as transformers 4 and 5 call them.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// Adds what the settings say to a tokenizer.
///
/// # Errors
/// When a token is to have another id than it has.
pub(super) fn add(
    tokenizer: &mut Inner,
    settings: &TokenizerSettings,
    format: Format,
) -> Result<(), ModelError> {
    let section = settings.section();
    let failed = |key: &str, error: TokenizerError| section.problem(key, error.to_string());
    for (id, key, token) in declared(settings)? {
        let content = token.content.clone();
        if !is_known(tokenizer, id, &token, format) {
            guarded(|| tokenizer.add_tokens([token])).map_err(|error| failed(DECODER, error))?;
        }
        let found = tokenizer.token_to_id(&content);
        if found != Some(id) {
            let problem = match found {
                Some(found) => format!("is the token {found} in {}", format.file_name()),
                None => "is no token".to_owned(),
            };
            return Err(section.problem(&format!("{DECODER}.{key}"), problem));
        }
    }
    let mut special: Vec<AddedToken> =
        settings.special_tokens().values().map(|text| AddedToken::from(text, true)).collect();
    for list in LISTS {
        // Transformers 5 also has names for them.
        let values: Vec<&Value> = match section.value(list) {
            Some(Value::Array(list)) => list.iter().collect(),
            Some(Value::Object(map)) => map.values().collect(),
            _ => Vec::new(),
        };
        special.extend(
            values
                .into_iter()
                .filter_map(token_of)
                .map(|token| AddedToken { special: true, ..token }),
        );
    }
    // One that the model has no id for would have to be an id beyond those of the model.
    special.retain(|token| {
        let id = tokenizer.token_to_id(&token.content);
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        id.is_some_and(|id| !added.contains_key(&id))
    });
    guarded(|| tokenizer.add_tokens(special)).map_err(|error| failed("eos_token", error))?;
    Ok(())
}

/// Whether a token was added already. Pieces that are user-defined stay as they are: sentencepiece finds them in
/// normalized texts, whatever the settings say, unless these make them special.
fn is_known(tokenizer: &Inner, id: u32, token: &AddedToken, format: Format) -> bool {
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let normalized = format == Format::SentencePiece && !token.special;
    let token = token.clone();
    let token = if normalized { token.normalized(true) } else { token };
    added.get(&id) == Some(&token)
}

/// The ids and tokens of `added_tokens_decoder` with the keys that they have there, by id.
///
/// # Errors
/// When one of them is none.
pub(super) fn declared(
    settings: &TokenizerSettings,
) -> Result<Vec<(u32, &str, AddedToken)>, ModelError> {
    let section = settings.section();
    let Some(decoder) = section.section(DECODER)? else {
        return Ok(Vec::new());
    };
    let mut declared = Vec::new();
    for (key, value) in decoder.entries() {
        let id: u32 = key.parse().map_err(|_| decoder.problem(key, "is no token id"))?;
        let token = token_of(value)
            .ok_or_else(|| decoder.problem(key, "is no token: it has no `content`"))?;
        declared.push((id, key.as_str(), token));
    }
    declared.sort_by_key(|(id, ..)| *id);
    Ok(declared)
}

/// A token as text or as an object with `content`.
fn token_of(value: &Value) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return (!text.is_empty()).then(|| AddedToken::from(text, true));
    }
    let content = value.get("content")?.as_str().filter(|content| !content.is_empty())?;
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}
