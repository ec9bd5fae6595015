//! `options`: how tokens are chosen, and how the machine is to be used, which is not a client's to say here.

use std::num::NonZeroU32;

use serde_json::Value;

use crate::error::ApiError;
use crate::request::fields::Fields;
use crate::request::sampling::SamplingAsked;
use crate::request::stop;

/// What `options` says.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// How tokens are chosen.
    pub(super) sampling: SamplingAsked,
    /// Most tokens of an answer.
    pub(super) max_tokens: Option<NonZeroU32>,
    /// Texts that end it.
    pub(super) stop: Vec<String>,
}

/// What is read.
const READ: [&str; 11] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "num_predict",
    "stop",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
];

/// What says how a machine is to compute, and nothing about what. The context is as long as the cluster has
/// memory for, and is never shifted.
const MACHINE: [&str; 17] = [
    "num_ctx",
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "num_gqa",
    "numa",
    "low_vram",
    "f16_kv",
    "use_mmap",
    "use_mlock",
    "logits_all",
    "vocab_only",
    "embedding_only",
    // These do nothing while `mirostat` is 0.
    "mirostat_tau",
    "mirostat_eta",
];

/// Numbers that ask for what is done anyway.
const USUAL: [(&str, f64); 3] = [("mirostat", 0.0), ("tfs_z", 1.0), ("typical_p", 1.0)];

impl Options {
    /// Reads the options of a request.
    pub(super) fn of(body: &Fields<'_>) -> Result<Self, ApiError> {
        let Some(options) = body.object("options")? else {
            return Ok(Self::default());
        };
        refuse(&options)?;
        let mut sampling = SamplingAsked::default();
        sampling.temperature = options.number("temperature")?;
        sampling.top_k =
            whole(&options, "top_k")?.map(|k| u32::try_from(k.max(0)).unwrap_or(u32::MAX));
        sampling.top_p = options.number("top_p")?;
        sampling.min_p = options.number("min_p")?;
        sampling.repetition_penalty = options.number("repeat_penalty")?;
        sampling.presence_penalty = options.number("presence_penalty")?;
        sampling.frequency_penalty = options.number("frequency_penalty")?;
        sampling.seed = seed(&options)?;
        look_back(&options, &mut sampling)?;
        // 0, -1 and -2: as many as there is room for.
        let most = whole(&options, "num_predict")?.filter(|most| *most > 0);
        let most = most.map(|most| u32::try_from(most).unwrap_or(u32::MAX));
        Ok(Self {
            sampling,
            max_tokens: most.and_then(NonZeroU32::new),
            stop: stop(&options, "stop")?,
        })
    }
}

fn refuse(options: &Fields<'_>) -> Result<(), ApiError> {
    for key in options.keys() {
        let Some(value) = options.value(key) else { continue };
        let name = key.as_str();
        let usual = USUAL.iter().find(|(known, _)| *known == name);
        let is_known = READ.contains(&name)
            || MACHINE.contains(&name)
            || usual.is_some_and(|(_, usual)| value.as_f64() == Some(*usual))
            || (name == "penalize_newline" && *value == true);
        if !is_known {
            // A name can be as long as a body.
            let name: String = name.chars().take(60).collect();
            let path = options.path(&name);
            let message = format!("`{path}` is not supported by this server: leave it out");
            return Err(ApiError::invalid(path, message).coded("unsupported_parameter"));
        }
    }
    Ok(())
}

/// How far penalties look back: here over the whole sequence, or not at all.
fn look_back(options: &Fields<'_>, sampling: &mut SamplingAsked) -> Result<(), ApiError> {
    let key = "repeat_last_n";
    let is_neutral = sampling.repetition_penalty.unwrap_or(1.0) == 1.0
        && sampling.presence_penalty.unwrap_or(0.0) == 0.0
        && sampling.frequency_penalty.unwrap_or(0.0) == 0.0;
    match whole(options, key)? {
        None | Some(-1) => Ok(()),
        Some(0) => {
            sampling.repetition_penalty = Some(1.0);
            sampling.presence_penalty = Some(0.0);
            sampling.frequency_penalty = Some(0.0);
            Ok(())
        }
        Some(_) if is_neutral => Ok(()),
        Some(tokens) => {
            let path = options.path(key);
            let message = format!(
                "`{path}` is {tokens}; penalties count all tokens here: write -1, or 0 for none"
            );
            Err(ApiError::invalid(path, message).coded("unsupported_parameter"))
        }
    }
}

/// Any number of 64 bits; -1 is none, as Ollama has it.
fn seed(options: &Fields<'_>) -> Result<Option<u64>, ApiError> {
    if let Some(seed) = options.value("seed").and_then(Value::as_u64) {
        return Ok(Some(seed));
    }
    let seed = whole(options, "seed")?.filter(|seed| *seed != -1);
    Ok(seed.map(i64::cast_unsigned))
}

/// A whole number, which some clients write with a point.
fn whole(options: &Fields<'_>, key: &str) -> Result<Option<i64>, ApiError> {
    /// All whole numbers up to here are numbers with a point too.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    options.parsed(key, "a whole number", |value| {
        let exact = || value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= EXACT);
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and not too large")]
        let pointed = || exact().map(|number| number as i64);
        value.as_i64().or_else(pointed)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(options: &Value) -> Result<Options, ApiError> {
        let body = json!({"options": options});
        Options::of(&Fields::of(String::new(), &body)?)
    }

    #[test]
    fn numbers_mean_what_ollama_has_them_mean() {
        let options =
            read(&json!({"seed": -1, "top_k": -1, "num_predict": -1, "stop": "a"})).unwrap();
        assert_eq!((options.sampling.seed, options.sampling.top_k), (None, Some(0)));
        assert_eq!((options.max_tokens, options.stop), (None, vec!["a".to_owned()]));
        let options = read(&json!({"seed": 7.0, "top_k": 40.0, "num_predict": 3.0})).unwrap();
        assert_eq!((options.sampling.seed, options.sampling.top_k), (Some(7), Some(40)));
        assert_eq!(options.max_tokens, NonZeroU32::new(3));
        assert!(
            read(&json!({"num_predict": 1.5})).is_err() && read(&json!({"top_k": "a"})).is_err()
        );
    }

    #[test]
    fn penalties_look_back_over_all_or_nothing() {
        let options = read(&json!({"repeat_penalty": 1.5, "repeat_last_n": 0})).unwrap();
        assert_eq!(options.sampling.repetition_penalty, Some(1.0));
        assert!(read(&json!({"repeat_penalty": 1.5, "repeat_last_n": -1})).is_ok());
        assert!(read(&json!({"repeat_last_n": 64})).is_ok());
        assert!(read(&json!({"presence_penalty": 0.5, "repeat_last_n": 64})).is_err());
    }
}
