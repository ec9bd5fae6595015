//! Which tokens may be drawn: top-k, top-p and min-p.

use std::cmp::Ordering;

use super::SamplingParams;

/// The tokens that have a probability at all, in the order of ids, with the logarithm of their
/// probability relative to the likeliest, under `temperature`.
pub(super) fn candidates(logits: &[f32], temperature: f32) -> Vec<(u32, f32)> {
    // Infinity stands for "certainly": the largest number does the same and can be subtracted.
    let possible = (0..)
        .zip(logits)
        .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
        .map(|(id, logit)| (id, logit.min(f32::MAX)));
    let mut candidates: Vec<(u32, f32)> = possible.collect();
    let largest = candidates.iter().map(|(_, logit)| *logit).fold(f32::MIN, f32::max);
    for (_, logit) in &mut candidates {
        *logit = (*logit - largest) / temperature;
    }
    candidates
}

/// Removes what `top_k`, `top_p` and `min_p` exclude; the likeliest always stays. Keeps the order
/// of ids.
pub(super) fn keep(candidates: &mut Vec<(u32, f32)>, params: &SamplingParams) {
    let limit = params.top_k as usize;
    if limit > 0 && limit < candidates.len() {
        keep_largest(candidates, limit);
    }
    if params.top_p < 1.0 {
        keep_nucleus(candidates, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        let least = params.min_p.ln();
        candidates.retain(|(_, logarithm)| *logarithm >= least);
    }
    candidates.sort_unstable_by_key(|(id, _)| *id);
}

/// Keeps the `count` largest, in no order; among equals those with lower ids.
pub(super) fn keep_largest(candidates: &mut Vec<(u32, f32)>, count: usize) {
    if count == 0 {
        candidates.clear();
    } else if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, likelier_first);
        candidates.truncate(count);
    }
}

pub(super) fn likelier_first(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the smallest set of likeliest tokens that reaches `share` of the probability.
fn keep_nucleus(candidates: &mut Vec<(u32, f32)>, share: f64) {
    /// Mostly enough; a vocabulary is sorted only as far as the nucleus reaches.
    const FIRST_LOOK: usize = 256;

    let weight = |candidate: &(u32, f32)| f64::from(candidate.1).exp();
    let target = share * candidates.iter().map(weight).sum::<f64>();
    let mut look = FIRST_LOOK;
    loop {
        let partial = look < candidates.len();
        if partial {
            candidates.select_nth_unstable_by(look, likelier_first);
        }
        let looked_at = look.min(candidates.len());
        let Some(likeliest) = candidates.get_mut(..looked_at) else {
            return;
        };
        likeliest.sort_unstable_by(likelier_first);
        let mut reached = 0.0;
        let enough = likeliest.iter().position(|candidate| {
            reached += weight(candidate);
            reached >= target
        });
        match enough {
            Some(last) => return candidates.truncate(last + 1),
            None if partial => look = look.saturating_mul(8),
            None => return,
        }
    }
}
