//! What the sampler promises, with logits of all kinds.

use proptest::prelude::*;

use super::*;

fn chosen(logits: &[f32], params: &SamplingParams, log: &[u32]) -> u32 {
    sample(&mut logits.to_vec(), params, log, 0, None).unwrap().token
}

/// Every token that comes up in a thousand draws.
fn reachable(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..1000)
        .map(|position| sample(&mut logits.to_vec(), params, &[], position, None).unwrap().token)
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

fn warm() -> SamplingParams {
    SamplingParams { temperature: 1.0, seed: 1, ..SamplingParams::greedy() }
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_never_nan() {
    let greedy = SamplingParams::greedy();
    assert_eq!(chosen(&[1.0, 3.0, f32::NAN, 3.0], &greedy, &[]), 1);
    assert_eq!(chosen(&[f32::NEG_INFINITY, -5.0], &greedy, &[]), 1);
    assert_eq!(chosen(&[0.0, f32::INFINITY, 9.0], &greedy, &[]), 1);
}

#[test]
fn no_numbers_are_an_error() {
    for params in [SamplingParams::greedy(), warm()] {
        for mut logits in [vec![], vec![f32::NAN; 3], vec![f32::NEG_INFINITY; 3]] {
            assert_eq!(sample(&mut logits, &params, &[], 0, None), Err(NoCandidate));
        }
    }
}

#[test]
fn infinite_logits_are_drawn_without_nan() {
    assert_eq!(reachable(&[f32::INFINITY, 0.0, f32::INFINITY], &warm()), [0, 2]);
    assert_eq!(reachable(&[f32::MAX, f32::MIN, f32::NAN], &warm()), [0]);
}

fn allowing(tokens: &[u32]) -> TokenMask {
    let mut mask = TokenMask::none(100);
    tokens.iter().for_each(|token| mask.set(*token, true));
    mask
}

#[test]
fn a_mask_takes_every_chance_from_the_others() {
    let logits = vec![9.0, f32::INFINITY, 1.0, f32::NAN, 2.0];
    let mask = allowing(&[2, 3, 4, 99]);
    let mut params = SamplingParams {
        // Neither a bias nor a penalty brings one back.
        logit_bias: vec![(0, 100.0), (2, 3.0)],
        repetition_penalty: 0.5,
        frequency_penalty: -2.0,
        top_logprobs: Some(1),
        ..SamplingParams::greedy()
    };
    let sampled = |params: &SamplingParams, position| {
        sample(&mut logits.clone(), params, &[0, 1, 0], position, Some(&mask)).unwrap()
    };
    let greedy = sampled(&params, 3);
    assert_eq!(greedy.token, 2);
    let report = greedy.logprobs.unwrap();
    assert_eq!(report.top[0].0, 1, "what is reported is the model's own");
    params.temperature = 2.0;
    for position in 0..200 {
        assert!([2, 4].contains(&sampled(&params, position).token));
    }
    let none = sample(&mut [1.0, 2.0], &params, &[], 0, Some(&allowing(&[7])));
    assert_eq!(none, Err(NoCandidate));
}

#[test]
fn filters_count_what_the_mask_leaves() {
    let logits: Vec<f32> = [0.5_f32, 0.25, 0.125, 0.0625, 0.0625].map(f32::ln).to_vec();
    let mask = allowing(&[2, 3, 4]);
    let params = SamplingParams { top_p: 0.6, top_k: 2, ..warm() };
    let mut seen: Vec<u32> = (0..300)
        .map(|position| {
            sample(&mut logits.clone(), &params, &[], position, Some(&mask)).unwrap().token
        })
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [2], "two thirds of what is left");
}

#[test]
fn a_mask_is_a_set() {
    let mut mask = TokenMask::of_words(70, &[1 << 31, 1, u32::MAX, u32::MAX]);
    assert_eq!(mask.tokens().collect::<Vec<_>>(), [31, 32, 64, 65, 66, 67, 68, 69]);
    mask.set(32, false);
    mask.set(0, true);
    mask.set(70, true);
    assert_eq!(mask.tokens().take(3).collect::<Vec<_>>(), [0, 31, 64]);
    assert!(!mask.allows(70) && !mask.allows(u32::MAX) && !mask.is_empty());
    assert!(TokenMask::none(70).is_empty() && TokenMask::of_words(64, &[0]).is_empty());
}

#[test]
fn a_constraint_names_tokens_of_the_model() {
    let form = crate::grammar::Form::JsonObject;
    let thinking = Some(crate::grammar::Thinking { open: Some(3), close: 4, begun: false });
    let constraint = Constraint { form, thinking, ends: vec![2] };
    let problem = |constraint: Constraint, vocab| {
        let constraint = Some(Arc::new(constraint));
        SamplingParams { constraint, ..SamplingParams::greedy() }.validate(vocab).is_err()
    };
    assert!(!problem(constraint.clone(), 5));
    assert!(problem(constraint.clone(), 4), "the close");
    assert!(problem(Constraint { ends: vec![9], ..constraint.clone() }, 5));
    assert!(problem(Constraint { ends: Vec::new(), ..constraint }, 5));
}

#[test]
fn filters() {
    let logits: Vec<f32> = [0.5_f32, 0.25, 0.125, 0.0625, 0.0625].map(f32::ln).to_vec();
    assert_eq!(reachable(&logits, &warm()), [0, 1, 2, 3, 4]);
    assert_eq!(reachable(&logits, &SamplingParams { top_k: 2, ..warm() }), [0, 1]);
    assert_eq!(reachable(&logits, &SamplingParams { top_k: 4, ..warm() }), [0, 1, 2, 3]);
    assert_eq!(reachable(&logits, &SamplingParams { top_k: 9, ..warm() }), [0, 1, 2, 3, 4]);
    assert_eq!(reachable(&logits, &SamplingParams { top_p: 0.7, ..warm() }), [0, 1]);
    assert_eq!(reachable(&logits, &SamplingParams { top_p: 1e-9, ..warm() }), [0]);
    assert_eq!(reachable(&logits, &SamplingParams { min_p: 0.2, ..warm() }), [0, 1, 2]);
    assert_eq!(reachable(&logits, &SamplingParams { min_p: 1.0, ..warm() }), [0]);
    // Of the two that top-k leaves, the first has two thirds.
    let both = SamplingParams { top_k: 2, top_p: 0.66, ..warm() };
    assert_eq!(reachable(&logits, &both), [0]);
}

#[test]
fn a_nucleus_wider_than_the_first_look() {
    let logits = vec![0.0; 5000];
    let params = SamplingParams { top_p: 0.5, ..warm() };
    let mut kept = filter::candidates(&logits, 1.0);
    filter::keep(&mut kept, &params);
    let expected: Vec<(u32, f32)> = (0..2500).map(|id| (id, 0.0)).collect();
    assert_eq!(kept, expected);
}

#[test]
fn temperature_sharpens() {
    let logits = [1.0, 0.0];
    let often = |temperature| {
        let params = SamplingParams { temperature, ..warm() };
        let draws = (0..2000).filter(|position| {
            sample(&mut logits.to_vec(), &params, &[], *position, None).unwrap().token == 0
        });
        draws.count()
    };
    // exp(1/T) to 1: 0.731 at 1, 0.881 at 0.5.
    assert!((1400..1525).contains(&often(1.0)), "{}", often(1.0));
    assert!((1710..1815).contains(&often(0.5)), "{}", often(0.5));
    assert_eq!(often(f32::MIN_POSITIVE), 2000);
}

#[test]
fn penalties_count_what_they_should() {
    let greedy = SamplingParams::greedy();
    // Token 0 is in the prompt, token 1 was generated twice.
    let log = [0, 0, 0, 1, 1];
    let logits = [5.0, 4.9, 4.0, -1.0];
    let with = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams { prompt_tokens: 3, ..greedy.clone() };
        change(&mut params);
        chosen(&logits, &params, &log)
    };
    assert_eq!(with(|_| ()), 0);
    assert_eq!(with(|p| p.presence_penalty = -0.2), 1);
    assert_eq!(with(|p| p.presence_penalty = 2.0), 0);
    assert_eq!(with(|p| p.frequency_penalty = -0.06), 1);
    assert_eq!(with(|p| p.frequency_penalty = -0.04), 0);
    assert_eq!(with(|p| p.repetition_penalty = 1.3), 2);
    assert_eq!(with(|p| p.repetition_penalty = 1.1), 0);
    assert_eq!(with(|p| p.logit_bias = vec![(3, 100.0), (77, 100.0)]), 3);
    assert_eq!(with(|p| p.logit_bias = vec![(0, -0.05), (0, -0.1)]), 1);
}

#[test]
fn a_negative_logit_is_multiplied_by_the_repetition_penalty() {
    let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::greedy() };
    assert_eq!(chosen(&[-1.0, -1.5], &params, &[0]), 1);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let mut logits: Vec<f32> = [0.5_f32, 0.25, 0.25].map(f32::ln).to_vec();
    let params = SamplingParams {
        logit_bias: vec![(2, 100.0)],
        top_logprobs: Some(2),
        ..SamplingParams::greedy()
    };
    let sampled = sample(&mut logits, &params, &[], 0, None).unwrap();
    let logprobs = sampled.logprobs.unwrap();
    assert_eq!(sampled.token, 2);
    assert!((logprobs.chosen - 0.25_f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1]);
    assert!((logprobs.top[0].1 - 0.5_f32.ln()).abs() < 1e-6);
}

#[test]
fn log_probabilities_are_always_numbers() {
    let params = SamplingParams { top_logprobs: Some(20), ..SamplingParams::greedy() };
    for logits in [
        vec![f32::NAN, 1.0, f32::NEG_INFINITY],
        vec![f32::INFINITY, 1.0, f32::INFINITY],
        vec![f32::MAX, f32::MIN],
    ] {
        let logprobs =
            sample(&mut logits.clone(), &params, &[], 0, None).unwrap().logprobs.unwrap();
        assert!(logprobs.chosen.is_finite() && logprobs.chosen <= 0.0, "{logprobs:?}");
        assert!(logprobs.top.iter().all(|(_, l)| l.is_finite() && *l <= 0.0), "{logprobs:?}");
    }
}

#[test]
fn all_mistakes_are_reported() {
    assert_eq!(SamplingParams::greedy().validate(10), Ok(()));
    let wrong = SamplingParams {
        temperature: f32::NAN,
        top_k: 0,
        top_p: 0.0,
        min_p: -0.1,
        presence_penalty: 2.1,
        frequency_penalty: f32::INFINITY,
        repetition_penalty: 0.0,
        logit_bias: vec![(10, 101.0); 301],
        seed: 0,
        top_logprobs: Some(21),
        prompt_tokens: 0,
        constraint: None,
    };
    let mistakes = wrong.validate(10).unwrap_err();
    let named: Vec<&str> = mistakes.0.iter().map(|mistake| mistake.param).collect();
    let expected = [
        "temperature",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "top_logprobs",
        "logit_bias",
        "logit_bias",
        "logit_bias",
    ];
    assert_eq!(named, expected);
    assert!(mistakes.to_string().starts_with("`temperature` must be from 0 to 2; `top_p`"));
}

/// Any number at all, NaN and infinities included.
fn any_logit() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

proptest! {
    #[test]
    fn whatever_the_logits_a_number_is_drawn_or_none_is_there(
        logits in prop::collection::vec(any_logit(), 0..40),
        temperature in 0.0_f32..2.0,
        top_k in 0_u32..50,
        top_p in 0.001_f32..=1.0,
        min_p in 0.0_f32..=1.0,
        log in prop::collection::vec(0_u32..60, 0..20),
        seed: u64,
    ) {
        let params = SamplingParams {
            temperature, top_k, top_p, min_p, seed,
            presence_penalty: 1.0,
            repetition_penalty: 1.2,
            top_logprobs: Some(5),
            ..SamplingParams::greedy()
        };
        let possible = |logit: &f32| *logit > f32::NEG_INFINITY;
        match sample(&mut logits.clone(), &params, &log, 3, None) {
            Ok(sampled) => {
                prop_assert!(possible(&logits[sampled.token as usize]));
                prop_assert!(sampled.logprobs.unwrap().chosen.is_finite());
            }
            // A penalty may push the only candidate, near the end of the scale, over it.
            Err(NoCandidate) => prop_assert!(!logits.iter().any(|l| *l > f32::MIN / 4.0)),
        }
    }

    #[test]
    fn the_same_arguments_give_the_same_token(
        logits in prop::collection::vec(-10.0_f32..10.0, 1..300),
        seed: u64,
        position: u32,
    ) {
        let params = SamplingParams { seed, top_p: 0.9, ..warm() };
        let first = sample(&mut logits.clone(), &params, &[], position, None);
        let again = sample(&mut logits.to_vec(), &params, &[], position, None);
        prop_assert_eq!(again, first);
    }

    /// Filters in terms of sorting everything.
    #[test]
    fn filters_agree_with_a_full_sort(
        logits in prop::collection::vec(-6.0_f32..6.0, 1..600),
        top_k in 0_usize..600,
        top_p in 0.01_f32..1.0,
    ) {
        let params = SamplingParams {
            top_k: u32::try_from(top_k).unwrap(), top_p, ..warm()
        };
        let mut kept = filter::candidates(&logits, 1.0);
        filter::keep(&mut kept, &params);
        let kept: Vec<u32> = kept.into_iter().map(|(id, _)| id).collect();

        let mut sorted = filter::candidates(&logits, 1.0);
        sorted.sort_by(filter::likelier_first);
        if top_k > 0 {
            sorted.truncate(top_k);
        }
        let total: f64 = sorted.iter().map(|(_, l)| f64::from(*l).exp()).sum();
        let mut reached = 0.0;
        let mut expected = Vec::new();
        for (id, logarithm) in sorted {
            if reached >= f64::from(top_p) * total {
                break;
            }
            reached += f64::from(logarithm).exp();
            expected.push(id);
        }
        expected.sort_unstable();
        // Sums in another order may differ in the last bit, and so by one token.
        prop_assert!(kept.len().abs_diff(expected.len()) <= 1);
        prop_assert!(kept.iter().filter(|id| !expected.contains(id)).count() <= 1);
    }
}
