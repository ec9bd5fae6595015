//! Who could not hold which model, and for how long it is left out of it. Pure.
//!
//! Each further failure doubles the time, so that a member that cannot load costs the others little, and
//! one whose trouble is over is back without anybody's doing. What is remembered of a member goes with
//! its life, with its files of the model, and with the time for which it has held its layers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use planaria_config::{Incarnation, ModelName};
use planaria_protocol::wire::HeldModel;

use crate::membership::{Member, View};
use crate::scheduler::placement::Excluded;

/// Nobody is left out for longer than this: what a person who has mended something waits for at most. Who
/// has held its layers for so long fails for the first time when it fails again.
pub(super) const LONGEST: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Failures {
    /// For how long somebody is left out who fails for the first time.
    first: Duration,
    of: BTreeMap<(Incarnation, ModelName), Failure>,
}

#[derive(Debug)]
struct Failure {
    reason: String,
    wait: Duration,
    /// Until when it is left out; `None` once that is over.
    until: Option<Instant>,
    /// Since when it has held its layers again.
    well: Option<Instant>,
    /// Its files of the model then.
    files: Option<HeldModel>,
}

impl Failures {
    pub(super) const fn new(first: Duration) -> Self {
        Self { first, of: BTreeMap::new() }
    }

    /// A member failed; whether that is news, since it was not left out already.
    pub(super) fn note(
        &mut self,
        now: Instant,
        member: &Member,
        model: &ModelName,
        reason: String,
    ) -> bool {
        let key = (member.incarnation, model.clone());
        let known = self.of.get(&key);
        if known.is_some_and(|known| known.until.is_some()) {
            return false;
        }
        let is_recent = |known: &&Failure| {
            known.well.is_none_or(|since| now.saturating_duration_since(since) < LONGEST)
        };
        let doubled = known.filter(is_recent).map(|known| known.wait.saturating_mul(2));
        let wait = doubled.map_or(self.first, |wait| wait.min(LONGEST.max(self.first)));
        let files = files(member, model).cloned();
        self.of.insert(key, Failure { reason, wait, until: Some(now + wait), well: None, files });
        true
    }

    /// It holds its layers.
    pub(super) fn succeeded(&mut self, now: Instant, life: Incarnation, model: &ModelName) {
        if let Some(failure) = self.of.get_mut(&(life, model.clone())) {
            failure.until = None;
            failure.well.get_or_insert(now);
        }
    }

    /// Why it is left out, and until when, if it is.
    pub(super) fn words(&self, life: Incarnation, model: &ModelName) -> Option<String> {
        self.of.get(&(life, model.clone())).and_then(Failure::words)
    }

    /// Forgets what was about former lives and other files, and about models that were asked for again, or are
    /// not wanted any more. Whether somebody is not left out any more for that.
    pub(super) fn look(&mut self, view: &View, asked: &[ModelName]) -> bool {
        let before = self.left_out();
        self.of.retain(|(life, model), failure| {
            let seen = view.state_of(life.node).map(|(seen, _)| seen);
            // Of a member that is away for a moment nothing is known.
            let same_files = view.member(life.node).is_none_or(|member| {
                member.incarnation != *life || files(member, model) == failure.files.as_ref()
            });
            let is_wanted = view.desired().contains_key(model) && !asked.contains(model);
            seen == Some(*life) && same_files && is_wanted
        });
        self.left_out() < before
    }

    /// Lets in those whose time is over. Whether there are any.
    pub(super) fn pass(&mut self, now: Instant) -> bool {
        let over = |failure: &&mut Failure| failure.until.is_some_and(|until| until <= now);
        let over = self.of.values_mut().filter(over);
        over.map(|failure| failure.until = None).count() > 0
    }

    /// When the next one's time is over.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.of.values().filter_map(|failure| failure.until).min()
    }

    pub(super) fn contains(&self, life: Incarnation, model: &ModelName) -> bool {
        self.of.get(&(life, model.clone())).is_some_and(|failure| failure.until.is_some())
    }

    /// Who is left out, and why, and until when.
    pub(super) fn excluded(&self) -> Excluded {
        let all = self.of.iter();
        all.filter_map(|(key, failure)| Some((key.clone(), failure.words()?))).collect()
    }

    fn left_out(&self) -> usize {
        self.of.values().filter(|failure| failure.until.is_some()).count()
    }
}

impl Failure {
    fn words(&self) -> Option<String> {
        let Self { reason, wait, .. } = self;
        self.until.map(|_| format!("{reason} (it is tried again {wait:?} after that)"))
    }
}

fn files<'a>(member: &'a Member, model: &ModelName) -> Option<&'a HeldModel> {
    member.report.models.iter().find(|held| held.name == *model)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{member, model};

    const FIRST: Duration = Duration::from_secs(30);

    #[test]
    fn each_failure_doubles_the_time_until_there_is_a_reason_to_hope() {
        let (mut now, mut failures) = (Instant::now(), Failures::new(FIRST));
        let third = member(3, 1, 100);
        let waits = [30, 60, 120, 240, 300, 300].map(Duration::from_secs);
        for wait in waits {
            assert!(failures.note(now, &third, &model(), "no disk".to_owned()));
            assert!(!failures.note(now, &third, &model(), "no disk".to_owned()), "known");
            let words = failures.excluded().into_values().next().unwrap();
            assert_eq!(words, format!("no disk (it is tried again {wait:?} after that)"));
            assert_eq!(failures.wake_at(), Some(now + wait));
            assert!(!failures.pass(now + wait - Duration::from_secs(1)));
            now += wait;
            assert!(failures.pass(now) && !failures.contains(third.incarnation, &model()));
        }
        for (well, wait) in [(LONGEST / 2, LONGEST), (LONGEST, FIRST)] {
            failures.succeeded(now, third.incarnation, &model());
            now += well;
            failures.note(now, &third, &model(), "no disk".to_owned());
            assert_eq!(failures.wake_at(), Some(now + wait));
        }
    }

    #[test]
    fn a_restart_other_files_or_another_wish_is_a_reason_to_try_at_once() {
        let now = Instant::now();
        let third = member(3, 1, 100);
        let mut repaired = third.clone();
        Arc::make_mut(&mut repaired.report).models[0].digest = "22".repeat(32).parse().unwrap();
        let mut unwanted = third.clone();
        Arc::make_mut(&mut unwanted.report).desired =
            planaria_protocol::desired::DesiredMap::default();
        for (seen, forgets) in
            [(third.clone(), false), (member(3, 2, 100), true), (repaired, true), (unwanted, true)]
        {
            let mut failures = Failures::new(FIRST);
            failures.note(now, &third, &model(), "no disk".to_owned());
            assert_eq!(failures.look(&View::of([seen]), &[]), forgets);
            assert_eq!(failures.contains(third.incarnation, &model()), !forgets);
        }
        let mut failures = Failures::new(FIRST);
        failures.note(now, &third, &model(), "no disk".to_owned());
        assert!(failures.look(&View::of([third]), &[model()]), "asked for again");
    }
}
