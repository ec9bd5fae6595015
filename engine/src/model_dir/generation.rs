//! `generation_config.json`: how answers are to be sampled where a request is silent, and where they
//! end.

use std::path::Path;

use super::json::{Section, brief, parse_object, read_bounded};
use super::{MAX_CONFIG_BYTES, ModelError};

/// How a model wants to be sampled where a request is silent; values that cannot be are as absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerationDefaults {
    /// 1 where the file is silent, as OpenAI has it; 0 where it says not to sample.
    pub temperature: f32,
    /// 0, which keeps all, where the file is silent.
    pub top_k: u32,
    /// 1, which keeps all, where the file is silent.
    pub top_p: f32,
    /// 0, which keeps all, where the file is silent.
    pub min_p: f32,
    /// 1, which is off, where the file is silent.
    pub repetition_penalty: f32,
}

impl Default for GenerationDefaults {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct Generation {
    pub(super) defaults: GenerationDefaults,
    /// May be empty.
    pub(super) eos_token_ids: Vec<u32>,
}

impl Generation {
    /// Reads the file of a folder, if there is one. `warnings` takes what it asks for in vain.
    pub(super) fn open(folder: &Path, warnings: &mut Vec<String>) -> Result<Self, ModelError> {
        let file = folder.join(NAME);
        if !file.exists() {
            return Ok(Self::default());
        }
        let json = parse_object(&file, &read_bounded(&file, MAX_CONFIG_BYTES)?)?;
        let root = Section::root(&file, &json);
        Ok(Self {
            defaults: GenerationDefaults::read(&root, warnings),
            eos_token_ids: root.token_ids("eos_token_id")?,
        })
    }
}

const NAME: &str = "generation_config.json";

impl GenerationDefaults {
    fn read(root: &Section<'_>, warnings: &mut Vec<String>) -> Self {
        let mut passed_over = |key: &str, why: &str| {
            if let Some(value) = root.value(key) {
                let value = brief(value);
                warnings.push(format!("{NAME}: `{key}` is {value}, which {why}"));
            }
        };
        let mut number = |key: &str, low: f32, high: f32, default: f32| {
            root.optional_number(key, low..=high)
                .unwrap_or_else(|_| {
                    passed_over(key, CANNOT_BE);
                    None
                })
                .unwrap_or(default)
        };
        let default = Self::default();
        let mut defaults = Self {
            temperature: number("temperature", 0.0, 2.0, default.temperature),
            top_k: default.top_k,
            top_p: number("top_p", 0.0, 1.0, default.top_p),
            min_p: number("min_p", 0.0, 1.0, default.min_p),
            repetition_penalty: number(
                "repetition_penalty",
                0.01,
                10.0,
                default.repetition_penalty,
            ),
        };
        match root.value("top_k").map(serde_json::Value::as_i64) {
            None => {}
            // Transformers' own way to say "all" is 0, others say -1.
            Some(Some(-1)) => {}
            Some(top_k) => match top_k.and_then(|k| u32::try_from(k).ok()) {
                Some(top_k) => defaults.top_k = top_k,
                None => passed_over("top_k", CANNOT_BE),
            },
        }
        match root.flag("do_sample", true) {
            Ok(true) => {}
            Ok(false) => defaults.temperature = 0.0,
            Err(_) => passed_over("do_sample", CANNOT_BE),
        }
        for (key, idle) in NOT_HONOURED {
            let is_idle = root.value(key).is_none_or(|value| {
                let is_empty = value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(serde_json::Map::is_empty);
                value.as_f64() == Some(*idle) || value == false || is_empty
            });
            if !is_idle {
                passed_over(key, "is not supported here and was passed over");
            }
        }
        defaults
    }
}

const CANNOT_BE: &str = "cannot be and was passed over";

/// What else changes tokens, with the number that changes none.
const NOT_HONOURED: &[(&str, f64)] = &[
    ("bad_words_ids", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("constraints", 0.0),
    ("dola_layers", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("force_words_ids", 0.0),
    ("forced_bos_token_id", -1.0),
    ("forced_decoder_ids", 0.0),
    ("forced_eos_token_id", -1.0),
    ("frequency_penalty", 0.0),
    ("guidance_scale", 1.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("num_beam_groups", 1.0),
    ("num_beams", 1.0),
    ("penalty_alpha", 0.0),
    ("presence_penalty", 0.0),
    ("sequence_bias", 0.0),
    ("stop_strings", 0.0),
    ("suppress_tokens", 0.0),
    ("top_h", 0.0),
    ("typical_p", 1.0),
    ("watermarking_config", 0.0),
];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: Value) -> (GenerationDefaults, Vec<String>) {
        let Value::Object(map) = json else { panic!("{json}") };
        let mut warnings = Vec::new();
        let root = Section::root(Path::new(NAME), &map);
        (GenerationDefaults::read(&root, &mut warnings), warnings)
    }

    #[test]
    fn defaults_that_cannot_be_are_as_absent_and_named() {
        let odd = json!({
            "temperature": -1, "top_k": -1, "top_p": null, "min_p": 7, "do_sample": 1,
            "repetition_penalty": "much",
        });
        let (defaults, warnings) = read(odd);
        assert_eq!(defaults, GenerationDefaults::default());
        let named = |key: &str| warnings.iter().any(|warning| warning.contains(key));
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        for key in ["temperature", "min_p", "do_sample", "repetition_penalty"] {
            assert!(named(&format!("generation_config.json: `{key}` is ")), "{warnings:?}");
        }
        let usual = json!({"temperature": 0.6, "top_p": 0.9, "top_k": 50, "do_sample": true});
        let (usual, warnings) = read(usual);
        assert_eq!((usual.temperature, usual.top_p, usual.top_k), (0.6, 0.9, 50));
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn a_model_that_is_not_to_be_sampled_is_greedy() {
        let (greedy, warnings) = read(json!({"do_sample": false, "temperature": 0.6}));
        assert_eq!(greedy.temperature, 0.0);
        assert!(warnings.is_empty());
    }

    #[test]
    fn what_changes_tokens_and_is_not_supported_is_named() {
        let idle = json!({
            "num_beams": 1, "no_repeat_ngram_size": 0, "bad_words_ids": [], "typical_p": 1.0,
            "suppress_tokens": null, "transformers_version": "5.24.0",
        });
        assert!(read(idle).1.is_empty());
        let (_, warnings) = read(json!({"num_beams": 4, "stop_strings": ["x"], "min_length": 5}));
        assert_eq!(
            warnings,
            [
                "generation_config.json: `min_length` is 5, which is not supported here and was \
                 passed over",
                "generation_config.json: `num_beams` is 4, which is not supported here and was \
                 passed over",
                "generation_config.json: `stop_strings` is a list, which is not supported here and \
                 was passed over",
            ]
        );
    }
}
