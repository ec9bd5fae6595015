//! How to sample, as a request says it and as the model's defaults complete it.

use planaria_engine::sampler::{InvalidParam, InvalidParams, SamplingParams};
use serde_json::Value;

use super::Endpoint;
use super::fields::Fields;
use crate::error::ApiError;
use crate::served::ServedModel;

/// What the request says; what it leaves open is `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct SamplingAsked {
    /// What the field for log-probabilities is called.
    logprobs_field: &'static str,
    /// 0 is greedy.
    pub(crate) temperature: Option<f32>,
    /// Keep so many; 0 keeps all.
    pub(crate) top_k: Option<u32>,
    /// Keep so much probability.
    pub(crate) top_p: Option<f32>,
    /// Least share of the likeliest.
    pub(crate) min_p: Option<f32>,
    /// See [`SamplingParams`].
    pub(crate) presence_penalty: Option<f32>,
    /// See [`SamplingParams`].
    pub(crate) frequency_penalty: Option<f32>,
    /// See [`SamplingParams`].
    pub(crate) repetition_penalty: Option<f32>,
    /// See [`SamplingParams`].
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Key of the draws.
    pub(crate) seed: Option<u64>,
    /// Log-probabilities to tell.
    pub(crate) top_logprobs: Option<u8>,
}

impl SamplingAsked {
    pub(super) fn parse(endpoint: Endpoint, fields: &Fields<'_>) -> Result<Self, ApiError> {
        match endpoint {
            Endpoint::Chat => Self::with(fields, "top_logprobs", chat_logprobs(fields)?),
            Endpoint::Completion => Self::with(fields, "logprobs", count(fields, "logprobs")?),
        }
    }

    /// Reads all fields but those for log-probabilities, of which the one that counts them is called
    /// `logprobs_field`.
    pub(crate) fn with(
        fields: &Fields<'_>,
        logprobs_field: &'static str,
        top_logprobs: Option<u8>,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            logprobs_field,
            temperature: fields.number("temperature")?,
            top_k: top_k(fields)?,
            top_p: fields.number("top_p")?,
            min_p: fields.number("min_p")?,
            presence_penalty: fields.number("presence_penalty")?,
            frequency_penalty: fields.number("frequency_penalty")?,
            repetition_penalty: fields.number("repetition_penalty")?,
            logit_bias: logit_bias(fields)?,
            seed: seed(fields)?,
            top_logprobs,
        })
    }

    pub(super) const fn wants_logprobs(&self) -> bool {
        self.top_logprobs.is_some()
    }

    /// Puts the model's defaults where the request is silent, and `draw` where it has no seed. The
    /// length of the prompt is still to come.
    pub(super) fn resolve(
        self,
        model: &ServedModel,
        draw: u64,
    ) -> Result<SamplingParams, ApiError> {
        let defaults = &model.defaults;
        let top_p = self.top_p.unwrap_or(defaults.top_p);
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            // OpenAI allows 0; the likeliest token always stays, so this means the same.
            top_p: if top_p == 0.0 { f32::MIN_POSITIVE } else { top_p },
            min_p: self.min_p.unwrap_or(defaults.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            logit_bias: self.logit_bias,
            seed: self.seed.unwrap_or(draw),
            top_logprobs: self.top_logprobs,
            prompt_tokens: 0,
            constraint: None,
        };
        match params.validate(model.vocab) {
            Ok(()) => Ok(params),
            Err(InvalidParams(mistakes)) => Err(refused(self.logprobs_field, &mistakes)),
        }
    }
}

/// The first mistake; a client mends one at a time, and `param` holds one.
fn refused(logprobs_field: &'static str, mistakes: &[InvalidParam]) -> ApiError {
    let Some(InvalidParam { param, problem }) = mistakes.first() else {
        return ApiError::malformed("the sampling parameters are not valid");
    };
    let param = if *param == "top_logprobs" { logprobs_field } else { param };
    ApiError::invalid(param, format!("`{param}` {problem}"))
}

/// 0 and -1 (vLLM's way to say it) keep all tokens.
fn top_k(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    if fields.value("top_k").and_then(Value::as_i64) == Some(-1) {
        return Ok(Some(0));
    }
    fields.whole("top_k", 0..=u32::MAX)
}

/// Any 64-bit number, with or without a sign.
fn seed(fields: &Fields<'_>) -> Result<Option<u64>, ApiError> {
    fields.parsed("seed", "a whole number of 64 bits", |value| {
        let signed = || value.as_i64().map(i64::cast_unsigned);
        value.as_u64().or_else(signed)
    })
}

fn chat_logprobs(fields: &Fields<'_>) -> Result<Option<u8>, ApiError> {
    let top = count(fields, "top_logprobs")?;
    match (fields.flag("logprobs")?, top) {
        (Some(true), top) => Ok(Some(top.unwrap_or(0))),
        (_, None | Some(0)) => Ok(None),
        (_, Some(_)) => Err(ApiError::invalid(
            "top_logprobs",
            "`top_logprobs` needs `logprobs: true` beside it",
        )),
    }
}

/// The sampler knows how many are too many, beyond what fits.
pub(crate) fn count(fields: &Fields<'_>, key: &str) -> Result<Option<u8>, ApiError> {
    fields.parsed(key, "a small whole number", |value| {
        value.as_u64().and_then(|number| u8::try_from(number).ok())
    })
}

fn logit_bias(fields: &Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(biases) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let bias = |key: &String| {
        let id = key.parse().map_err(|_| {
            let message = "the keys of `logit_bias` have to be token ids, written as texts";
            ApiError::invalid("logit_bias", message)
        })?;
        Ok((id, biases.number(key)?.unwrap_or(0.0)))
    };
    biases.keys().map(bias).collect()
}
