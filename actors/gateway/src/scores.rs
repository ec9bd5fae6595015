//! Log-probabilities as JSON, in the way that several dialects have in common.

use serde::Serialize;
use serde_json::Value;

use super::answer::{Scored, Spelling};

/// A token and its log-probability, as OpenAI writes them, and Ollama after it.
#[derive(Serialize)]
pub(super) struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl From<Scored> for TokenLogprob {
    fn from(scored: Scored) -> Self {
        let Spelling(bytes) = scored.token;
        Self {
            token: String::from_utf8_lossy(&bytes).into_owned(),
            logprob: finite(scored.logprob),
            bytes,
        }
    }
}

/// JSON has no infinity; OpenAI writes this for "never".
const LEAST_LOGPROB: f32 = -9999.0;

/// A log-probability that JSON can hold.
pub(super) const fn finite(logprob: f32) -> f32 {
    // `max` of a NaN and a number is the number.
    logprob.max(LEAST_LOGPROB)
}

/// A number with the digits that an f32 has, not those of the f64 that it becomes.
pub(super) fn short(number: f32) -> Value {
    number.to_string().parse().map_or(Value::Null, |number: f64| number.into())
}
