//! Writes one answer as it grows.
//!
//! One commit is under way at a time, and what comes meanwhile goes into the next: a quick answer takes
//! few commits and a slow one is on disk at once. What a crash takes is computed again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use planaria_config::SequenceId;
use planaria_storage::{Batch, CommitError};
use tokio::sync::watch;

use super::shelf::Standing;
use super::{
    ANSWERS, Outcome, Record, Row, StoredAnswers, TOKEN_ROW, TOKENS, row_key, token_bytes,
};
use crate::generation::Token;

/// Tokens in one commit: with twenty log-probabilities each they fill half a batch.
const MOST_TOKENS: usize = 2048;

/// Takes down an answer. Dropped before [`ended`](Self::ended) it leaves the answer as interrupted.
#[derive(Debug)]
pub struct Recorder(Arc<Writing>);

#[derive(Debug)]
pub(super) struct Writing {
    answers: StoredAnswers,
    id: SequenceId,
    progress: Mutex<Progress>,
    /// How much of what it was told is on disk; all of it, when it cannot be written.
    written: watch::Sender<u64>,
}

#[derive(Debug)]
struct Progress {
    record: Record,
    /// How much it was told.
    told: u64,
    /// Tokens in rows that are full.
    settled: usize,
    /// Those behind that, which are written; then those that are not.
    tail: Vec<Token>,
    pending: Vec<Token>,
    is_under_way: bool,
    /// It has ended, which is still to be written.
    has_ended: bool,
}

impl Recorder {
    /// Of an answer of which these tokens are written.
    pub(super) fn new(
        answers: StoredAnswers,
        id: SequenceId,
        record: Record,
        written: &[Token],
    ) -> Self {
        let progress = Progress {
            record,
            told: 0,
            settled: written.len() - written.len() % TOKEN_ROW,
            tail: written
                .chunks(TOKEN_ROW)
                .last()
                .filter(|last| last.len() < TOKEN_ROW)
                .unwrap_or_default()
                .to_vec(),
            pending: Vec::new(),
            is_under_way: false,
            has_ended: false,
        };
        let progress = Mutex::new(progress);
        let writing = Arc::new(Writing { answers, id, progress, written: watch::Sender::new(0) });
        let mut all = writing.answers.writing();
        all.retain(|_, writing| writing.strong_count() > 0);
        all.insert(id, Arc::downgrade(&writing));
        drop(all);
        Self(writing)
    }

    /// The next token.
    pub fn token(&self, token: &Token) {
        {
            let mut progress = self.0.progress();
            if progress.record.outcome.is_some() {
                return;
            }
            progress.told += 1;
            progress.pending.push(token.clone());
        }
        self.0.write();
    }

    /// How it ended; the first word counts.
    pub fn ended(&self, outcome: Outcome) {
        {
            let mut progress = self.0.progress();
            if progress.record.outcome.is_some() {
                return;
            }
            progress.record.outcome = Some(outcome);
            progress.told += 1;
            progress.has_ended = true;
        }
        self.0.write();
    }

    /// Nobody reads it any more. While the API is served that is its client's will; otherwise it is
    /// interrupted.
    pub fn abandoned(&self) {
        if self.0.answers.0.is_serving.load(Ordering::Relaxed) {
            self.ended(Outcome::Cancelled);
        }
    }

    /// Whether it was removed meanwhile.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        !self.0.answers.shelf().contains(self.0.id)
    }

    /// Commits something of the answer, before any token.
    pub(super) fn commit(&self, batch: Batch) {
        self.0.progress().told += 1;
        let writing = Arc::clone(&self.0);
        self.0.answers.0.store.commit_then(batch, move |result| {
            if !writing.refused(result.err()) {
                writing.written.send_modify(|written| *written += 1);
            }
        });
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let answers = &self.0.answers;
        if self.0.progress().record.outcome.is_some() {
            answers.shelf().stand(self.0.id, Standing::Over);
        } else {
            answers.interrupted(self.0.id);
        }
    }
}

impl Writing {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits what there is, unless a commit is under way.
    fn write(self: &Arc<Self>) {
        let Some((batch, told)) = self.next() else {
            return;
        };
        let writing = Arc::clone(self);
        // The store may answer before this returns.
        self.answers.0.store.commit_then(batch, move |result| {
            writing.progress().is_under_way = false;
            if !writing.refused(result.err()) {
                writing.written.send_replace(told);
                writing.write();
            }
        });
    }

    /// Waits until what it was told up to now is on disk, or cannot be written.
    pub(super) async fn settled(&self) {
        let told = self.progress().told;
        // The sender is here.
        drop(self.written.subscribe().wait_for(|written| *written >= told).await);
    }

    /// What is to be committed next, and how much of what it was told that is.
    fn next(&self) -> Option<(Batch, u64)> {
        let mut progress = self.progress();
        if progress.is_under_way || (progress.pending.is_empty() && !progress.has_ended) {
            return None;
        }
        let key = self.id.bits().to_be_bytes();
        let mut batch = Batch::new();
        let count = progress.pending.len().min(MOST_TOKENS);
        let mut tokens: Vec<_> = progress.pending.drain(..count).collect();
        let bytes = token_bytes(&tokens);
        progress.tail.append(&mut tokens);
        let mut number = u32::try_from(progress.settled / TOKEN_ROW).unwrap_or(u32::MAX);
        for row in progress.tail.chunks(TOKEN_ROW) {
            batch.put(&TOKENS, &row_key(&key, number), &row.to_vec());
            number += 1;
        }
        let full = progress.tail.len() - progress.tail.len() % TOKEN_ROW;
        progress.tail.drain(..full);
        progress.settled += full;
        let mut shelf = self.answers.shelf();
        let Some(place) = shelf.grow(self.id, number, bytes) else {
            self.written.send_replace(u64::MAX);
            return None;
        };
        if progress.pending.is_empty() && progress.has_ended {
            let row = Row {
                record: progress.record.clone(),
                prompt_rows: place.prompt_rows,
                rows: place.rows,
                bytes: place.bytes,
            };
            batch.put(&ANSWERS, &key, &row);
            progress.has_ended = false;
        }
        progress.is_under_way = true;
        let left = progress.pending.len() as u64 + u64::from(progress.has_ended);
        Some((batch, progress.told - left))
    }

    /// Whether the disk did not take it: nothing is written of the answer from here on. What is there
    /// of it is found when the store is opened anew.
    fn refused(&self, error: Option<CommitError>) -> bool {
        let Some(error) = error else {
            return false;
        };
        if self.answers.shelf().take(self.id).is_some() {
            tracing::error!(sequence = %self.id, %error, "an answer could not be stored");
        }
        self.progress().pending.clear();
        self.written.send_replace(u64::MAX);
        true
    }
}
