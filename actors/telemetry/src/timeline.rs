//! What the owner of a sequence that is traced tells of it: its phases and recoveries, each when it is over.
//! Pure.

use std::time::{Duration, SystemTime};

use planaria_pipeline::sequence::machine::SequenceAction;
use planaria_pipeline::sequence::recovery::Recovered;
use planaria_pipeline::sequence::spans::SequenceSpans;
use planaria_protocol::generation::ClientEvent;
use planaria_protocol::trace_context::TraceContext;

use crate::traces::spans::Span;

/// Of one sequence.
#[derive(Debug)]
pub struct Timeline {
    request: TraceContext,
    spans: SequenceSpans,
    sequence: String,
    began: SystemTime,
    /// When the first token came.
    first: Option<SystemTime>,
    tokens: i64,
    /// Since when its way is broken.
    broken: Option<SystemTime>,
    recoveries: i64,
    error: Option<String>,
}

impl Timeline {
    /// A sequence begins, as a part of `request`.
    pub fn new(now: SystemTime, request: TraceContext, sequence: String) -> Self {
        Self {
            request,
            spans: SequenceSpans::within(request),
            sequence,
            began: now,
            first: None,
            tokens: 0,
            broken: None,
            recoveries: 0,
            error: None,
        }
    }

    /// Takes in what the owner does. `planned` is how long it took until there was the plan that mended it.
    pub fn on(
        &mut self,
        now: SystemTime,
        action: &SequenceAction,
        planned: Option<Duration>,
    ) -> Vec<Span> {
        match action {
            SequenceAction::Tell(ClientEvent::Token(_) | ClientEvent::Finished(_)) => {
                self.tokens +=
                    i64::from(matches!(action, SequenceAction::Tell(ClientEvent::Token(_))));
                if self.first.is_some() {
                    return Vec::new();
                }
                self.first = Some(now);
                vec![self.span("prefill", (self.began, now))]
            }
            SequenceAction::Tell(ClientEvent::Recovering) => {
                if self.broken.is_none() {
                    self.broken = Some(now);
                    self.spans.broken();
                }
                Vec::new()
            }
            SequenceAction::Tell(ClientEvent::Failed(error)) => {
                self.error = Some(error.to_string());
                Vec::new()
            }
            SequenceAction::Recovered(recovered) => {
                self.broken = None;
                self.recoveries += 1;
                self.recovery(now, recovered, planned)
            }
            _ => Vec::new(),
        }
    }

    /// The sequence has ended.
    pub fn end(mut self, now: SystemTime) -> Vec<Span> {
        let mut spans = Vec::new();
        if let Some(broken) = self.broken {
            // Nobody mended it.
            let mut lost = self.below(self.spans.recovery(), "recovery", (broken, now));
            lost.error.clone_from(&self.error);
            let rebuild = Span::within(self.spans.recovery(), "rebuild", 0, (broken, now));
            spans.extend([lost, rebuild]);
        }
        match self.first {
            Some(first) => {
                spans.push(self.span("decode", (first, now)).with("tokens", self.tokens));
            }
            None => spans.push(self.span("prefill", (self.began, now))),
        }
        let mut whole = Span::within(self.request, "sequence", 0, (self.began, now))
            .with("sequence", std::mem::take(&mut self.sequence))
            .with("tokens", self.tokens)
            .with("recoveries", self.recoveries);
        whole.error = self.error;
        spans.push(whole);
        spans
    }

    fn span(&self, name: &'static str, times: (SystemTime, SystemTime)) -> Span {
        Span::within(self.spans.sequence(), name, 0, times).with("sequence", self.sequence.clone())
    }

    /// A part of the sequence that is named already.
    fn below(&self, at: TraceContext, name: &'static str, times: (SystemTime, SystemTime)) -> Span {
        Span { at, ..self.span(name, times) }
    }

    fn recovery(
        &self,
        now: SystemTime,
        recovered: &Recovered,
        planned: Option<Duration>,
    ) -> Vec<Span> {
        let Recovered { detect, ready, rebuild, .. } = *recovered;
        let before = |time: SystemTime, by| time.checked_sub(by).unwrap_or(time);
        let is_ready = before(now, rebuild);
        let noticed = before(is_ready, ready);
        let began = before(noticed, detect);
        let has_plan = noticed + planned.unwrap_or_default();
        let at = self.spans.recovery();
        let whole = self
            .below(at, "recovery", (began, now))
            .with("cause", recovered.kind)
            .with("from_epoch", recovered.from.to_string())
            .with("epoch", recovered.to.to_string())
            .with("replayed", i64::from(recovered.replayed))
            .with("rebuilt", i64::try_from(recovered.rebuilt).unwrap_or(i64::MAX));
        let whole = Span { link: recovered.died, ..whole };
        let phases = [
            ("detect", began, noticed),
            ("plan", noticed, has_plan),
            ("load", has_plan, is_ready),
            ("rebuild", is_ready, now),
            ("resume", began, now),
        ];
        let phases = phases.map(|(name, from, to)| Span::within(at, name, 0, (from, to)));
        std::iter::once(whole).chain(phases).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use planaria_protocol::generation::{FinishReason, GenerationError, Token};

    use super::*;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(millis)
    }

    fn token() -> SequenceAction {
        SequenceAction::Tell(ClientEvent::Token(Token { id: 1, logprobs: None }))
    }

    fn times(spans: &[Span]) -> Vec<(&'static str, u64, u64)> {
        let millis = |time: SystemTime| {
            u64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
        };
        spans.iter().map(|span| (span.name, millis(span.began), millis(span.ended))).collect()
    }

    fn timeline() -> (TraceContext, Timeline) {
        let request = TraceContext::new(7, 8, true).unwrap();
        (request, Timeline::new(at(1000), request, "s".to_owned()))
    }

    #[test]
    fn an_answer_has_two_phases_that_lie_within_its_sequence() {
        let (request, mut timeline) = timeline();
        let mut spans = timeline.on(at(1300), &token(), None);
        spans.extend(timeline.on(at(1400), &token(), None));
        let done = SequenceAction::Tell(ClientEvent::Finished(FinishReason::Stop));
        spans.extend(timeline.on(at(1500), &done, None));
        spans.extend(timeline.end(at(1501)));
        assert_eq!(
            times(&spans),
            [("prefill", 1000, 1300), ("decode", 1300, 1501), ("sequence", 1000, 1501)]
        );
        let named = SequenceSpans::within(request);
        assert_eq!(spans[0].at, named.prefill());
        assert_eq!(spans[1].at, named.decode());
        assert_eq!((spans[2].at, spans[2].parent), (named.sequence(), request));
        assert!(spans[..2].iter().all(|span| span.parent == spans[2].at));
    }

    #[test]
    fn a_recovery_has_the_phases_that_its_owner_measured_and_a_link_to_what_died() {
        let (request, mut timeline) = timeline();
        timeline.on(at(1300), &token(), None);
        timeline.on(at(1800), &SequenceAction::Tell(ClientEvent::Recovering), None);
        timeline.on(at(4800), &SequenceAction::Tell(ClientEvent::Recovering), None);
        let planned = Some(Duration::from_millis(30));
        let spans =
            timeline.on(at(1940), &SequenceAction::Recovered(Recovered::example()), planned);
        assert_eq!(
            times(&spans),
            [
                ("recovery", 1400, 1940),
                ("detect", 1400, 1800),
                ("plan", 1800, 1830),
                ("load", 1830, 1890),
                ("rebuild", 1890, 1940),
                ("resume", 1400, 1940),
            ]
        );
        let mut named = SequenceSpans::within(request);
        named.broken();
        assert_eq!(spans[0].link, Recovered::example().died);
        assert_eq!((spans[0].at, spans[0].parent), (named.recovery(), named.sequence()));
        assert_eq!(spans[4].at, named.rebuild());
        assert!(spans[1..].iter().all(|span| span.parent == spans[0].at));
        let ends = timeline.end(at(2000));
        assert_eq!(times(&ends), [("decode", 1300, 2000), ("sequence", 1000, 2000)]);
    }

    #[test]
    fn what_nobody_mends_ends_with_the_reason() {
        let (_, mut timeline) = timeline();
        timeline.on(at(1100), &SequenceAction::Tell(ClientEvent::Recovering), None);
        let error = GenerationError::TimedOut { seconds: 3 };
        timeline.on(at(1200), &SequenceAction::Tell(ClientEvent::Failed(error)), None);
        let spans = timeline.end(at(1200));
        assert_eq!(
            times(&spans),
            [
                ("recovery", 1100, 1200),
                ("rebuild", 1100, 1200),
                ("prefill", 1000, 1200),
                ("sequence", 1000, 1200),
            ]
        );
        let reason = Some("no token came for 3 seconds".to_owned());
        assert_eq!((&spans[0].error, &spans[3].error), (&reason, &reason));
    }
}
