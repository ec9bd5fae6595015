//! A generation that was admitted, on its way to its client.

use std::sync::Arc;
use std::time::Instant;

use planaria_config::SequenceId;
use planaria_protocol::generation::{ClientEvent, GenerationError};
use planaria_telemetry::metrics::{Ended, Metrics};
use planaria_telemetry::wall_clock::unix_seconds;

use super::answer::{Answer, Counts, Progress};
use super::reply::reason_word;
use super::traced::Traced;
use super::writer::Head;
use crate::generation::Generation;
use crate::stored_answers::{Outcome, Recorder};

/// Dropping it cancels the generation, and writes the one log line that each generation gets.
#[derive(Debug)]
pub(super) struct Running {
    id: SequenceId,
    /// Until it has ended or is of no use any more.
    generation: Option<Generation>,
    answer: Answer,
    head: Head,
    /// Of an answer that is to be stored.
    recorder: Option<Recorder>,
    outcome: Ended,
    metrics: Arc<Metrics>,
    traced: Traced,
    began: Instant,
    /// When the last token came.
    token_at: Option<Instant>,
}

impl Running {
    pub(super) fn new(
        generation: Generation,
        answer: Answer,
        head: Head,
        recorder: Option<Recorder>,
        metrics: Arc<Metrics>,
        traced: Traced,
    ) -> Self {
        Self {
            id: generation.id,
            generation: Some(generation),
            answer,
            head,
            recorder,
            outcome: Ended::Cancelled,
            metrics,
            traced,
            began: Instant::now(),
            token_at: None,
        }
    }

    /// Whether nothing comes any more.
    pub(super) const fn is_over(&self) -> bool {
        !matches!(self.outcome, Ended::Cancelled)
    }

    /// Whether it was to be stored, and was removed.
    pub(super) fn is_removed(&self) -> bool {
        self.recorder.as_ref().is_some_and(Recorder::is_removed)
    }

    /// Tokens of the answer so far.
    pub(super) const fn counts(&self) -> Counts {
        self.answer.counts()
    }

    /// Waits for what comes next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Progress {
        let mut may_go_on = false;
        let progress = loop {
            let event = match &mut self.generation {
                Some(generation) => generation.events.recv().await,
                None => None,
            };
            // It is this node that ends then, or a part of it.
            may_go_on |=
                matches!(event, None | Some(ClientEvent::Failed(GenerationError::ShuttingDown)));
            match (&event, &self.recorder) {
                (Some(ClientEvent::Token(token)), recorder) => {
                    if let Some(recorder) = recorder {
                        recorder.token(token);
                    }
                    self.count_token();
                }
                (Some(ClientEvent::Reused(tokens)), Some(recorder)) => recorder.reused(*tokens),
                _ => {}
            }
            if let Some(progress) = self.answer.on(event) {
                break progress;
            }
        };
        self.outcome = match &progress {
            Progress::More(_) | Progress::Recovering => return progress,
            Progress::Last(_, finish) => Ended::Finished(finish.reason()),
            Progress::Failed(error) => Ended::Failed(error.word()),
        };
        match (&progress, self.recorder.take()) {
            (Progress::Last(_, finish), Some(recorder)) => {
                recorder.ended(Outcome::Finished(finish.reason()), unix_seconds());
            }
            (Progress::Failed(error), Some(recorder)) if !may_go_on => {
                recorder.ended(error.outcome(), unix_seconds());
            }
            _ => {}
        }
        // Met a stop text: what is computed from here on is computed for nobody, and this value
        // may live on until a slow client has read the rest.
        self.generation = None;
        progress
    }
}

impl Running {
    fn count_token(&mut self) {
        let (now, model) = (Instant::now(), &self.head.model);
        match self.token_at.replace(now) {
            Some(before) => self.metrics.next_token(model, now - before),
            None => {
                let (prompt, cached) = (self.head.prompt.len() as u64, self.answer.counts().reused);
                self.metrics.first_token(model, prompt, cached.into(), now - self.began);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.ended(&self.head.model, self.outcome, self.began.elapsed());
        if let Some(recorder) = &self.recorder {
            recorder.abandoned(unix_seconds());
        }
        let (outcome, is_good) = match self.outcome {
            Ended::Finished(reason) => (reason_word(reason), true),
            Ended::Failed(code) => (code, false),
            Ended::Cancelled => ("cancelled", false),
        };
        self.traced.ended(self.head.prompt.len(), self.answer.counts(), outcome, is_good);
        tracing::info!(
            sequence = %self.id,
            model = self.head.model,
            prompt_tokens = self.head.prompt.len(),
            cached_tokens = self.answer.counts().reused,
            completion_tokens = self.answer.counts().answer,
            outcome,
            "a generation ended"
        );
    }
}
