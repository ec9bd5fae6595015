//! Responses that are on disk, brought back: to be read, gone on with, and followed while they go on.

use std::sync::Arc;

use planaria_config::SequenceId;

use super::kept::{self, Stored};
use super::memory::Entry;
use super::writing::ReplyWriter;
use crate::Parts;
use crate::answer::{Counts, Progress};
use crate::error::ApiError;
use crate::generate::off_thread;
use crate::stored::{self, Again};
use crate::stored_answers::StoredAnswer;
use crate::writer::Writer as _;

/// The response of this name, if it is on disk. One that is over is remembered from here on; another is shown as it was
/// written so far, and does not grow.
pub(super) async fn recalled(shared: &Parts, name: &str) -> Result<Option<Arc<Entry>>, ApiError> {
    let Some(key) = kept::key_of(name).filter(|key| shared.stored.keeps_beside(*key)) else {
        return Ok(None);
    };
    let Some(answer) = stored::read(shared, key).await? else {
        return Ok(None);
    };
    let mut again = Again::of(shared, key, &answer).await?;
    let entry = entry(key, &answer, &mut again).await?;
    Ok(entry.map(|entry| if entry.is_over() { shared.responses.recall(entry) } else { entry }))
}

/// The response that is stored as `answer`; none if that is another dialect's.
async fn entry(
    key: SequenceId,
    answer: &StoredAnswer,
    again: &mut Again,
) -> Result<Option<Arc<Entry>>, ApiError> {
    let Some(beside) = answer.beside.clone() else {
        return Ok(None);
    };
    let stored = Stored {
        key,
        record: answer.record.clone(),
        beside,
        prompt: answer.prompt.len(),
        pieces: std::mem::take(&mut again.pieces),
        finish: again.finish.clone(),
        counts: again.answer.counts(),
    };
    // As many events as it has tokens.
    off_thread(move || kept::again(stored)).await.map(Some)
}

/// A response that goes on from what was stored of it.
#[derive(Debug)]
pub(crate) struct GoingOn {
    entry: Arc<Entry>,
    writer: ReplyWriter,
}

/// Remembers that the response which is stored as `answer` goes on; none if that is another dialect's.
pub(crate) async fn going_on(
    shared: &Parts,
    key: SequenceId,
    answer: &StoredAnswer,
    again: &mut Again,
) -> Result<Option<GoingOn>, ApiError> {
    let Some(entry) = entry(key, answer, again).await? else {
        return Ok(None);
    };
    shared.responses.insert(Arc::clone(&entry));
    let memory = Arc::clone(&shared.responses);
    let writer = ReplyWriter::again(Arc::clone(&entry), memory, answer.prompt.len());
    Ok(Some(GoingOn { entry, writer }))
}

impl GoingOn {
    /// The cluster has taken it up again.
    pub(crate) fn begins(&mut self) {
        if self.entry.is_queued() {
            self.writer.opening();
        }
    }

    /// What comes of it next.
    pub(crate) fn shows(&mut self, progress: Progress, counts: Counts) {
        match progress {
            Progress::More(piece) => drop(self.writer.piece(0, piece)),
            Progress::Last(piece, finish) => {
                self.writer.piece(0, piece);
                self.writer.finished(0, &finish);
                self.writer.closing(counts);
            }
            Progress::Recovering => {}
            Progress::Failed(error) => drop(self.writer.failed(&error)),
        }
    }

    /// Waits until it was cancelled.
    pub(crate) async fn cancelled(&self) {
        self.entry.over().await;
    }
}
