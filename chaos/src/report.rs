//! What came of the rounds of a scenario, in figures.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::check::Violation;
use crate::scenario::{Round, Scenario};

/// Of some times: the middle one, one that few exceed, the longest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// Half are no longer; milliseconds, as the others.
    pub p50: u64,
    /// 99 of a hundred are no longer.
    pub p99: u64,
    /// None is longer.
    pub max: u64,
    /// How many there are.
    pub count: usize,
}

impl Times {
    /// By the nearest rank.
    pub fn of(millis: impl IntoIterator<Item = u64>) -> Self {
        let mut millis: Vec<u64> = millis.into_iter().collect();
        millis.sort_unstable();
        let count = millis.len();
        let rank = |percent: usize| {
            let rank = (count * percent).div_ceil(100).max(1);
            millis.get(rank - 1).copied().unwrap_or(0)
        };
        Self { p50: rank(50), p99: rank(99), max: rank(100), count }
    }

    fn of_durations<'a>(times: impl IntoIterator<Item = &'a Duration>) -> Self {
        let millis = times.into_iter().map(|time| time.as_millis());
        Self::of(millis.map(|millis| u64::try_from(millis).unwrap_or(u64::MAX)))
    }
}

/// Something that does not hold, with the round that shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The round; the number after the last means: after all rounds.
    pub round: u32,
    /// What does not hold.
    #[serde(flatten)]
    pub violation: Violation,
}

/// All rounds of a scenario.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its name.
    pub scenario: &'static str,
    /// Its number in the table of faults.
    pub number: u8,
    /// What everything was drawn from.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Rounds.
    pub rounds: u32,
    /// Answers.
    pub streams: usize,
    /// Tokens that were compared with those of undisturbed answers.
    pub tokens: usize,
    /// Answers that went on after a loss, as their owners tell.
    pub recovered: u32,
    /// From the last sign of progress to the notice.
    pub detect: Times,
    /// From there until there was a plan, where that was seen.
    pub plan: Times,
    /// From there until its stages were ready.
    pub load: Times,
    /// From there until the first new token.
    pub rebuild: Times,
    /// All of that.
    pub resume: Times,
    /// The longest pause of every answer whose tokens are seen as they come, as its client saw it.
    pub pause: Times,
    /// From the mending to a cluster that is whole.
    pub whole: Times,
    /// What does not hold.
    pub failures: Vec<Failure>,
    /// How each fault was seen to be done.
    pub proofs: Vec<String>,
}

impl Report {
    /// Puts rounds together. `after` is what was found when all were over.
    #[must_use]
    pub fn of(
        scenario: &Scenario,
        seed: u64,
        nodes: usize,
        rounds: &[Round],
        after: Vec<Violation>,
    ) -> Self {
        let recoveries = || rounds.iter().flat_map(|round| &round.recoveries);
        let count = u32::try_from(rounds.len()).unwrap_or(u32::MAX);
        let found = (0..).zip(rounds).flat_map(|(number, round)| {
            let found = round.violations.iter().cloned();
            found.map(move |violation| Failure { round: number, violation })
        });
        let after = after.into_iter().map(|violation| Failure { round: count, violation });
        Self {
            scenario: scenario.name,
            number: scenario.number,
            seed,
            nodes,
            rounds: count,
            streams: rounds.iter().map(|round| round.drawn.asks.len()).sum(),
            tokens: rounds.iter().map(|round| round.tokens).sum(),
            recovered: recoveries().map(|recovery| recovery.sequences).sum(),
            detect: Times::of(recoveries().map(|recovery| recovery.detect_ms)),
            plan: Times::of(recoveries().filter_map(|recovery| recovery.plan_ms)),
            load: Times::of(recoveries().map(|recovery| recovery.load_ms)),
            rebuild: Times::of(recoveries().map(|recovery| recovery.rebuild_ms)),
            resume: Times::of(recoveries().map(|recovery| recovery.resume_ms)),
            pause: Times::of_durations(rounds.iter().flat_map(|round| &round.pauses)),
            whole: Times::of_durations(rounds.iter().map(|round| &round.whole)),
            failures: found.chain(after).collect(),
            proofs: rounds.iter().map(|round| round.proof.clone()).collect(),
        }
    }
}

/// The reports for a person to read, or for a README.
#[must_use]
pub fn table(reports: &[Report]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "fault",
        "rounds",
        "answers",
        "tokens",
        "went on",
        "detect",
        "plan",
        "load",
        "rebuild",
        "resume",
        "pause p50",
        "p99",
        "max",
        "whole",
        "failures",
    ]);
    for report in reports {
        let told = |times: &Times, millis: u64| match times.count {
            0 => "-".to_owned(),
            _ => millis.to_string(),
        };
        let middle = |times: &Times| told(times, times.p50);
        table.add_row([
            match report.number {
                0 => report.scenario.to_owned(),
                number => format!("{number} {}", report.scenario),
            },
            report.rounds.to_string(),
            report.streams.to_string(),
            report.tokens.to_string(),
            report.recovered.to_string(),
            middle(&report.detect),
            middle(&report.plan),
            middle(&report.load),
            middle(&report.rebuild),
            middle(&report.resume),
            told(&report.pause, report.pause.p50),
            told(&report.pause, report.pause.p99),
            told(&report.pause, report.pause.max),
            middle(&report.whole),
            report.failures.len().to_string(),
        ]);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_nearest() {
        let times = Times::of((1..=200).rev());
        assert_eq!(times, Times { p50: 100, p99: 198, max: 200, count: 200 });
        assert_eq!(Times::of([7]), Times { p50: 7, p99: 7, max: 7, count: 1 });
        assert_eq!(Times::of([]), Times::default());
    }
}
