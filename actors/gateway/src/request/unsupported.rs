//! Fields that would change the answer and that this server does not know: a request that sets one is
//! refused by name, rather than answered as if it had not.
//!
//! They are OpenAI's, and those of the servers that speak its language (vLLM, SGLang, llama.cpp, LM Studio,
//! OpenRouter, DeepSeek, Mistral, Ollama, text-generation-webui). A value that asks for nothing is accepted,
//! since clients write all the fields that they know. What changes nothing in an answer (`service_tier`,
//! `prediction`, `prompt_cache_key`, `cache_salt`, `priority`, ...) is ignored, as
//! unknown fields are.

use serde_json::Value;

use super::Endpoint;
use super::fields::{Fields, is_empty};
use crate::error::ApiError;

/// Which value of a field asks for what is done anyway.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Usual {
    /// None but what is empty: `false`, `""`, `[]`, `{}`.
    Empty,
    /// This one.
    Flag(bool),
    /// This one, with a point or without.
    Number(f64),
    /// This one.
    Word(&'static str),
    /// A list of nothing but this.
    Only(&'static str),
    /// Nothing at all.
    Never,
}
use Usual::{Empty, Flag, Never, Number, Only, Word};

/// A field, and what may be in it.
pub(crate) type Rule = (&'static str, Usual);

const EITHER: &[Rule] = &[
    ("best_of", Number(1.0)),
    ("echo", Empty),
    // Answers of a certain form.
    ("structural_tag", Empty),
    ("guided_grammar", Empty),
    ("guided_decoding_backend", Empty),
    ("guided_whitespace_pattern", Empty),
    ("json_schema", Empty),
    ("grammar", Empty),
    ("regex", Empty),
    ("ebnf", Empty),
    ("format", Empty),
    // What the model is to think, and whether that is shown.
    ("thinking", Empty),
    ("enable_thinking", Never),
    ("thinking_budget", Empty),
    ("thinking_token_budget", Empty),
    ("reasoning", Empty),
    ("include_reasoning", Flag(true)),
    ("separate_reasoning", Flag(true)),
    ("reasoning_budget", Empty),
    // The prompt.
    ("chat_template", Never),
    ("template", Empty),
    ("system", Empty),
    ("documents", Empty),
    ("truncate_prompt_tokens", Empty),
    ("mm_processor_kwargs", Empty),
    ("image_data", Empty),
    ("images", Empty),
    ("transforms", Empty),
    ("plugins", Empty),
    ("options", Empty),
    // Other weights.
    ("lora", Empty),
    ("lora_path", Empty),
    ("lora_request", Empty),
    ("adapter", Empty),
    ("adapter_id", Empty),
    // How tokens are chosen.
    ("use_beam_search", Empty),
    ("length_penalty", Number(1.0)),
    ("early_stopping", Empty),
    ("min_tokens", Number(0.0)),
    ("min_new_tokens", Number(0.0)),
    ("allowed_token_ids", Empty),
    ("bad_words", Empty),
    ("logits_processors", Empty),
    ("custom_logit_processor", Empty),
    ("custom_params", Empty),
    ("vllm_xargs", Empty),
    ("no_repeat_ngram_size", Number(0.0)),
    ("encoder_repetition_penalty", Number(1.0)),
    ("typical_p", Number(1.0)),
    ("tfs", Number(1.0)),
    ("tfs_z", Number(1.0)),
    ("top_a", Number(0.0)),
    ("top_n_sigma", Number(-1.0)),
    ("epsilon_cutoff", Number(0.0)),
    ("eta_cutoff", Number(0.0)),
    ("mirostat", Number(0.0)),
    ("mirostat_mode", Number(0.0)),
    ("dynatemp_range", Number(0.0)),
    ("dynamic_temperature", Empty),
    ("smoothing_factor", Number(0.0)),
    ("dry_multiplier", Number(0.0)),
    ("xtc_probability", Number(0.0)),
    ("penalty_alpha", Number(0.0)),
    ("guidance_scale", Number(1.0)),
    ("negative_prompt", Empty),
    // What is shown of the answer.
    ("include_stop_str_in_output", Empty),
    ("skip_special_tokens", Flag(true)),
    ("spaces_between_special_tokens", Flag(true)),
    ("no_stop_trim", Empty),
    ("prompt_logprobs", Never),
    ("return_tokens_as_token_ids", Empty),
    ("logprob_token_ids", Empty),
    // Other names of what this server has.
    ("max_new_tokens", Never),
    ("max_output_tokens", Never),
    ("max_length", Never),
    ("n_predict", Never),
    ("num_predict", Never),
    ("stop_sequences", Empty),
    ("random_seed", Never),
    ("repeat_penalty", Number(1.0)),
];

const CHAT: &[Rule] = &[
    ("functions", Empty),
    ("function_call", Word("none")),
    ("modalities", Only("text")),
    ("audio", Never),
    ("web_search_options", Never),
    ("verbosity", Word("medium")),
    ("add_special_tokens", Empty),
    ("safe_prompt", Empty),
    ("prompt_mode", Empty),
];

const COMPLETION: &[Rule] = &[
    ("suffix", Empty),
    ("add_special_tokens", Flag(true)),
    ("prompt_embeds", Empty),
    ("raw", Empty),
];

/// Refuses what `endpoint` is known to have elsewhere and this server does not.
pub(super) fn refuse(endpoint: Endpoint, fields: &Fields<'_>) -> Result<(), ApiError> {
    let own = match endpoint {
        Endpoint::Chat => CHAT,
        Endpoint::Completion => COMPLETION,
    };
    refuse_by(own, &[], fields, message)
}

/// Refuses what a dialect has in `own`, and what others have but for what is `known` to it.
pub(crate) fn refuse_by(
    own: &[Rule],
    known: &[&str],
    fields: &Fields<'_>,
    message: fn(&str) -> String,
) -> Result<(), ApiError> {
    let others = EITHER.iter().filter(|(key, _)| !known.contains(key));
    for (key, usual) in own.iter().chain(others) {
        if fields.value(key).is_some_and(|value| !usual.admits(value)) {
            return Err(ApiError::invalid(*key, message(key)).coded("unsupported_parameter"));
        }
    }
    Ok(())
}

/// Why `key` is refused, and what to write instead.
pub(crate) fn message(key: &str) -> String {
    let instead = match key {
        "best_of" => return format!("`{key}` has to be 1: use `n`"),
        "chat_template" | "template" => {
            return "chat templates come with the model, never with a request: leave it out"
                .to_owned();
        }
        "max_new_tokens" | "max_output_tokens" | "max_length" | "n_predict" | "num_predict" => {
            "max_tokens"
        }
        "stop_sequences" => "stop",
        "random_seed" => "seed",
        "repeat_penalty" => "repetition_penalty",
        "system" => "messages",
        _ => return format!("`{key}` is not supported by this server: leave it out"),
    };
    format!("`{key}` is not supported by this server: its name here is `{instead}`")
}

impl Usual {
    fn admits(self, value: &Value) -> bool {
        match self {
            Never => false,
            Empty => is_empty(value),
            Flag(usual) => value.as_bool() == Some(usual),
            Number(usual) => value.as_f64() == Some(usual),
            Word(usual) => value == usual,
            Only(usual) => {
                value.as_array().is_some_and(|list| list.iter().all(|entry| entry == usual))
            }
        }
    }
}
