//! Which sampling parameters make sense.

use std::fmt;

use thiserror::Error;

use super::SamplingParams;
use crate::grammar::Constraint;

/// As in OpenAI's API.
const MAX_TOP_LOGPROBS: u8 = 20;
/// As in OpenAI's API.
const MAX_LOGIT_BIAS: usize = 300;
/// Ten divides every logit by ten: more than that is no penalty but a mistake.
const MAX_REPETITION_PENALTY: f32 = 10.0;
/// The name of what is no parameter of a request by itself.
const CONSTRAINT: &str = "constraint";

/// A sampling parameter outside its range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{param}` {problem}")]
pub struct InvalidParam {
    /// Its name in a request.
    pub param: &'static str,
    /// What is wrong, beginning with "must".
    pub problem: String,
}

/// All mistakes in the parameters of one request; at least one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct InvalidParams(pub Vec<InvalidParam>);

impl fmt::Display for InvalidParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, param) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{param}")?;
        }
        Ok(())
    }
}

impl SamplingParams {
    /// The likeliest token always.
    #[must_use]
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            top_logprobs: None,
            prompt_tokens: 0,
            constraint: None,
        }
    }

    /// Checks every parameter, for a model with `vocab` tokens.
    ///
    /// # Errors
    /// With all mistakes, each naming its parameter.
    pub fn validate(&self, vocab: u32) -> Result<(), InvalidParams> {
        let mut mistakes = Vec::new();
        let mut expect = |holds: bool, param, problem: &str| {
            if !holds {
                mistakes.push(InvalidParam { param, problem: problem.to_owned() });
            }
        };
        // A NaN is in no range, so finite numbers need no check of their own.
        let within = |value: f32, low: f32, high: f32| (low..=high).contains(&value);
        expect(within(self.temperature, 0.0, 2.0), "temperature", "must be from 0 to 2");
        let top_p = self.top_p > 0.0 && self.top_p <= 1.0;
        expect(top_p, "top_p", "must be above 0 and at most 1");
        expect(within(self.min_p, 0.0, 1.0), "min_p", "must be from 0 to 1");
        for (value, param) in [
            (self.presence_penalty, "presence_penalty"),
            (self.frequency_penalty, "frequency_penalty"),
        ] {
            expect(within(value, -2.0, 2.0), param, "must be from -2 to 2");
        }
        let repetition = self.repetition_penalty;
        expect(
            repetition > 0.0 && repetition <= MAX_REPETITION_PENALTY,
            "repetition_penalty",
            &format!("must be above 0 and at most {MAX_REPETITION_PENALTY}"),
        );
        expect(
            self.top_logprobs.is_none_or(|count| count <= MAX_TOP_LOGPROBS),
            "top_logprobs",
            &format!("must be from 0 to {MAX_TOP_LOGPROBS}"),
        );
        expect(
            self.logit_bias.len() <= MAX_LOGIT_BIAS,
            "logit_bias",
            &format!("must have at most {MAX_LOGIT_BIAS} entries"),
        );
        expect(
            self.logit_bias.iter().all(|(_, bias)| within(*bias, -100.0, 100.0)),
            "logit_bias",
            "must have values from -100 to 100",
        );
        expect(
            self.logit_bias.iter().all(|(token, _)| *token < vocab),
            "logit_bias",
            &format!("must name token ids below {vocab}"),
        );
        if let Some(Constraint { ends, thinking, .. }) = self.constraint.as_deref() {
            expect(!ends.is_empty(), CONSTRAINT, "must name a token that ends the answer");
            let markers = thinking.iter().flat_map(|t| t.open.into_iter().chain([t.close]));
            expect(
                ends.iter().copied().chain(markers).all(|token| token < vocab),
                CONSTRAINT,
                &format!("must name token ids below {vocab}"),
            );
        }
        if mistakes.is_empty() { Ok(()) } else { Err(InvalidParams(mistakes)) }
    }
}
