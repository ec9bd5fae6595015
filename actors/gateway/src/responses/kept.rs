//! What is kept of a response on disk beside its tokens, and the response that comes of both again. Pure.
//!
//! Kept is what the request says, with its whole conversation, so that a response needs no other to be gone on with.
//! What the model put out is not kept: it follows from the tokens, as do the events, with their numbers.

use std::sync::Arc;

use planaria_config::SequenceId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::items;
use super::memory::Entry;
use super::reply::{Asked, Reply};
use super::request::Told;
use crate::answer::{Counts, Finish, Piece};
use crate::error::ApiError;
use crate::stored_answers::{Outcome, Record};

/// Begins the names of responses.
const PREFIX: &str = "resp_";

/// The name of the response that is stored under `key`.
pub(crate) fn name_of(key: SequenceId) -> String {
    format!("{PREFIX}{key}")
}

/// Where the response of this name is stored, if it is.
pub(super) fn key_of(name: &str) -> Option<SequenceId> {
    let digits = name.strip_prefix(PREFIX).filter(|digits| {
        digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    u128::from_str_radix(digits?, 16).ok().map(SequenceId::from_bits)
}

/// The response that has put out the item of this name, if that is how its items are named.
pub(super) fn source_of(item: &str) -> Option<String> {
    let (_, digits) = item.split_once('_')?;
    let name = format!("{PREFIX}{}", digits.get(..32)?);
    (digits.len() == 36 && key_of(&name).is_some()).then_some(name)
}

#[derive(Serialize, Deserialize)]
struct Text<F, I> {
    created: u64,
    background: bool,
    carries_reasoning: bool,
    /// The numbers that the request left open.
    numbers: Vec<(String, f32)>,
    fields: F,
    input: I,
}

/// What is kept of a response that is to be computed, with the numbers that its request left open.
pub(super) fn text(told: &Told, created: u64, numbers: &[(&str, f32)]) -> String {
    let text = Text {
        created,
        background: told.is_background,
        carries_reasoning: told.asked.carries_reasoning,
        numbers: numbers.iter().map(|(key, number)| ((*key).to_owned(), *number)).collect(),
        fields: &told.asked.fields,
        input: told.input.iter().map(|item| &item.value).collect::<Vec<_>>(),
    };
    // JSON has a form for all that is in there.
    serde_json::to_string(&text).unwrap_or_default()
}

/// What is stored of a response.
#[derive(Debug)]
pub(super) struct Stored {
    /// Its name on disk.
    pub(super) key: SequenceId,
    /// What was asked, and what became of it.
    pub(super) record: Record,
    /// What is kept beside its tokens.
    pub(super) beside: String,
    /// Tokens of its prompt.
    pub(super) prompt: usize,
    /// What its tokens say, step by step.
    pub(super) pieces: Vec<Piece>,
    /// How that ends, if it does.
    pub(super) finish: Option<Finish>,
    /// Its tokens.
    pub(super) counts: Counts,
}

/// The response as it is by now, with the events that have told so.
///
/// # Errors
/// When what is kept cannot be read.
pub(super) fn again(stored: Stored) -> Result<Arc<Entry>, ApiError> {
    let Stored { key, record, beside, prompt, pieces, finish, counts } = stored;
    let broken = |error: &str| {
        ApiError::internal(format!("what is stored of the response cannot be read: {error}"))
    };
    let text: Text<Map<String, Value>, Vec<Value>> =
        serde_json::from_str(&beside).map_err(|error| broken(&error.to_string()))?;
    let input = text.input.iter().map(|value| items::of_shown(value).map(Arc::new));
    let input = input.collect::<Result<Vec<_>, _>>().map_err(|error| broken(error.message()))?;
    let asked = Asked { fields: text.fields, carries_reasoning: text.carries_reasoning };
    let reply = Reply::new(asked, name_of(key), text.created);
    // Nobody waits for it, whoever did at first.
    let entry = Entry::new(name_of(key), reply, input, true, true);
    if text.background {
        entry.write(Reply::queued);
    }
    let numbers: Vec<_> = text.numbers.iter().map(|(key, n)| (key.as_str(), *n)).collect();
    entry.fill(&numbers);
    if !text.background || !pieces.is_empty() || finish.is_some() {
        entry.write(|reply| reply.begun(prompt));
    }
    for piece in pieces {
        entry.write(|reply| reply.piece(piece));
    }
    let ended = record.ended.unwrap_or(text.created);
    match (finish, record.outcome) {
        (Some(finish), _) => {
            entry.write(|reply| reply.finished(&finish));
            entry.write(|reply| reply.closing(counts, ended));
        }
        (None, Some(Outcome::Failed { message, code })) => {
            entry.write(|reply| reply.failed_with(&code, &message));
        }
        (None, Some(Outcome::Cancelled)) => entry.cancel(),
        // Of what has ended as it should, something lacks that was written.
        (None, None | Some(Outcome::Finished(_))) => {}
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_what_is_stored_and_back() {
        let key = SequenceId::from_bits(0xab);
        assert_eq!(key_of(&name_of(key)), Some(key));
        let item = format!("msg_{key}0003");
        assert_eq!(source_of(&item), Some(name_of(key)));
        for name in ["resp_", "resp_ab", "chatcmpl-000000000000000000000000000000ab", "\u{e9}"] {
            assert_eq!(key_of(name), None, "{name}");
        }
        for item in [format!("msg_{key}"), format!("msg_{key}00003"), "msg".to_owned()] {
            assert_eq!(source_of(&item), None, "{item}");
        }
    }
}
