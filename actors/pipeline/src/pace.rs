//! How many tokens of prompts may join a step without holding up running answers. Pure.

use std::time::Duration;

use planaria_engine::geometry::STEP_TOKENS;

use crate::step_times::StepTimes;

/// Most tokens of prompts in a step. Larger steps compute more efficiently, but everybody in them
/// waits for the whole step; at 512 a matrix product is already as efficient as it gets. Memory is
/// set aside for as many.
const MOST: usize = STEP_TOKENS as usize;

/// Fewest, so that a prompt always gets on.
const FEWEST: usize = 4;

/// Before anything was measured: little enough not to be felt, enough to measure by.
const FIRST: usize = 32;

/// By how much a prompt may lengthen a step that also holds a token of every running answer. The
/// aim is that nobody's next token takes more than twice as long; estimates err, so less than all
/// of that is spent.
const ALLOWANCE: f64 = 0.6;

/// Weight of the newest measurement.
const NEW: f64 = 0.2;

/// What steps have cost so far, in seconds.
///
/// A step is taken to cost what one without prompts costs, and something for having any prompt in
/// it, and something for each of its tokens.
#[derive(Debug)]
pub struct Pace {
    /// A step without tokens of prompts, by how many answers were in it.
    plain: StepTimes<1>,
    /// Each token of a prompt, as learnt from steps with nothing else in them; and of how many
    /// tokens the largest of those was, for small ones say little.
    per_token: Option<(f64, usize)>,
    /// Any prompt at all beside answers.
    any: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { plain: StepTimes::new(NEW), per_token: None, any: 0.0 }
    }
}

impl Pace {
    /// Takes in what a step of that many tokens of answers and of prompts took.
    pub fn observe(&mut self, answers: usize, prompts: usize, took: Duration) {
        let took = took.as_secs_f64();
        if prompts == 0 {
            self.plain.observe(answers, [took]);
        } else if answers == 0 {
            let new = took / prompts as f64;
            let (average, largest) = self.per_token.get_or_insert((new, prompts));
            if prompts >= *largest / 2 {
                blend(average, new);
                *largest = prompts.max(*largest);
            }
        } else if let (Some((per_token, _)), Some((alike, plain))) =
            (self.per_token, self.plain_of(answers))
            && alike.abs_diff(answers) <= 1 + answers / 4
        {
            blend(&mut self.any, (took - plain - per_token * prompts as f64).max(0.0));
        }
    }

    /// What a step takes that has one answer in it and no prompt, or as few answers as there were.
    pub fn plain(&self) -> Option<Duration> {
        self.plain_of(1).and_then(|(_, seconds)| Duration::try_from_secs_f64(seconds).ok())
    }

    /// Tokens of prompts that may join the next step, while so many prompts wait and so many
    /// answers run. Where more wait than run, it is the waiting that should be short: the allowance
    /// grows with them.
    pub fn budget(&self, waiting: usize, running: usize) -> usize {
        if running == 0 {
            return MOST;
        }
        let allowance = ALLOWANCE * (waiting as f64 / running as f64).max(1.0);
        match (self.plain_of(running), self.per_token) {
            (Some((_, plain)), Some((per_token, _))) => {
                let spare = allowance * plain - self.any;
                let tokens = spare / per_token.max(f64::MIN_POSITIVE);
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
        self.plain.nearest(answers).map(|(count, [seconds])| (count, seconds))
    }
}

fn blend(average: &mut f64, new: f64) {
    *average += NEW * (new - *average);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A machine: what a step takes in milliseconds.
    struct Machine {
        plain: u32,
        any: u32,
        per_token: u32,
    }

    impl Machine {
        fn step(&self, pace: &mut Pace, answers: usize, prompts: usize) -> Duration {
            let tokens = u32::try_from(prompts).unwrap();
            let plain = if answers > 0 { self.plain } else { 0 };
            let any = if answers > 0 && prompts > 0 { self.any } else { 0 };
            let took = (plain + any + tokens * self.per_token) * MS;
            pace.observe(answers, prompts, took);
            took
        }
    }

    #[test]
    fn a_mixed_step_takes_at_most_so_much_longer() {
        for (plain, any, per_token) in [(30, 0, 2), (40, 20, 2), (200, 30, 3), (300, 0, 1)] {
            let machine = Machine { plain, any, per_token };
            let mut pace = Pace::default();
            machine.step(&mut pace, 0, 100);
            machine.step(&mut pace, 4, 0);
            let mut took = Duration::ZERO;
            for _ in 0..60 {
                let prompts = pace.budget(1, 4);
                took = machine.step(&mut pace, 4, prompts);
            }
            assert!(took <= plain * MS * 18 / 10, "{took:?} instead of {plain} ms");
            assert!(took >= plain * MS * 15 / 10, "{took:?} instead of {plain} ms: too shy");
        }
    }

    #[test]
    fn a_prompt_gets_on_however_dear_its_tokens_are() {
        let machine = Machine { plain: 10, any: 50, per_token: 20 };
        let mut pace = Pace::default();
        machine.step(&mut pace, 0, 64);
        machine.step(&mut pace, 2, 0);
        let took = machine.step(&mut pace, 2, FEWEST);
        assert!(took > 10 * MS);
        assert_eq!(pace.budget(1, 2), FEWEST);
    }

    #[test]
    fn steps_of_few_answers_say_nothing_of_steps_of_many() {
        let mut pace = Pace::default();
        pace.observe(0, 100, 200 * MS);
        pace.observe(8, 0, 61 * MS);
        assert_eq!(pace.budget(1, 8), 18);
        // The others end, one runs on for long, and then many come again.
        (0..100).for_each(|_| pace.observe(1, 0, 21 * MS));
        assert_eq!((pace.budget(1, 8), pace.budget(1, 1)), (18, 6));
        pace.observe(4, 10, 90 * MS);
        assert_eq!(pace.budget(1, 8), 18);
    }

    #[test]
    fn small_prompts_say_little_of_what_a_token_costs() {
        let mut pace = Pace::default();
        pace.observe(1, 0, 31 * MS);
        pace.observe(0, 200, 400 * MS);
        pace.observe(0, 2, 30 * MS);
        assert_eq!(pace.budget(1, 1), 9);
    }

    #[test]
    fn the_more_wait_the_more_is_allowed() {
        let mut pace = Pace::default();
        assert_eq!((pace.budget(7, 0), pace.budget(7, 2)), (MOST, 4 * FIRST));
        pace.observe(1, 0, 31 * MS);
        pace.observe(0, 100, 200 * MS);
        assert_eq!((pace.budget(1, 1), pace.budget(1, 5), pace.budget(6, 2)), (9, 9, 27));
    }
}
