//! Rotary positions as configurations describe them, and the ways to stretch them.

mod said;

use std::f32::consts::TAU;
use std::ops::RangeInclusive;

use self::said::Said;
use crate::architecture::{Rope, Speeds};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::MAX_CONTEXT;

/// Without a word in the file both mlx-lm and Hugging Face use this in most families.
pub(super) const DEFAULT_THETA: f32 = 10_000.0;

pub(super) const THETA: RangeInclusive<f32> = 1.0..=1e12;
const FACTOR: RangeInclusive<f32> = 1e-3..=1e6;

/// What a family knows of its rotary positions before it reads the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// How many numbers of each head could be turned.
    pub(super) dims: u32,
    /// Longest context in tokens.
    pub(super) max_context: u32,
    /// The base where the file is silent.
    pub(super) theta: f32,
    /// Whether the authors' default is another than mlx-lm's, so that the file has to say it.
    pub(super) theta_is_doubtful: bool,
    /// Whether the family can turn a part of each head.
    pub(super) partial: bool,
    /// Which part where the file is silent.
    pub(super) part: f32,
    /// Whether the model sees pictures too, whose positions have three parts. Those of text are thrice the same.
    pub(super) of_pictures: bool,
    /// Whether positions may be stretched by a fixed `alpha`, which files call `dynamic`.
    pub(super) by_alpha: bool,
    /// Keys beside those of positions, which the family reads itself.
    pub(super) others: &'static [&'static str],
    /// The layers that are meant, in a family whose layers differ.
    pub(super) layers: Option<&'static str>,
}

/// Layers that see everything, as `rope_parameters` and `layer_types` call them.
pub(super) const EVERYWHERE: &str = "full_attention";
/// Layers that see a window.
pub(super) const NEARBY: &str = "sliding_attention";

/// The first pairs of a head turn, as fast as if all of them did (Gemma 4).
const PROPORTIONAL: &str = "proportional";

impl Asked {
    /// Whole heads of `dims` numbers, in all layers alike, by the usual base.
    pub(super) const fn usual(dims: u32, max_context: u32) -> Self {
        Self {
            dims,
            max_context,
            theta: DEFAULT_THETA,
            theta_is_doubtful: false,
            partial: false,
            part: 1.0,
            of_pictures: false,
            by_alpha: false,
            others: &[],
            layers: None,
        }
    }

    /// The rotary positions that the file describes: `rope_theta` and `rope_scaling` as transformers
    /// 4 writes them, `rope_parameters` as 5 does. Both places may be filled if they say the same.
    pub(super) fn read(&self, config: &Section<'_>) -> Result<Rope, ModelError> {
        let said = Said::find(config, self.layers)?;
        let theta_key = said.theta_key();
        let theta = said.number("rope_theta", theta_key, THETA)?;
        if theta.is_none() && self.theta_is_doubtful {
            config.doubt_silence(theta_key);
        }
        let theta = theta.unwrap_or(self.theta);
        let part_key = "partial_rotary_factor";
        let part = said.number(part_key, part_key, 1e-3..=1.0)?.unwrap_or(self.part);
        if part < 1.0 && !self.partial && !is_proportional(said.section())? {
            let problem = format!("is {part}; models of this family turn whole heads");
            return Err(said.problem(part_key, problem));
        }
        self.of(config, theta, part, said.section())
    }

    /// Those of a base and a part of each head, stretched as `scaling` says.
    pub(super) fn of(
        &self,
        config: &Section<'_>,
        theta: f32,
        part: f32,
        scaling: Option<&Section<'_>>,
    ) -> Result<Rope, ModelError> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of a head's width, rounded down as the authors do"
        )]
        let turned = if part < 1.0 { (self.dims as f32 * part) as u32 } else { self.dims };
        // There the pairs that are not turned count as pairs.
        let dims = if is_proportional(scaling)? { self.dims } else { turned };
        if !dims.is_multiple_of(2) || dims == 0 {
            let problem = format!("is {dims}; rotary embeddings need an even number");
            return Err(config.problem("head_dim", problem));
        }
        let mut rope = Rope {
            dims,
            traditional: config.flag("rope_traditional", false)?,
            speeds: Speeds::Base { base: theta, scale: 1.0 },
            amplitude: 1.0,
        };
        if let Some(section) = scaling {
            self.stretch(&mut rope, (theta, turned), config, section)?;
        }
        Ok(rope)
    }

    fn stretch(
        &self,
        rope: &mut Rope,
        (theta, turned): (f32, u32),
        config: &Section<'_>,
        scaling: &Section<'_>,
    ) -> Result<(), ModelError> {
        let expect_keys = |own: &[&str]| {
            said::expect_keys(scaling, &[own, self.others].concat(), self.of_pictures)
        };
        let (key, kind) = said::kind_of(scaling)?;
        // One period for each pair of numbers, before any stretching.
        let dims = rope.dims;
        let periods = || (0..dims).step_by(2).map(move |dim| theta.powf(dim as f32 / dims as f32));
        match kind {
            "default" => expect_keys(&[])?,
            "linear" => {
                expect_keys(&["factor"])?;
                let factor = scaling.number("factor", FACTOR)?;
                rope.speeds = Speeds::Base { base: theta, scale: factor.recip() };
            }
            PROPORTIONAL => {
                expect_keys(&["factor"])?;
                let factor = scaling.optional_number("factor", FACTOR)?.unwrap_or(1.0);
                let moving = periods().take(turned as usize / 2).map(|period| factor * period);
                let still = std::iter::repeat(f32::INFINITY);
                rope.speeds =
                    Speeds::Periods(moving.chain(still).take(dims as usize / 2).collect());
            }
            // The base is stretched so that the slowest pair turns `alpha` times slower. Factors beside it are not used by anyone.
            "dynamic" if self.by_alpha => {
                expect_keys(&[&["alpha", "factor"], Yarn::KEYS].concat())?;
                let alpha = scaling.number("alpha", FACTOR)?;
                let base = theta * alpha.powf(dims as f32 / (dims as f32 - 2.0).max(1.0));
                rope.speeds = Speeds::Base { base: base.min(f32::MAX), scale: 1.0 };
            }
            "llama3" => {
                expect_keys(&["factor", "low_freq_factor", "high_freq_factor"])?;
                let llama3 = Llama3::read(config, scaling)?;
                rope.speeds =
                    Speeds::Periods(periods().map(|period| llama3.period(period)).collect());
            }
            "yarn" => {
                expect_keys(Yarn::KEYS)?;
                let yarn = Yarn::read(config, scaling)?;
                // Pairs are told apart by how much more often one turns than the next.
                if theta <= 1.0 {
                    return Err(config.problem("rope_theta", "is 1; `yarn` needs more"));
                }
                rope.speeds = Speeds::Periods(yarn.periods(theta, &periods().collect::<Vec<_>>()));
                rope.amplitude = attention_factor(scaling)?.unwrap_or(yarn.amplitude());
            }
            "longrope" => {
                expect_keys(&["long_factor", "short_factor", "factor", ATTENTION])?;
                let factors = long_factors(scaling, dims / 2)?;
                let stretched = periods().zip(factors).map(|(period, factor)| period * factor);
                rope.speeds = Speeds::Periods(stretched.collect());
                let amplitude = long_amplitude(config, scaling, self.max_context)?;
                rope.amplitude = attention_factor(scaling)?.unwrap_or(amplitude);
            }
            other => {
                let other: String = other.chars().take(40).collect();
                let problem = format!(
                    "`{other}` is not supported; supported are `default`, `linear`, `llama3`, `yarn`, \
                     `longrope` and `{PROPORTIONAL}`"
                );
                return Err(scaling.problem(key, problem));
            }
        }
        Ok(())
    }
}

fn is_proportional(scaling: Option<&Section<'_>>) -> Result<bool, ModelError> {
    let kind = scaling.map(said::kind_of).transpose()?;
    Ok(kind.is_some_and(|(_, kind)| kind == PROPORTIONAL))
}

/// The factor by which DeepSeek's models multiply attention scores when positions are stretched
/// (`mscale_all_dim`, squared: queries and keys have it once each).
pub(super) fn score_factor(config: &Section<'_>) -> Result<f32, ModelError> {
    let said = Said::find(config, None)?;
    let Some(section) = said.section() else {
        return Ok(1.0);
    };
    let all = section.optional_number("mscale_all_dim", 0.0..=1e3)?.unwrap_or(0.0);
    let factor = section.optional_number("factor", FACTOR)?.unwrap_or(1.0);
    let growth = if all == 0.0 { 1.0 } else { yarn_growth(factor, all) };
    Ok(growth * growth)
}

const ATTENTION: &str = "attention_factor";

/// What turned numbers are multiplied by, where a file says it instead of leaving it to be derived.
fn attention_factor(scaling: &Section<'_>) -> Result<Option<f32>, ModelError> {
    scaling.optional_number(ATTENTION, 1e-3..=1e3)
}

/// The context of the model before its positions were stretched: beside the scaling (Phi) or in it.
fn original_context(
    config: &Section<'_>,
    scaling: &Section<'_>,
    default: u32,
) -> Result<u32, ModelError> {
    let key = "original_max_position_embeddings";
    let beside = config.optional_count(key, 1..=MAX_CONTEXT)?;
    let within = scaling.optional_count(key, 1..=MAX_CONTEXT)?;
    match (within, beside) {
        (Some(within), Some(beside)) if within != beside => {
            let problem = format!("is {within}, but beside it `{key}` is {beside}");
            Err(scaling.problem(key, problem))
        }
        (None, None) => {
            scaling.doubt_silence(key);
            Ok(default)
        }
        (within, beside) => Ok(within.or(beside).unwrap_or(default)),
    }
}

/// The scaling of Llama 3.1 (`apply_scaling` in Meta's llama-models).
struct Llama3 {
    factor: f32,
    low: f32,
    high: f32,
    context: f32,
}

impl Llama3 {
    fn read(config: &Section<'_>, scaling: &Section<'_>) -> Result<Self, ModelError> {
        let low = scaling.optional_number("low_freq_factor", FACTOR)?.unwrap_or(1.0);
        let high = scaling.optional_number("high_freq_factor", FACTOR)?.unwrap_or(4.0);
        if high <= low {
            let problem = format!("is {high}; must be larger than low_freq_factor, {low}");
            return Err(scaling.problem("high_freq_factor", problem));
        }
        let factor = scaling.number("factor", FACTOR)?;
        Ok(Self { factor, low, high, context: original_context(config, scaling, 8192)? as f32 })
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
    /// Whether the ramp begins and ends at whole pairs (`truncate`).
    whole_pairs: bool,
}

impl Yarn {
    const KEYS: &[&str] =
        &["factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", ATTENTION];

    fn read(config: &Section<'_>, scaling: &Section<'_>) -> Result<Self, ModelError> {
        const TURNS: RangeInclusive<f32> = 1e-3..=1e6;
        const GROWTH: RangeInclusive<f32> = 0.0..=1e3;
        let growth = scaling.optional_number("mscale", GROWTH)?;
        let growth_of_scores = scaling.optional_number("mscale_all_dim", GROWTH)?;
        for (key, this, other, name) in [
            ("mscale", growth, growth_of_scores, "mscale_all_dim"),
            ("mscale_all_dim", growth_of_scores, growth, "mscale"),
        ] {
            // DeepSeek's code takes the other for 0, transformers passes over both.
            let is_alone = this.is_some_and(|value| value != 0.0) && other.is_none();
            if is_alone && scaling.value(ATTENTION).is_none() {
                return Err(scaling.problem(key, format!("stands without `{name}`")));
            }
        }
        Ok(Self {
            factor: scaling.number("factor", FACTOR)?,
            context: original_context(config, scaling, 4096)? as f32,
            fast: scaling.optional_number("beta_fast", TURNS)?.unwrap_or(32.0),
            slow: scaling.optional_number("beta_slow", TURNS)?.unwrap_or(1.0),
            growth: growth.unwrap_or(1.0),
            growth_of_scores: growth_of_scores.unwrap_or(0.0),
            whole_pairs: scaling.flag("truncate", true)?,
        })
    }

    fn periods(&self, theta: f32, periods: &[f32]) -> Vec<f32> {
        let dims = 2.0 * periods.len() as f32;
        // The pair that turns so many times in the original context.
        let pair = |turns: f32| dims * (self.context / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (first, last) = (pair(self.fast), pair(self.slow));
        let ends = if self.whole_pairs { (first.floor(), last.ceil()) } else { (first, last) };
        let (first, mut last) = (ends.0.max(0.0), ends.1.min(dims - 1.0));
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
    const KEY: &str = "original_max_position_embeddings";
    let original = original_context(config, scaling, 4096)? as f32;
    let factor = max_context as f32 / original;
    if original <= 1.0 && factor > 1.0 {
        return Err(scaling.problem(KEY, "is 1; `longrope` needs more"));
    }
    // Some versions of transformers take this one, others the quotient.
    if let Some(said) = scaling.optional_number("factor", FACTOR)?
        && (said / factor - 1.0).abs() > 1e-3
        && scaling.value(ATTENTION).is_none()
    {
        let problem = format!("is {said}, but `max_position_embeddings` is {factor} times `{KEY}`");
        return Err(scaling.problem("factor", problem));
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
            whole_pairs: true,
        };
        let plain: Vec<f32> = (0..32).map(|pair| 10_000_f32.powf(pair as f32 / 32.0)).collect();
        let stretched = yarn.periods(10_000.0, &plain);
        let ratios: Vec<f32> = stretched.iter().zip(&plain).map(|(a, b)| a / b).collect();
        assert!((ratios[0] - 1.0).abs() < 1e-5 && (ratios[31] - 40.0).abs() < 1e-3, "{ratios:?}");
        assert!(ratios.is_sorted_by(|a, b| *a <= *b + 1e-4), "{ratios:?}");
        assert!(ratios.iter().any(|ratio| (2.0..30.0).contains(ratio)), "{ratios:?}");
        assert_eq!(yarn.amplitude(), 1.0);
        let exact = Yarn { whole_pairs: false, ..yarn };
        let first = |yarn: &Yarn| {
            let stretched = yarn.periods(10_000.0, &plain);
            stretched.iter().zip(&plain).position(|(a, b)| a / b > 1.0 + 1e-4).unwrap()
        };
        // The ramp begins at 10.47 and not at 10, of which pair 11 is the first above either.
        assert_eq!((first(&yarn), first(&exact)), (11, 11));
        assert_ne!(yarn.periods(10_000.0, &plain)[11], exact.periods(10_000.0, &plain)[11]);
        let louder = Yarn { growth_of_scores: 0.0, ..yarn };
        assert!((louder.amplitude() - (0.1 * 40_f32.ln() + 1.0)).abs() < 1e-6);
    }
}
