//! How many tokens of prompts may join a step without holding up running answers. Pure.

use std::time::Duration;

/// Most tokens of prompts in a step. Larger steps compute more efficiently, but everybody in them
/// waits for the whole step; at 512 a matrix product is already as efficient as it gets.
pub(super) const MOST: usize = 512;

/// Fewest, so that a prompt always gets on.
const FEWEST: usize = 1;

/// Before anything was measured: little enough not to be felt, enough to measure by.
const FIRST: usize = 32;

/// By how much prompts may lengthen a step that also holds a token of every running answer. The
/// aim is that nobody's next token takes more than twice as long; a step has other costs, and
/// estimates err, so less than all of that is spent.
const ALLOWANCE: f64 = 0.6;

/// Weight of the newest measurement.
const NEW: f64 = 0.2;

/// What steps have cost so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a step without tokens of prompts.
    plain: Option<f64>,
    /// Seconds that each token of a prompt adds.
    per_token: Option<f64>,
}

impl Pace {
    /// Takes in what a step of that many tokens of answers and of prompts took.
    pub(super) fn observe(&mut self, answers: usize, prompts: usize, took: Duration) {
        let took = took.as_secs_f64();
        if prompts == 0 {
            blend(&mut self.plain, took);
        } else if let Some(plain) = self.plain {
            // A step costs something even if it is small, which is not its tokens' fault.
            blend(&mut self.per_token, (took - plain).max(0.0) / prompts as f64);
        } else if answers == 0 {
            blend(&mut self.per_token, took / prompts as f64);
        }
    }

    /// Tokens of prompts that may join the next step, while answers are running.
    pub(super) fn budget(&self) -> usize {
        match (self.plain, self.per_token) {
            (Some(plain), Some(per_token)) => {
                let tokens = ALLOWANCE * plain / per_token.max(f64::MIN_POSITIVE);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "clamped to a small range of positive numbers"
                )]
                let tokens = tokens.clamp(FEWEST as f64, MOST as f64) as usize;
                tokens
            }
            _ => FIRST,
        }
    }
}

fn blend(average: &mut Option<f64>, new: f64) {
    *average = Some(match *average {
        None => new,
        Some(old) => old + NEW * (new - old),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_mixed_step_takes_at_most_so_much_longer() {
        for (plain, per_token) in [(30, 2), (10, 1), (200, 3)] {
            let mut pace = Pace::default();
            assert_eq!(pace.budget(), FIRST);
            for _ in 0..20 {
                pace.observe(4, 0, plain * MS);
                let prompts = pace.budget();
                let tokens = u32::try_from(prompts).unwrap();
                pace.observe(4, prompts, plain * MS + tokens * per_token * MS);
            }
            let extra = u32::try_from(pace.budget()).unwrap() * per_token * MS;
            assert!(extra <= plain * MS * 7 / 10, "{extra:?} on top of {plain} ms");
            assert!(extra >= plain * MS * 4 / 10, "{extra:?} on top of {plain} ms");
        }
    }

    #[test]
    fn tokens_that_cost_nothing_are_taken_and_dear_ones_still_get_on() {
        let mut pace = Pace::default();
        pace.observe(1, 0, 10 * MS);
        pace.observe(1, 32, 9 * MS);
        assert_eq!(pace.budget(), MOST);
        pace.observe(0, 1, 1000 * MS);
        pace.observe(0, 1, 1000 * MS);
        assert_eq!(pace.budget(), FEWEST);
    }
}
