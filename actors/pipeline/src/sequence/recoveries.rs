//! What the sequences of this node have been through, for people who look. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use planaria_control::cluster_view::RecoveryView;
use planaria_protocol::state::RecoveryLabel;

use super::recovery::Recovered;

/// As many recoveries are remembered.
const REMEMBERED: usize = 100;

/// Sequences that go on under the same plan within this time do so after the same loss.
const TOGETHER_MS: u64 = 5_000;

/// The recoveries, the oldest first.
#[derive(Debug, Default)]
pub struct Recoveries(VecDeque<RecoveryView>);

impl Recoveries {
    /// A sequence went on. `now` is in milliseconds since 1970, `planned` the time from the notice until
    /// there was another plan. `same_bits` says that all who have computed for it compute alike.
    pub fn take(
        &mut self,
        now: u64,
        recovered: &Recovered,
        planned: Option<Duration>,
        same_bits: bool,
    ) {
        let label = if recovered.rebuilt == 0 || same_bits {
            RecoveryLabel::Exact
        } else {
            RecoveryLabel::Equivalent
        };
        let Recovered { cause, model, from, to, detect, ready, rebuild, replayed, rebuilt, .. } =
            recovered;
        let began = now.saturating_sub(millis(*ready + *rebuild));
        let same = self.0.iter_mut().rev().find(|known| {
            (known.from_epoch, known.to_epoch, &known.model) == (Some(*from), Some(*to), model)
                && began.abs_diff(known.at) <= TOGETHER_MS
        });
        let resume = millis(*detect + *ready + *rebuild);
        let load = millis(recovered.load(planned));
        let plan = planned.map(millis);
        if let Some(known) = same {
            known.sequences += 1;
            known.replayed += u64::from(*replayed);
            known.rebuilt += rebuilt;
            if label == RecoveryLabel::Equivalent {
                known.label = label;
            }
            if resume > known.resume_ms {
                known.resume_ms = resume;
                known.detect_ms = millis(*detect);
                known.plan_ms = plan;
                known.load_ms = load;
                known.rebuild_ms = millis(*rebuild);
            }
            return;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(RecoveryView {
            at: began,
            cause: cause.clone(),
            model: model.clone(),
            from_epoch: Some(*from),
            to_epoch: Some(*to),
            detect_ms: millis(*detect),
            plan_ms: plan,
            load_ms: load,
            rebuild_ms: millis(*rebuild),
            resume_ms: resume,
            sequences: 1,
            replayed: u64::from(*replayed),
            rebuilt: *rebuilt,
            label,
        });
    }

    /// All that are remembered.
    pub fn all(&self) -> Vec<RecoveryView> {
        self.0.iter().cloned().collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use planaria_config::Epoch;

    use super::*;

    fn recovered(to: u64, ready: u64, replayed: u32) -> Recovered {
        let example = Recovered::example();
        Recovered {
            to: Epoch { counter: to, ..example.to },
            ready: Duration::from_millis(ready),
            replayed,
            rebuilt: 12 * u64::from(replayed),
            ..example
        }
    }

    #[test]
    fn sequences_that_go_on_after_the_same_loss_are_one_recovery_with_the_times_of_the_slowest() {
        let mut recoveries = Recoveries::default();
        recoveries.take(10_000, &recovered(2, 30, 5), None, true);
        assert_eq!(recoveries.all()[0].label, RecoveryLabel::Exact);
        let planned = Some(Duration::from_millis(12));
        recoveries.take(10_060, &recovered(2, 90, 7), planned, false);
        recoveries.take(10_070, &recovered(2, 20, 1), None, true);
        let [one] = recoveries.all().try_into().unwrap();
        assert_eq!((one.sequences, one.replayed, one.resume_ms), (3, 13, 540));
        assert_eq!(one.rebuilt, 12 * 13);
        assert_eq!((one.plan_ms, one.load_ms), (Some(12), 78));
        assert_eq!((one.at, one.label), (9920, RecoveryLabel::Equivalent));
        recoveries.take(10_080, &recovered(3, 30, 5), None, false);
        recoveries.take(60_000, &recovered(2, 30, 5), None, false);
        assert_eq!(recoveries.all().len(), 3, "another plan, and another time");
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut recoveries = Recoveries::default();
        for to in 0..500 {
            recoveries.take(10_000, &recovered(to, 30, 5), None, false);
        }
        assert_eq!(recoveries.all().len(), REMEMBERED);
    }
}
