//! Writes one answer as it grows.
//!
//! One commit is under way at a time, and what comes meanwhile goes into the next: a quick answer takes
//! few commits and a slow one is on disk at once. What a crash takes is computed again. What the store
//! refuses is kept, and written once it is open again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use planaria_config::SequenceId;
use planaria_protocol::generation::Token;
use planaria_storage::{Batch, CommitError};
use tokio::sync::watch;
use tokio::time::timeout;

use super::retention_index::Standing;
use super::{
    ANSWERS, BESIDE, Outcome, PROMPT_ROW, PROMPTS, Record, Row, StoredAnswers, TOKEN_ROW, TOKENS,
    row_key, token_bytes,
};

/// Tokens in one commit: with twenty log-probabilities each they fill half a batch.
const MOST_TOKENS: usize = 2048;

/// A disk that takes longer for the first of an answer is not well, and its client should hear of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes down an answer. Dropped before [`ended`](Self::ended) it leaves the answer as interrupted.
#[derive(Debug)]
pub struct Recorder(Arc<Writing>);

#[derive(Debug)]
pub(super) struct Writing {
    answers: StoredAnswers,
    id: SequenceId,
    progress: Mutex<Progress>,
    written: watch::Sender<Written>,
}

/// How far it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Written {
    /// How much of what it was told is there; all of it, when it cannot be written.
    told: u64,
    /// Why no more is there: what the store said. It is told again once it is open again.
    refused: Option<String>,
}

#[derive(Debug)]
struct Progress {
    record: Record,
    /// How much it was told.
    told: u64,
    /// What comes before the tokens and is not written; the last one goes first.
    first: Vec<First>,
    /// Tokens in rows that are full.
    settled: usize,
    /// Those behind that, which are written; then those that are being written, and those that are not.
    tail: Vec<Token>,
    sent: Vec<Token>,
    pending: Vec<Token>,
    is_under_way: bool,
    /// It has ended, which is still to be written.
    has_ended: bool,
}

/// A row that comes before the tokens, with its number.
#[derive(Debug)]
enum First {
    /// Of the prompt.
    Prompt(u32, Vec<u32>),
    /// Of what the dialect keeps.
    Beside(u32, String),
}

/// What is on disk once a commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commit {
    /// A row that comes before the tokens.
    First,
    /// The tokens that were sent, and with `true` how it ended.
    Tokens(bool),
}

impl Recorder {
    /// Of an answer of which nothing is written; `written` tells once its prompt and what is kept beside it are.
    pub(super) fn begin(
        answers: StoredAnswers,
        id: SequenceId,
        record: Record,
        prompt: &[u32],
        beside: Vec<String>,
    ) -> Self {
        let recorder = Self::new(answers, id, record, &[]);
        {
            let mut progress = recorder.0.progress();
            let prompt = prompt.chunks(PROMPT_ROW).map(<[u32]>::to_vec);
            let prompt = (0..).zip(prompt).map(|(number, part)| First::Prompt(number, part));
            let beside = (0..).zip(beside).map(|(number, text)| First::Beside(number, text));
            let mut rows: Vec<_> = prompt.chain(beside).collect();
            rows.reverse();
            progress.told = rows.len() as u64;
            progress.first = rows;
        }
        recorder.0.write();
        recorder
    }

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
            first: Vec::new(),
            settled: written.len() - written.len() % TOKEN_ROW,
            tail: written
                .chunks(TOKEN_ROW)
                .last()
                .filter(|last| last.len() < TOKEN_ROW)
                .unwrap_or_default()
                .to_vec(),
            sent: Vec::new(),
            pending: Vec::new(),
            is_under_way: false,
            has_ended: false,
        };
        let progress = Mutex::new(progress);
        let written = watch::Sender::default();
        let writing = Arc::new(Writing { answers, id, progress, written });
        let mut all = writing.answers.writing();
        all.retain(|_, writing| writing.strong_count() > 0);
        all.insert(id, Arc::downgrade(&writing));
        drop(all);
        Self(writing)
    }

    /// Waits until what it was told up to now is on disk.
    ///
    /// # Errors
    /// In words, when the store refuses it or takes too long; it may be written later all the same.
    pub async fn written(&self) -> Result<(), String> {
        let late = || format!("the disk took longer than {PATIENCE:?}");
        timeout(PATIENCE, self.0.settled()).await.unwrap_or_else(|_| Err(late()))
    }

    /// Its client hears that it is not stored.
    pub fn forget(self) {
        let answers = &self.0.answers;
        let place = answers.index().take(self.0.id);
        if let Some(place) = place {
            answers.forget(self.0.id, place);
        }
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

    /// So many tokens of its prompt need no computing.
    pub fn reused(&self, tokens: u32) {
        // It is written with the end.
        self.0.progress().record.reused = tokens;
    }

    /// How it ended, and when, in seconds since 1970; the first word counts.
    pub fn ended(&self, outcome: Outcome, now: u64) {
        {
            let mut progress = self.0.progress();
            if progress.record.outcome.is_some() {
                return;
            }
            progress.record.outcome = Some(outcome);
            progress.record.ended = Some(now);
            progress.told += 1;
            progress.has_ended = true;
        }
        self.0.write();
    }

    /// Nobody reads it any more. While the API is served that is its client's will; otherwise it is
    /// interrupted.
    pub fn abandoned(&self, now: u64) {
        if self.0.answers.0.is_serving.load(Ordering::Relaxed) {
            self.ended(Outcome::Cancelled, now);
        }
    }

    /// Whether it was removed meanwhile.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        !self.0.answers.index().contains(self.0.id)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let answers = &self.0.answers;
        if self.0.progress().record.outcome.is_some() {
            answers.index().stand(self.0.id, Standing::Over);
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
        let Some((batch, commit, told)) = self.next() else {
            return;
        };
        let writing = Arc::clone(self);
        // The store may answer before this returns.
        self.answers.0.store.commit_then(batch, move |result| match result {
            Ok(()) => {
                writing.progress().acknowledged(commit);
                writing.written.send_replace(Written { told, refused: None });
                writing.write();
            }
            Err(error @ (CommitError::Encode { .. } | CommitError::TooLarge { .. })) => {
                writing.cannot(&error);
            }
            Err(error) => writing.refused(commit, &error),
        });
    }

    /// Waits until what it was told up to now is on disk, or cannot be written any more.
    ///
    /// # Errors
    /// In words, when the store refuses it for now.
    pub(super) async fn settled(&self) -> Result<(), String> {
        let told = self.progress().told;
        let mut written = self.written.subscribe();
        let is_over = |written: &Written| written.told >= told || written.refused.is_some();
        // The sender is here.
        match written.wait_for(is_over).await.map(|written| written.clone()) {
            Ok(Written { told: there, refused: Some(why) }) if there < told => Err(why),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// What is to be committed next, and how much of what it was told is on disk then.
    fn next(&self) -> Option<(Batch, Commit, u64)> {
        let mut progress = self.progress();
        let key = self.id.bits().to_be_bytes();
        if progress.is_under_way {
            return None;
        }
        let mut batch = Batch::new();
        let mut index = self.answers.index();
        let (commit, left) = if let Some(first) = progress.first.last() {
            let Some(place) = index.place(self.id) else {
                return self.is_gone();
            };
            if matches!(first, First::Prompt(0, _)) {
                let record = Record { outcome: None, ended: None, ..progress.record.clone() };
                let (prompt_rows, beside) = (place.prompt_rows, place.beside);
                batch.put(&ANSWERS, &key, &Row { record, prompt_rows, rows: 0, bytes: 0, beside });
            }
            match first {
                First::Prompt(number, part) => batch.put(&PROMPTS, &row_key(&key, *number), part),
                First::Beside(number, text) => batch.put(&BESIDE, &row_key(&key, *number), text),
            };
            let rows = progress.first.len() - 1;
            (Commit::First, rows + progress.pending.len() + usize::from(progress.has_ended))
        } else if progress.pending.is_empty() && !progress.has_ended {
            return None;
        } else {
            let count = progress.pending.len().min(MOST_TOKENS);
            progress.sent = progress.pending.drain(..count).collect();
            let bytes = token_bytes(&progress.sent);
            let mut number = u32::try_from(progress.settled / TOKEN_ROW).unwrap_or(u32::MAX);
            let unsettled: Vec<_> = progress.tail.iter().chain(&progress.sent).cloned().collect();
            for row in unsettled.chunks(TOKEN_ROW) {
                batch.put(&TOKENS, &row_key(&key, number), &row.to_vec());
                number += 1;
            }
            let Some(place) = index.grow(self.id, number, bytes) else {
                return self.is_gone();
            };
            let is_all = progress.pending.is_empty() && progress.has_ended;
            if is_all {
                let row = Row {
                    record: progress.record.clone(),
                    prompt_rows: place.prompt_rows,
                    rows: place.rows,
                    bytes: place.bytes,
                    beside: place.beside,
                };
                batch.put(&ANSWERS, &key, &row);
                progress.has_ended = false;
            }
            (Commit::Tokens(is_all), progress.pending.len() + usize::from(progress.has_ended))
        };
        progress.is_under_way = true;
        Some((batch, commit, progress.told - left as u64))
    }

    /// It was removed: nothing more is written.
    fn is_gone<T>(&self) -> Option<T> {
        self.written.send_replace(Written { told: u64::MAX, refused: None });
        None
    }

    /// It cannot be stored at all.
    fn cannot(&self, error: &CommitError) {
        if self.answers.index().take(self.id).is_some() {
            tracing::error!(sequence = %self.id, %error, "an answer cannot be stored");
        }
        self.progress().pending.clear();
        // Whoever waits to tell its name hears that there is none.
        let told = self.written.borrow().told;
        self.written.send_replace(Written { told, refused: Some(error.to_string()) });
    }

    /// The store did not take a commit. It is tried again once it may take it.
    fn refused(self: &Arc<Self>, commit: Commit, error: &CommitError) {
        let why = error.to_string();
        let bytes = self.progress().refused(commit);
        self.answers.index().shrink(self.id, bytes);
        let told = self.written.borrow().told;
        let before = self.written.send_replace(Written { told, refused: Some(why) });
        if before.refused.is_none() {
            tracing::error!(sequence = %self.id, %error, "an answer could not be stored so far; it goes \
                on, and is stored once the store is open again");
        }
        let writing = Arc::clone(self);
        self.answers.0.store.when_ready(move || writing.write());
    }
}

impl Progress {
    fn acknowledged(&mut self, commit: Commit) {
        self.is_under_way = false;
        match commit {
            Commit::First => drop(self.first.pop()),
            Commit::Tokens(_) => {
                self.tail.append(&mut self.sent);
                let full = self.tail.len() - self.tail.len() % TOKEN_ROW;
                self.tail.drain(..full);
                self.settled += full;
            }
        }
    }

    /// As it was before the commit; how many bytes were counted too much.
    fn refused(&mut self, commit: Commit) -> u64 {
        self.is_under_way = false;
        match commit {
            Commit::First => 0,
            Commit::Tokens(has_ended) => {
                let bytes = token_bytes(&self.sent);
                self.sent.append(&mut self.pending);
                self.pending = std::mem::take(&mut self.sent);
                self.has_ended |= has_ended;
                bytes
            }
        }
    }
}
