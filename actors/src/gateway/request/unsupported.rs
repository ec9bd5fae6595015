//! Fields of OpenAI's API that would change the answer and that this server does not know: a
//! request that sets one is refused, rather than answered as if it had not.
//!
//! What changes nothing in the answer (`service_tier`, `prediction`, ...) is ignored, as
//! unknown fields are.

use serde_json::Value;

use super::Endpoint;
use super::fields::Fields;
use crate::gateway::error::ApiError;

/// A field and whether a value of it asks for nothing special.
type Rule = (&'static str, fn(&Value) -> bool);

const ONLY_ONE_ANSWER: Rule = ("n", |value| value.as_u64() == Some(1));

const CHAT: &[Rule] = &[
    ONLY_ONE_ANSWER,
    ("tools", is_empty_list),
    ("tool_choice", |value| value == "none"),
    ("functions", is_empty_list),
    ("function_call", |value| value == "none"),
    ("response_format", |value| value.get("type").is_some_and(|kind| kind == "text")),
    ("modalities", |value| {
        value.as_array().is_some_and(|list| list.iter().all(|modality| modality == "text"))
    }),
    ("audio", never),
    ("web_search_options", never),
    ("reasoning_effort", |value| value == "none"),
    ("verbosity", |value| value == "medium"),
    ("chat_template", never),
];

const COMPLETION: &[Rule] = &[
    ONLY_ONE_ANSWER,
    ("best_of", |value| value.as_u64() == Some(1)),
    ("echo", |value| value == false),
    ("suffix", |value| value == ""),
];

/// Refuses what `endpoint` is known to have and this server does not.
pub(super) fn refuse(endpoint: Endpoint, fields: &Fields<'_>) -> Result<(), ApiError> {
    let rules = match endpoint {
        Endpoint::Chat => CHAT,
        Endpoint::Completion => COMPLETION,
    };
    for (key, asks_for_nothing) in rules {
        let refused = fields.value(key).filter(|value| !asks_for_nothing(value));
        if refused.is_some() {
            let message = match *key {
                "n" | "best_of" => format!("`{key}` has to be 1: each request has one answer"),
                "response_format" => "`response_format` has to be `{\"type\": \"text\"}`: this \
                                      server does not constrain answers"
                    .to_owned(),
                "chat_template" => {
                    "chat templates come with the model, never with a request: leave it out"
                        .to_owned()
                }
                _ => format!("`{key}` is not supported by this server: leave it out"),
            };
            return Err(ApiError::invalid(*key, message).coded("unsupported_parameter"));
        }
    }
    Ok(())
}

fn never(_: &Value) -> bool {
    false
}

fn is_empty_list(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}
