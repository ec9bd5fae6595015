//! How many tokens of prompts may join a step without holding up running answers. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use planaria_engine::geometry::STEP_TOKENS;

/// Most tokens of prompts in a step. Larger steps compute more efficiently, but everybody in them
/// waits for the whole step; at 512 a matrix product is already as efficient as it gets. Memory is
/// set aside for as many.
const MOST: usize = STEP_TOKENS as usize;

/// Fewest, so that a prompt always gets on.
const FEWEST: usize = 1;

/// Before anything was measured: little enough not to be felt, enough to measure by.
const FIRST: usize = 32;

/// By how much a prompt may lengthen a step that also holds a token of every running answer. The
/// aim is that nobody's next token takes more than twice as long; a step has other costs, and
/// estimates err, so less than all of that is spent.
const ALLOWANCE: f64 = 0.6;

/// Weight of the newest measurement.
const NEW: f64 = 0.2;

/// What steps have cost so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a step without tokens of prompts, by how many answers were in it.
    plain: BTreeMap<usize, f64>,
    /// Seconds that each token of a prompt adds.
    per_token: Option<f64>,
}

impl Pace {
    /// Takes in what a step of that many tokens of answers and of prompts took.
    pub(super) fn observe(&mut self, answers: usize, prompts: usize, took: Duration) {
        let took = took.as_secs_f64();
        if prompts == 0 {
            let average = self.plain.entry(answers).or_insert(took);
            *average += NEW * (took - *average);
            return;
        }
        // A step costs something even if it is small, which is not its tokens' fault. A step that
        // cannot be compared with one like it teaches nothing, unless nothing is known at all.
        let plain = match self.plain_of(answers) {
            Some((alike, plain)) if alike.abs_diff(answers) <= 1 + answers / 4 => plain,
            Some(_) if self.per_token.is_some() => return,
            Some((_, plain)) => plain,
            None => 0.0,
        };
        let new = (took - plain).max(0.0) / prompts as f64;
        let average = self.per_token.get_or_insert(new);
        *average += NEW * (new - *average);
    }

    /// Tokens of prompts that may join the next step, while so many prompts wait and so many
    /// answers run. Where more wait than run, it is the waiting that should be short: the allowance
    /// grows with them.
    pub(super) fn budget(&self, waiting: usize, running: usize) -> usize {
        if running == 0 {
            return MOST;
        }
        let allowance = ALLOWANCE * (waiting as f64 / running as f64).max(1.0);
        match (self.plain_of(running), self.per_token) {
            (Some((_, plain)), Some(per_token)) => {
                let tokens = allowance * plain / per_token.max(f64::MIN_POSITIVE);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "clamped to a small range of positive numbers"
                )]
                let tokens = tokens.clamp(FEWEST as f64, MOST as f64) as usize;
                tokens
            }
            _ => (FIRST * waiting.div_ceil(running)).min(MOST),
        }
    }

    /// The number of answers nearest to this of which it is known what a plain step takes, and what
    /// that is.
    fn plain_of(&self, answers: usize) -> Option<(usize, f64)> {
        let below = self.plain.range(..=answers).next_back();
        let above = self.plain.range(answers..).next();
        let nearest = below.into_iter().chain(above).min_by_key(|(n, _)| n.abs_diff(answers));
        nearest.map(|(n, seconds)| (*n, *seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_mixed_step_takes_at_most_so_much_longer() {
        for (plain, per_token) in [(30, 2), (10, 1), (200, 3)] {
            let mut pace = Pace::default();
            assert_eq!(pace.budget(1, 4), FIRST);
            for _ in 0..20 {
                pace.observe(4, 0, plain * MS);
                let prompts = pace.budget(1, 4);
                let tokens = u32::try_from(prompts).unwrap();
                pace.observe(4, prompts, plain * MS + tokens * per_token * MS);
            }
            let extra = u32::try_from(pace.budget(1, 4)).unwrap() * per_token * MS;
            assert!(extra <= plain * MS * 7 / 10, "{extra:?} on top of {plain} ms");
            assert!(extra >= plain * MS * 4 / 10, "{extra:?} on top of {plain} ms");
        }
    }

    #[test]
    fn steps_of_few_answers_say_nothing_of_steps_of_many() {
        let mut pace = Pace::default();
        pace.observe(8, 0, 61 * MS);
        pace.observe(8, 10, 81 * MS);
        assert_eq!(pace.budget(1, 8), 18);
        // The others end, one runs on for long, and then many come again.
        (0..100).for_each(|_| pace.observe(1, 0, 21 * MS));
        assert_eq!((pace.budget(1, 8), pace.budget(1, 1)), (18, 6));
        pace.observe(8, 10, 81 * MS);
        pace.observe(4, 10, 60 * MS);
        assert_eq!(pace.budget(1, 8), 18);
    }

    #[test]
    fn the_more_wait_the_more_is_allowed() {
        let mut pace = Pace::default();
        assert_eq!((pace.budget(7, 0), pace.budget(7, 2)), (MOST, 4 * FIRST));
        pace.observe(1, 0, 31 * MS);
        pace.observe(1, 20, 71 * MS);
        assert_eq!((pace.budget(1, 1), pace.budget(1, 5), pace.budget(6, 2)), (9, 9, 27));
    }

    #[test]
    fn tokens_that_cost_nothing_are_taken_and_dear_ones_still_get_on() {
        let mut pace = Pace::default();
        pace.observe(1, 0, 10 * MS);
        pace.observe(1, 32, 9 * MS);
        assert_eq!(pace.budget(1, 4), MOST);
        pace.observe(0, 1, 1000 * MS);
        pace.observe(0, 1, 1000 * MS);
        assert_eq!(pace.budget(1, 4), FEWEST);
    }
}
