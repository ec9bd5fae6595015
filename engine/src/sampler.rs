//! How the next token is chosen.
//!
//! [`sample`] is a function of the logits, the [`SamplingParams`] and the token log, and of nothing
//! else: whoever has the log draws the same token, alone or in a batch, on any node. The steps, in
//! their order:
//!
//! 1. log-probabilities for the answer, from the logits as the model gave them;
//! 2. tokens that a mask forbids (see [`crate::grammar`]) get minus infinity, which nothing below changes;
//! 3. `logit_bias` is added;
//! 4. `repetition_penalty` over all tokens of the log, then `frequency_penalty` and
//!    `presence_penalty` over the generated ones (steps 3 and 4 are ordered as in vLLM);
//! 5. temperature 0: the largest logit wins, the lowest id among equals, and that is all;
//! 6. logits are divided by the temperature;
//! 7. `top_k`, then `top_p` of what is left, then `min_p` (ordered as in Hugging Face's generate);
//! 8. one draw by inverse distribution function over what is left, in the order of ids, with the
//!    number that (`seed`, position) yields.

mod draw;
mod filter;
mod mask;
mod params;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use self::draw::mix;
pub use self::mask::TokenMask;
pub use self::params::{InvalidParam, InvalidParams};
use crate::grammar::Constraint;

/// How to sample a sequence. With the token log it determines every token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probability reaches `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Subtracted once from the logit of every generated token.
    pub presence_penalty: f32,
    /// Subtracted from a generated token's logit as often as it was generated.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of all tokens in the log; 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the random draws, together with the position.
    pub seed: u64,
    /// `Some(n)`: report the log-probability of the chosen token and of the `n` likeliest.
    pub top_logprobs: Option<u8>,
    /// Length of the prompt in tokens: penalties for generated tokens start there.
    pub prompt_tokens: u32,
    /// What the answer has to be; whoever samples has the mask made of it. Builds that do not know it leave it out, so it goes to
    /// none of them (`Feature::Constraints`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Arc<Constraint>>,
}

/// A sampled token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Log-probabilities, when asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural-log probabilities under the model's own distribution (temperature 1, before penalties).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The likeliest tokens, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// No token can be chosen: every logit that the mask leaves is NaN or minus infinity. The model's output is broken, and
/// nothing was changed by asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no token can be sampled: the model's logits are not numbers")]
pub struct NoCandidate;

/// Chooses the token that stands at `position`, after the tokens of `token_log`, among those that
/// `mask` allows, if there is one. Uses `logits` as working space.
///
/// # Errors
/// When no logit is a number above minus infinity. Single NaNs merely never win.
pub fn sample(
    logits: &mut [f32],
    params: &SamplingParams,
    token_log: &[u32],
    position: u32,
    mask: Option<&TokenMask>,
) -> Result<Sampled, NoCandidate> {
    let report = params.top_logprobs.map(|count| RawLogprobs::of(logits, count));
    if let Some(mask) = mask {
        mask.apply(logits);
    }
    adjust(logits, params, token_log);
    let token = if params.temperature > 0.0 {
        let mut candidates = filter::candidates(logits, params.temperature);
        filter::keep(&mut candidates, params);
        draw::choose(&candidates, draw::uniform(params.seed, position))
    } else {
        argmax(logits)
    };
    let token = token.ok_or(NoCandidate)?;
    Ok(Sampled { token, logprobs: report.map(|raw| raw.finish(token)) })
}

/// The index of the largest number, the lowest among equals; NaN and minus infinity never win.
fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = f32::NEG_INFINITY;
    let mut winner = None;
    for (id, logit) in (0..).zip(logits) {
        if *logit > best {
            best = *logit;
            winner = Some(id);
        }
    }
    winner
}

/// Bias and penalties, in place.
fn adjust(logits: &mut [f32], params: &SamplingParams, token_log: &[u32]) {
    let mut change = |token: u32, new: &dyn Fn(f32) -> f32| {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = new(*logit);
        }
    };
    for (token, bias) in &params.logit_bias {
        change(*token, &|logit| logit + bias);
    }
    let repetition = params.repetition_penalty;
    if repetition != 1.0 {
        for token in token_log.iter().collect::<HashSet<_>>() {
            change(*token, &|logit| {
                if logit > 0.0 { logit / repetition } else { logit * repetition }
            });
        }
    }
    if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
        let mut counts: HashMap<u32, f32> = HashMap::new();
        for token in token_log.iter().skip(params.prompt_tokens as usize) {
            *counts.entry(*token).or_default() += 1.0;
        }
        for (token, count) in counts {
            let penalty = params.frequency_penalty * count + params.presence_penalty;
            change(token, &|logit| logit - penalty);
        }
    }
}

/// Log-probabilities before anything is changed; the chosen token is looked up afterwards.
struct RawLogprobs {
    raw: Vec<f32>,
    /// Logarithm of the sum of all exponentials.
    log_total: f32,
    top: u8,
}

impl RawLogprobs {
    fn of(logits: &[f32], top: u8) -> Self {
        let largest = logits.iter().copied().filter(|l| !l.is_nan()).fold(f32::MIN, f32::max);
        let largest = largest.min(f32::MAX);
        let numbers = logits.iter().filter(|logit| !logit.is_nan());
        let total: f64 = numbers.map(|l| f64::from(l.min(f32::MAX) - largest).exp()).sum();
        #[expect(clippy::cast_possible_truncation, reason = "reported as f32")]
        let log_total = (f64::from(largest) + total.ln()) as f32;
        Self { raw: logits.to_vec(), log_total, top }
    }

    fn finish(self, chosen: u32) -> Logprobs {
        let chosen = self.raw.get(chosen as usize).map_or(LOWEST_LOGPROB, |l| self.logprob(*l));
        let mut ranked: Vec<(u32, f32)> =
            (0..).zip(&self.raw).filter(|(_, l)| !l.is_nan()).map(|(id, l)| (id, *l)).collect();
        filter::keep_largest(&mut ranked, usize::from(self.top));
        ranked.sort_by(filter::likelier_first);
        let top = ranked.into_iter().map(|(id, logit)| (id, self.logprob(logit))).collect();
        Logprobs { chosen, top }
    }

    fn logprob(&self, logit: f32) -> f32 {
        let logprob = logit.min(f32::MAX) - self.log_total;
        if logprob.is_nan() { LOWEST_LOGPROB } else { logprob.clamp(LOWEST_LOGPROB, 0.0) }
    }
}

/// What OpenAI reports for a token that cannot come; minus infinity is no JSON number.
const LOWEST_LOGPROB: f32 = -9999.0;
