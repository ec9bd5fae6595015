//! The dialects in which requests are made: what is asked in each, and how what comes is put together.
//!
//! All but [`Kind::Tokens`] ask for JSON of a form whose length is known, so that a model that draws its tokens at random
//! gives an answer that can be judged. In a chat and in messages it is the arguments of a call that has to be made.

mod listener;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use listener::Listener;

use crate::history::Ask;

/// How something is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// Tokens that follow those of a prompt.
    Tokens,
    /// A chat, with a tool that has to be called.
    Chat,
    /// The same by the API of Anthropic.
    Messages,
    /// A response that follows a schema.
    Responses,
    /// The same over a WebSocket.
    WebSocket,
    /// A chat by the API of Ollama, whose answer has a format.
    Ollama,
}

/// The only tool.
pub(crate) const TOOL: &str = "visit";

/// Tokens that a place in an answer takes, about: names, quotes, commas and spaces of the demo model's vocabulary.
const TOKENS_PER_CITY: u32 = 10;

/// Tokens that a request may leave room for, where a dialect wants to be told: more than an answer has.
const ROOM: u32 = 600;

/// What is asked for, as a client reads it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trip {
    cities: Vec<City>,
}

/// Only names are read.
#[derive(Debug, Deserialize)]
enum City {
    Oslo,
    Rome,
    Bern,
}

impl Kind {
    /// Of eight requests three are of tokens, and the others of one dialect each.
    pub const MIX: [Self; 8] = [
        Self::Tokens,
        Self::Chat,
        Self::Tokens,
        Self::Messages,
        Self::Responses,
        Self::Tokens,
        Self::WebSocket,
        Self::Ollama,
    ];

    /// Whether tokens are seen as they come. A call comes whole at its end: when its tokens came cannot be told from
    /// outside.
    #[must_use]
    pub const fn comes_in_pieces(self) -> bool {
        !matches!(self, Self::Chat | Self::Messages)
    }

    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Tokens => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
            Self::Messages => "/v1/messages",
            Self::Responses | Self::WebSocket => "/v1/responses",
            Self::Ollama => "/api/chat",
        }
    }
}

impl Ask {
    /// The request for a stream.
    pub(crate) fn body(&self) -> Value {
        let (model, seed) = (&self.model, self.seed);
        let temperature = if self.draws { 0.9 } else { 0.0 };
        let messages = || json!([{"role": "user", "content": self.words()}]);
        match self.kind {
            Kind::Tokens => json!({
                "model": model, "prompt": self.prompt, "max_tokens": self.tokens,
                "temperature": temperature, "seed": seed, "ignore_eos": true, "return_token_ids": true,
                "stream": true, "stream_options": {"include_usage": true},
            }),
            Kind::Chat => json!({
                "model": model, "messages": messages(), "temperature": temperature, "seed": seed,
                "tools": [{"type": "function", "function": {"name": TOOL, "parameters": self.schema()}}],
                "tool_choice": "required", "parallel_tool_calls": false,
                "stream": true, "stream_options": {"include_usage": true},
            }),
            Kind::Messages => json!({
                "model": model, "messages": messages(), "temperature": temperature, "seed": seed,
                "max_tokens": ROOM, "tools": [{"name": TOOL, "input_schema": self.schema()}],
                "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "stream": true,
            }),
            // `type` belongs to messages of a WebSocket, and `stream` to bodies: each means nothing to the other.
            Kind::Responses | Kind::WebSocket => json!({
                "type": "response.create", "stream": true, "model": model, "input": self.words(), "temperature": temperature, "seed": seed,
                "text": {"format": {"type": "json_schema", "name": "trip", "schema": self.schema()}},
                // A node whose disk takes nothing answers all the same.
                "store": false,
            }),
            Kind::Ollama => json!({
                "model": model, "messages": messages(), "format": self.schema(),
                "options": {"temperature": temperature, "seed": seed}, "stream": true,
            }),
        }
    }

    /// What JSON of an answer lacks of what was asked for.
    #[must_use]
    pub fn wanting(&self, text: &str) -> Option<String> {
        match serde_json::from_str::<Trip>(text) {
            Err(error) => Some(error.to_string()),
            Ok(trip) if trip.cities.len() != self.cities() => {
                Some(format!("{} cities in place of {}", trip.cities.len(), self.cities()))
            }
            Ok(_) => None,
        }
    }

    fn cities(&self) -> usize {
        (self.tokens / TOKENS_PER_CITY).max(1) as usize
    }

    fn schema(&self) -> Value {
        let cities = self.cities();
        json!({
            "type": "object",
            "properties": {"cities": {
                "type": "array", "items": {"enum": ["Oslo", "Rome", "Bern"]},
                "minItems": cities, "maxItems": cities,
            }},
            "required": ["cities"],
            "additionalProperties": false,
        })
    }

    /// A letter for every second token of the prompt: the schema has to have room beside it.
    fn words(&self) -> String {
        let letters = self.prompt.iter().step_by(2);
        letters.filter_map(|id| char::from_digit(10 + id % 26, 36)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: Kind) -> Ask {
        let prompt = (10..20).collect();
        Ask { kind, model: "m".to_owned(), prompt, draws: true, seed: 7, tokens: 20 }
    }

    #[test]
    fn every_dialect_is_asked_with_its_seed() {
        for kind in Kind::MIX {
            let body = ask(kind).body();
            let at = if kind == Kind::Ollama { "/options/seed" } else { "/seed" };
            assert_eq!(body.pointer(at), Some(&json!(7)), "{kind:?}");
            assert_eq!(body.pointer("/ignore_eos").is_some(), kind == Kind::Tokens, "{kind:?}");
        }
    }

    #[test]
    fn json_that_lacks_something_is_found() {
        let ask = ask(Kind::Chat);
        assert_eq!(ask.wanting(r#"{"cities": ["Oslo", "Rome"]}"#), None);
        for wrong in [
            r#"{"cities": ["Oslo", "Rome"]"#,
            r#"{"cities": ["Oslo"]}"#,
            r#"{"cities": ["Oslo", "Paris"]}"#,
            r#"{"cities": ["Oslo", "Rome"], "more": 1}"#,
            r#"{"cities": ["Oslo", "Rome"]}{}"#,
            "{}",
            "",
        ] {
            assert!(ask.wanting(wrong).is_some(), "{wrong}");
        }
    }
}
