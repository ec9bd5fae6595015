//! The answers of one request: one, or several that are drawn from one prompt.

use std::fmt;

use futures::FutureExt as _;
use futures::future::{BoxFuture, select_all};

use super::answer::{Counts, Finish, Piece, Progress};
use super::error::ApiError;
use super::running::Running;
use super::writer::Writer;

/// The answers after the first, on their way to be admitted.
pub(super) type Rest = BoxFuture<'static, Result<Vec<Running>, ApiError>>;

/// Answers under way, and how they are written. Dropping them cancels them.
pub(super) struct Choices {
    writer: Box<dyn Writer>,
    running: Vec<Running>,
    /// Begins once the first answer has its first token: by then its prompt is computed, and the others
    /// need not compute it again.
    rest: Option<Rest>,
    may_begin_rest: bool,
    /// Answers that have not ended.
    left: usize,
}

impl Choices {
    /// The first answer, and those that follow once its prompt is computed.
    pub(super) fn new(
        writer: Box<dyn Writer>,
        first: Running,
        rest: Option<Rest>,
        count: usize,
    ) -> Self {
        Self { writer, running: vec![first], rest, may_begin_rest: false, left: count }
    }

    /// How to write what comes.
    pub(super) fn writer(&mut self) -> &mut dyn Writer {
        self.writer.as_mut()
    }

    /// Whether all answers have ended.
    pub(super) const fn are_over(&self) -> bool {
        self.left == 0
    }

    /// Tokens of all answers so far.
    pub(super) fn counts(&self) -> Counts {
        let mut all = Counts { answer: 0, reasoning: 0, reused: 0 };
        for (number, running) in self.running.iter().enumerate() {
            let counts = running.counts();
            all.answer += counts.answer;
            all.reasoning += counts.reasoning;
            if number == 0 {
                // The prompt counts once.
                all.reused = counts.reused;
            }
        }
        all
    }

    /// Waits for what comes next, of any answer. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> (usize, Progress) {
        loop {
            if let ([only], None) = (self.running.as_mut_slice(), &self.rest) {
                let progress = only.next().await;
                if matches!(progress, Progress::Last(..)) {
                    self.left = 0;
                }
                return (0, progress);
            }
            let rest = self.rest.as_mut().filter(|_| self.may_begin_rest);
            let is_running = self.running.iter().any(|running| !running.is_over());
            let running = self.running.iter_mut().enumerate().filter(|(_, r)| !r.is_over());
            let nexts = running
                .map(|(answer, running)| async move { (answer, running.next().await) }.boxed());
            let next = async {
                match is_running {
                    true => select_all(nexts).await.0,
                    false => std::future::pending().await,
                }
            };
            let more = async {
                match rest {
                    Some(rest) => rest.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                begun = more => {
                    self.rest = None;
                    match begun {
                        Ok(begun) => self.running.extend(begun),
                        Err(error) => return (0, Progress::Failed(error)),
                    }
                }
                (answer, progress) = next => {
                    self.may_begin_rest |= !matches!(progress, Progress::Recovering);
                    if matches!(progress, Progress::Last(..)) {
                        self.left = self.left.saturating_sub(1);
                    }
                    return (answer, progress);
                }
            }
        }
    }

    /// Waits for the end of all answers.
    pub(super) async fn whole(mut self) -> Result<String, ApiError> {
        let mut answers: Vec<(Piece, Finish)> = Vec::new();
        while !self.are_over() {
            let (answer, progress) = self.next().await;
            if answers.len() <= answer {
                answers.resize_with(answer + 1, || (Piece::default(), Finish::End));
            }
            let Some((all, end)) = answers.get_mut(answer) else { continue };
            match progress {
                Progress::More(piece) => {
                    self.writer.gathers(&piece);
                    all.append(piece);
                }
                Progress::Recovering => {}
                Progress::Last(piece, finish) => {
                    self.writer.gathers(&piece);
                    all.append(piece);
                    *end = finish;
                }
                Progress::Failed(error) => return Err(error),
            }
        }
        let counts = self.counts();
        Ok(self.writer.whole(answers, counts))
    }
}

impl fmt::Debug for Choices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writer, running, left, .. } = self;
        let mut parts = f.debug_struct("Choices");
        parts.field("writer", writer).field("running", running).field("left", left);
        parts.finish_non_exhaustive()
    }
}
