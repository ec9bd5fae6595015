//! From logits to tokens.

use mlx_rs::Array;
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis};
use mlx_rs::transforms::eval;
use planaria_engine::sampler::{NoCandidate, Sampled, SamplingParams, TokenMask, sample};
use planaria_engine::stage::SegmentError;

use super::Mlx;
use super::error::StepError;

/// The sequence that a row of logits belongs to.
pub(super) struct Chooser<'a> {
    pub(super) params: &'a SamplingParams,
    /// Its tokens so far.
    pub(super) tokens: &'a [u32],
    /// Which tokens may come, if not all may, or why none can be chosen.
    pub(super) mask: Result<Option<TokenMask>, SegmentError>,
}

impl Chooser<'_> {
    /// Whether the token with the largest logit is the whole answer.
    fn is_argmax(&self) -> bool {
        matches!(self.mask, Ok(None)) && is_argmax(self.params)
    }
}

/// Chooses a token for each row of `logits [rows, vocab]`, and evaluates `also` with them.
///
/// Where the largest logit wins and nothing else is asked, only its id leaves the device.
pub(super) fn choose(
    logits: &Array,
    choosers: &[Chooser<'_>],
    also: &[&Array],
) -> Result<Vec<Result<Sampled, SegmentError>>, StepError> {
    let total = logits.logsumexp_axis(-1, true)?;
    // In the model's own type, as mlx-lm has it: at 16 bits the rounding decides between rivals.
    let logprobs = logits.subtract(&total)?;
    let totals = total.as_type::<f32>()?;
    let likeliest = argmax_axis(&logprobs, -1, false)?;
    let rows = choosers.iter().zip(0..).map(|(chooser, row)| {
        // Penalties that multiply need to know where 0 is; everything else works on differences.
        let scores = if chooser.params.repetition_penalty == 1.0 { &logprobs } else { logits };
        (!chooser.is_argmax()).then(|| numbers(scores, row)).transpose()
    });
    let rows = rows.collect::<Mlx<Vec<Option<Array>>>>()?;
    eval(
        [&totals, &likeliest].into_iter().chain(rows.iter().flatten()).chain(also.iter().copied()),
    )?;

    let totals = totals.try_as_slice::<f32>()?;
    let likeliest = likeliest.try_as_slice::<u32>()?;
    let mut chosen = Vec::with_capacity(choosers.len());
    for (((chooser, row), total), token) in choosers.iter().zip(&rows).zip(totals).zip(likeliest) {
        chosen.push(match (row, &chooser.mask) {
            (_, Err(error)) => Err(error.clone()),
            // Some logit is not a number, or none is above minus infinity.
            _ if !total.is_finite() => Err(no_candidate(NoCandidate)),
            (None, _) => Ok(Sampled { token: *token, logprobs: None }),
            (Some(row), Ok(mask)) => {
                let mut scores = row.try_as_slice::<f32>()?.to_vec();
                // A log fits the context, which is a u32.
                let position = u32::try_from(chooser.tokens.len()).unwrap_or(u32::MAX);
                let (params, tokens, mask) = (chooser.params, chooser.tokens, mask.as_ref());
                sample(&mut scores, params, tokens, position, mask).map_err(no_candidate)
            }
        });
    }
    Ok(chosen)
}

fn no_candidate(error: NoCandidate) -> SegmentError {
    SegmentError::Malformed(error.to_string())
}

/// The same where any token may come.
fn is_argmax(params: &SamplingParams) -> bool {
    params.temperature == 0.0
        && params.logit_bias.is_empty()
        && params.repetition_penalty == 1.0
        && params.frequency_penalty == 0.0
        && params.presence_penalty == 0.0
        && params.top_logprobs.is_none()
}

/// One row of `scores` for the host.
fn numbers(scores: &Array, row: i32) -> Mlx<Array> {
    scores.try_index(row)?.as_type::<f32>()?.contiguous()
}
