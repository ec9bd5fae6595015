//! Why an answer cannot be constrained.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why an answer cannot be constrained as it was asked for. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum GrammarError {
    /// It makes no sense, or nothing can satisfy it.
    #[error("the form of the answer is not valid: {0}")]
    Invalid(String),
    /// It names something that is not supported; ask without it.
    #[error("the form of the answer is not supported: {0}")]
    Unsupported(String),
    /// It would take too much time or memory; ask for something simpler.
    #[error("the form of the answer is too complex: {0}")]
    TooComplex(String),
    /// The model's tokens cannot be used for this; no other form would help.
    #[error("the answers of this model cannot be constrained: {0}")]
    Vocabulary(String),
    /// What was answered so far is not of the form, so nothing can follow.
    #[error("the answer so far is not of the form that was asked for: {0}")]
    OffForm(String),
    /// The form goes on with bytes that no token begins with.
    #[error("no token of the model continues the form of the answer")]
    DeadEnd,
}

impl GrammarError {
    /// The kind of what the compiler complains about, by its words: it has no kinds.
    pub(super) fn of(text: &str) -> Self {
        // After a panic the whole backtrace follows.
        let text = text.split("\n<").next().unwrap_or_default();
        let text = without_places(text);
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let bounded = bounded(&text);
        if says(LIMITS) {
            Self::TooComplex(bounded)
        } else if says(LACKS) {
            Self::Unsupported(bounded)
        } else {
            Self::Invalid(bounded)
        }
    }
}

/// Without places in the text of a grammar and the lines there, which the client has not written and whose words tell no kind.
fn without_places(text: &str) -> String {
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_source = |line: &&str| {
        line.split_once(" | ").is_some_and(|(number, _)| is_digits(number.trim_start()))
    };
    let said: Vec<&str> = text.lines().take_while(|line| !is_source(line)).collect();
    let said = said.join("\n");
    let place = said.strip_prefix("at ").and_then(|rest| rest.split_once(": "));
    let is_place = |place: &str| {
        let numbers = place.strip_suffix(')').and_then(|place| place.split_once('('));
        numbers.is_some_and(|(line, column)| is_digits(line) && is_digits(column))
    };
    match place {
        Some((place, rest)) if is_place(place) => rest.trim().to_owned(),
        _ => said.trim().to_owned(),
    }
}

/// Words for limits that were reached.
const LIMITS: &[&str] = &[
    "too big",
    "too large",
    "too many expressions",
    "too many states",
    "Too many items",
    "items; max is",
    "too deeply nested",
    "too complex",
    "TooComplex",
    "fuel exhausted",
    "stack level exceeded",
    "Unable to determine if regex is empty",
    "can't determine if",
    "nest limit",
    "exceeds the size limit",
    "exceeds the maximum",
    "number of lexemes",
];

/// Words for what it does not have.
const LACKS: &[&str] = &[
    "Unimplemented",
    "nsupported",
    "not supported",
    "only supported",
    "Unknown format",
    "look-around",
    "backreference",
    "too many digits",
    "does not fetch",
    "retriev",
    // Of patterns for names of properties.
    "are not disjoint",
];

/// A message that quotes what a client sent must not be as long as that.
fn bounded(text: &str) -> String {
    const CHARS: usize = 400;
    let mut chars = text.chars();
    let mut bounded: String = chars.by_ref().take(CHARS).collect();
    if chars.next().is_some() {
        bounded.push('…');
    }
    bounded
}
