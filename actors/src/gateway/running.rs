//! A generation that was admitted, on its way to its client.

use planaria_config::SequenceId;

use super::answer::{Answer, Counts, Progress};
use super::reply::{Reply, reason_word};
use crate::generation::Generation;

/// Dropping it cancels the generation, and writes the one log line that each generation gets.
#[derive(Debug)]
pub(super) struct Running {
    id: SequenceId,
    /// Until it has ended or is of no use any more.
    generation: Option<Generation>,
    answer: Answer,
    reply: Reply,
    outcome: &'static str,
}

impl Running {
    pub(super) const fn new(generation: Generation, answer: Answer, reply: Reply) -> Self {
        Self {
            id: generation.id,
            generation: Some(generation),
            answer,
            reply,
            outcome: "cancelled",
        }
    }

    /// How to write what comes.
    pub(super) const fn reply(&self) -> &Reply {
        &self.reply
    }

    /// Tokens of the answer so far.
    pub(super) const fn counts(&self) -> Counts {
        self.answer.counts()
    }

    /// Waits for what comes next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Progress {
        let progress = loop {
            let event = match &mut self.generation {
                Some(generation) => generation.events.recv().await,
                None => None,
            };
            if let Some(progress) = self.answer.on(event) {
                break progress;
            }
        };
        self.outcome = match &progress {
            Progress::More(_) | Progress::Recovering => return progress,
            Progress::Last(_, reason) => reason_word(*reason),
            Progress::Failed(error) => error.word(),
        };
        // Met a stop text: what is computed from here on is computed for nobody, and this value
        // may live on until a slow client has read the rest.
        self.generation = None;
        progress
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        tracing::info!(
            sequence = %self.id,
            model = self.reply.model,
            prompt_tokens = self.reply.prompt.len(),
            cached_tokens = self.answer.counts().reused,
            completion_tokens = self.answer.counts().answer,
            outcome = self.outcome,
            "a generation ended"
        );
    }
}
