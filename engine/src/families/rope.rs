//! Rotary positions as configurations describe them, and the ways to stretch them.

use std::f32::consts::TAU;
use std::ops::RangeInclusive;

use crate::architecture::{Rope, Speeds};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::MAX_CONTEXT;

/// Without a word in the file both mlx-lm and Hugging Face use this in most families.
pub(super) const DEFAULT_THETA: f32 = 10_000.0;

const THETA: RangeInclusive<f32> = 1.0..=1e12;
const FACTOR: RangeInclusive<f32> = 1e-3..=1e6;

/// The rotary positions of a model over `dims` numbers of each head: `rope_theta` and
/// `rope_scaling`, or `rope_parameters` in newer files.
pub(super) fn read(
    config: &Section<'_>,
    dims: u32,
    max_context: u32,
    default_theta: f32,
) -> Result<Rope, ModelError> {
    let newer = config.section("rope_parameters")?;
    let theta = match config.optional_number("rope_theta", THETA)? {
        Some(theta) => Some(theta),
        None => {
            newer.as_ref().map(|s| s.optional_number("rope_theta", THETA)).transpose()?.flatten()
        }
    };
    let scaling = config.section("rope_scaling")?.or(newer);
    let mut rope = plain(config, dims, theta.unwrap_or(default_theta))?;
    if let Some(scaling) = scaling {
        stretch(&mut rope, theta.unwrap_or(default_theta), config, &scaling, max_context)?;
    }
    Ok(rope)
}

/// Rotary positions as they are, over `dims` numbers of each head.
pub(super) fn plain(config: &Section<'_>, dims: u32, theta: f32) -> Result<Rope, ModelError> {
    if !dims.is_multiple_of(2) || dims == 0 {
        let problem = format!("is {dims}; rotary embeddings need an even number");
        return Err(config.problem("head_dim", problem));
    }
    Ok(Rope {
        dims,
        traditional: config.flag("rope_traditional", false)?,
        speeds: Speeds::Base { base: theta, scale: 1.0 },
        amplitude: 1.0,
    })
}

/// A base frequency under another key, as Gemma 3 has for its local layers.
pub(super) fn theta(config: &Section<'_>, key: &str, default: f32) -> Result<f32, ModelError> {
    Ok(config.optional_number(key, THETA)?.unwrap_or(default))
}

/// The factor by which DeepSeek's models multiply attention scores when positions are stretched
/// (`mscale_all_dim`, squared: queries and keys have it once each).
pub(super) fn score_factor(config: &Section<'_>) -> Result<f32, ModelError> {
    let Some(scaling) = config.section("rope_scaling")? else {
        return Ok(1.0);
    };
    let all = scaling.optional_number("mscale_all_dim", 0.0..=1e3)?.unwrap_or(0.0);
    let factor = scaling.optional_number("factor", FACTOR)?.unwrap_or(1.0);
    let growth = if all == 0.0 { 1.0 } else { yarn_growth(factor, all) };
    Ok(growth * growth)
}

fn stretch(
    rope: &mut Rope,
    theta: f32,
    config: &Section<'_>,
    scaling: &Section<'_>,
    max_context: u32,
) -> Result<(), ModelError> {
    let key = if scaling.value("type").is_some() { "type" } else { "rope_type" };
    // One period for each pair of numbers, before any stretching.
    let dims = rope.dims;
    let periods = || (0..dims).step_by(2).map(move |dim| theta.powf(dim as f32 / dims as f32));
    match scaling.text(key)? {
        None | Some("default") => {}
        Some("linear") => {
            let factor = scaling.number("factor", FACTOR)?;
            rope.speeds = Speeds::Base { base: theta, scale: factor.recip() };
        }
        Some("llama3") => {
            let llama3 = Llama3::read(scaling)?;
            rope.speeds = Speeds::Periods(periods().map(|period| llama3.period(period)).collect());
        }
        Some("yarn" | "deepseek_yarn") => {
            let yarn = Yarn::read(scaling)?;
            // Pairs are told apart by how much more often one turns than the next.
            if theta <= 1.0 {
                return Err(config.problem("rope_theta", "is 1; `yarn` needs more"));
            }
            rope.speeds = Speeds::Periods(yarn.periods(theta, &periods().collect::<Vec<_>>()));
            rope.amplitude = yarn.amplitude();
        }
        Some("longrope" | "su") => {
            let factors = long_factors(scaling, dims / 2)?;
            let stretched = periods().zip(factors).map(|(period, factor)| period * factor);
            rope.speeds = Speeds::Periods(stretched.collect());
            rope.amplitude = long_amplitude(config, scaling, max_context)?;
        }
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            let problem = format!(
                "`{other}` is not supported; supported are `default`, `linear`, `llama3`, `yarn` \
                 and `longrope`"
            );
            return Err(scaling.problem(key, problem));
        }
    }
    Ok(())
}

fn original_context(section: &Section<'_>, default: u32) -> Result<u32, ModelError> {
    let key = "original_max_position_embeddings";
    Ok(section.optional_count(key, 1..=MAX_CONTEXT)?.unwrap_or(default))
}

/// The scaling of Llama 3.1 (`apply_scaling` in Meta's llama-models).
struct Llama3 {
    factor: f32,
    low: f32,
    high: f32,
    context: f32,
}

impl Llama3 {
    fn read(scaling: &Section<'_>) -> Result<Self, ModelError> {
        let low = scaling.optional_number("low_freq_factor", FACTOR)?.unwrap_or(1.0);
        let high = scaling.optional_number("high_freq_factor", FACTOR)?.unwrap_or(4.0);
        if high <= low {
            let problem = format!("is {high}; must be larger than low_freq_factor, {low}");
            return Err(scaling.problem("high_freq_factor", problem));
        }
        let factor = scaling.number("factor", FACTOR)?;
        Ok(Self { factor, low, high, context: original_context(scaling, 8192)? as f32 })
    }

    /// Pairs that turn less than `low` times in the original context are slowed by `factor`, those
    /// that turn more than `high` times are left alone, and those between are blended.
    fn period(&self, period: f32) -> f32 {
        let turns = self.context / (TAU * period);
        if turns < self.low {
            period * self.factor
        } else if turns > self.high {
            period
        } else {
            let kept = (turns - self.low) / (self.high - self.low);
            period / ((1.0 - kept) / self.factor + kept)
        }
    }
}

/// YaRN (arXiv:2309.00071). Pairs that turn often in the original context keep their speed, those
/// that turn seldom are slowed by `factor`, and between the two runs a ramp over the pairs.
struct Yarn {
    factor: f32,
    context: f32,
    /// Turns in the original context above which a pair keeps its speed.
    fast: f32,
    /// Turns below which it is slowed.
    slow: f32,
    growth: f32,
    growth_of_scores: f32,
}

impl Yarn {
    fn read(scaling: &Section<'_>) -> Result<Self, ModelError> {
        const TURNS: RangeInclusive<f32> = 1e-3..=1e6;
        const GROWTH: RangeInclusive<f32> = 0.0..=1e3;
        Ok(Self {
            factor: scaling.number("factor", FACTOR)?,
            context: original_context(scaling, 4096)? as f32,
            fast: scaling.optional_number("beta_fast", TURNS)?.unwrap_or(32.0),
            slow: scaling.optional_number("beta_slow", TURNS)?.unwrap_or(1.0),
            growth: scaling.optional_number("mscale", GROWTH)?.unwrap_or(1.0),
            growth_of_scores: scaling.optional_number("mscale_all_dim", GROWTH)?.unwrap_or(0.0),
        })
    }

    fn periods(&self, theta: f32, periods: &[f32]) -> Vec<f32> {
        let dims = 2.0 * periods.len() as f32;
        // The pair that turns so many times in the original context.
        let pair = |turns: f32| dims * (self.context / (turns * TAU)).ln() / (2.0 * theta.ln());
        let first = pair(self.fast).floor().max(0.0);
        let mut last = pair(self.slow).ceil().min(dims - 1.0);
        if first == last {
            last += 0.001;
        }
        let blend = |(index, period): (usize, &f32)| {
            let slowed = ((index as f32 - first) / (last - first)).clamp(0.0, 1.0);
            let long = self.factor * period;
            long * period / (long * (1.0 - slowed) + period * slowed)
        };
        periods.iter().enumerate().map(blend).collect()
    }

    fn amplitude(&self) -> f32 {
        yarn_growth(self.factor, self.growth) / yarn_growth(self.factor, self.growth_of_scores)
    }
}

/// By how much attention is sharpened when positions are stretched by `factor`.
fn yarn_growth(factor: f32, rate: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * rate * factor.ln() + 1.0 }
}

/// `LongRoPE` (arXiv:2402.13753): a factor for each pair. Of the two lists in the file the one for
/// long contexts is used at every length, as mlx-lm does: which list holds would otherwise depend
/// on what a sequence has become, and its KV with it.
fn long_factors(scaling: &Section<'_>, pairs: u32) -> Result<Vec<f32>, ModelError> {
    const KEY: &str = "long_factor";
    let factors = scaling.numbers(KEY, FACTOR)?;
    if factors.len() != pairs as usize {
        let problem = format!("has {} entries for {pairs} pairs", factors.len());
        return Err(scaling.problem(KEY, problem));
    }
    Ok(factors)
}

fn long_amplitude(
    config: &Section<'_>,
    scaling: &Section<'_>,
    max_context: u32,
) -> Result<f32, ModelError> {
    // Phi writes it beside the context, others into the scaling.
    let written = original_context(scaling, 4096)?;
    let original = original_context(config, written)? as f32;
    let factor = max_context as f32 / original;
    if original <= 1.0 && factor > 1.0 {
        let problem = "is 1; `longrope` needs more";
        return Err(scaling.problem("original_max_position_embeddings", problem));
    }
    Ok(if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_slows_the_slow_and_keeps_the_fast() {
        let llama3 = Llama3 { factor: 8.0, low: 1.0, high: 4.0, context: 8192.0 };
        let fast = 8192.0 / (5.0 * TAU);
        let slow = 8192.0 / (0.5 * TAU);
        assert_eq!(llama3.period(fast), fast);
        assert_eq!(llama3.period(slow), 8.0 * slow);
        // Half-way between the two, in turns.
        let middle = 8192.0 / (2.5 * TAU);
        assert!((llama3.period(middle) / middle - 1.0 / (0.5 / 8.0 + 0.5)).abs() < 1e-5);
    }

    #[test]
    fn yarn_keeps_the_fast_slows_the_slow_and_ramps_between() {
        let yarn = Yarn {
            factor: 40.0,
            context: 4096.0,
            fast: 32.0,
            slow: 1.0,
            growth: 1.0,
            growth_of_scores: 1.0,
        };
        let plain: Vec<f32> = (0..32).map(|pair| 10_000_f32.powf(pair as f32 / 32.0)).collect();
        let stretched = yarn.periods(10_000.0, &plain);
        let ratios: Vec<f32> = stretched.iter().zip(&plain).map(|(a, b)| a / b).collect();
        assert!((ratios[0] - 1.0).abs() < 1e-5 && (ratios[31] - 40.0).abs() < 1e-3, "{ratios:?}");
        assert!(ratios.is_sorted_by(|a, b| *a <= *b + 1e-4), "{ratios:?}");
        assert!(ratios.iter().any(|ratio| (2.0..30.0).contains(ratio)), "{ratios:?}");
        assert_eq!(yarn.amplitude(), 1.0);
        let louder = Yarn { growth_of_scores: 0.0, ..yarn };
        assert!((louder.amplitude() - (0.1 * 40_f32.ln() + 1.0)).abs() < 1e-6);
    }
}
