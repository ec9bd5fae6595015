//! Whether an answer is stored, and from when on.
//!
//! What a request demands to be stored is stored, or the request is refused. What a dialect keeps is stored as far as
//! the disk takes it; if it does not, the answer goes on and its dialect hears why. Either is on disk before its name is
//! told to anybody.

use std::sync::Arc;

use planaria_config::SequenceId;
use planaria_protocol::generation::Request;
use planaria_telemetry::wall_clock::unix_seconds;

use super::error::ApiError;
use super::generate::off_thread;
use super::request::{Delivery, Reading};
use super::writer::{Dialect, Head, Kept};
use super::{Parts, Shared};
use crate::stored_answers::{Record, Recorder};

/// Most bytes of forms and tools of a stored answer, so that its first row fits a commit with room to spare.
const MOST_FORM: usize = 256 << 10;

/// What is to be stored of an answer.
#[derive(Debug)]
pub(super) enum Wish {
    /// It is stored, or refused.
    Demanded(Record),
    /// It is stored if that is possible.
    Kept(Record),
}

/// Refuses what is demanded and cannot be.
pub(super) fn demand_store(shared: &Shared, delivery: &Delivery) -> Result<(), ApiError> {
    if !shared.stored.has_room() {
        return Err(ApiError::invalid("store", format!("{NO_ROOM}: leave it out")));
    }
    if delivery.answers > 1 {
        let message = "one answer is stored: leave `store` or `n` out";
        return Err(ApiError::invalid("store", message));
    }
    match shared.stored.closed() {
        Some(closed) => Err(cannot_store(&closed)),
        None => Ok(()),
    }
}

const NO_ROOM: &str = "this node stores no answers (its setting `stored-answers` is 0)";

impl Wish {
    /// What is to be stored of the answer to `request`.
    pub(super) fn of(
        dialect: &dyn Dialect,
        delivery: &Delivery,
        (created, request, reading): (u64, &Request, &Reading),
    ) -> Result<Option<Self>, ApiError> {
        let is_demanded = delivery.store.is_some();
        if !is_demanded && !dialect.keeps() {
            return Ok(None);
        }
        let record = delivery.record(created, request, reading);
        if record.form_bytes() <= MOST_FORM {
            return Ok(Some(if is_demanded { Self::Demanded(record) } else { Self::Kept(record) }));
        }
        let message =
            format!("the tools, or the form, of a stored answer may take {MOST_FORM} bytes");
        if is_demanded {
            return Err(ApiError::invalid("store", format!("{message}: leave `store` out")));
        }
        dialect.stored(Err(&message));
        Ok(None)
    }

    /// Begins to store an answer that is not admitted yet, if its dialect wants that.
    pub(super) async fn before_admission(
        &self,
        shared: &Parts,
        dialect: &Arc<dyn Dialect>,
        head: &Head,
    ) -> Result<Option<Recording>, ApiError> {
        match self {
            Self::Kept(record) => kept(shared, dialect, head, None, record).await,
            Self::Demanded(_) => Ok(None),
        }
    }

    /// Begins to store an answer that was admitted.
    pub(super) async fn after_admission(
        &self,
        shared: &Parts,
        dialect: &Arc<dyn Dialect>,
        head: &Head,
        sequence: SequenceId,
    ) -> Result<Option<Recording>, ApiError> {
        match self {
            Self::Kept(record) => kept(shared, dialect, head, Some(sequence), record).await,
            Self::Demanded(record) => {
                let recording = Recording::begin(shared, sequence, record, head, None).await;
                recording.map(Some).map_err(|why| cannot_store(&why))
            }
        }
    }
}

/// Stores what the dialect keeps, if there is anything and the disk takes it.
async fn kept(
    shared: &Parts,
    dialect: &Arc<dyn Dialect>,
    head: &Head,
    sequence: Option<SequenceId>,
    record: &Record,
) -> Result<Option<Recording>, ApiError> {
    let (keeper, about) = (Arc::clone(dialect), head.clone());
    // Conversations are long.
    let kept = off_thread(move || Ok(keeper.kept(&about, sequence))).await?;
    let Some(Kept { key, beside }) = kept else {
        return Ok(None);
    };
    let begun = match (shared.stored.has_room(), shared.stored.closed()) {
        (false, _) => Err(NO_ROOM.to_owned()),
        (true, Some(closed)) => Err(closed),
        (true, None) => Recording::begin(shared, key, record, head, Some(&beside)).await,
    };
    match begun {
        Ok(recording) => {
            dialect.stored(Ok(()));
            Ok(Some(recording))
        }
        Err(why) => {
            tracing::warn!(answer = %key, model = head.model, why, "an answer goes on without being stored");
            dialect.stored(Err(&why));
            Ok(None)
        }
    }
}

/// An answer whose beginning is on disk, and which nobody computes yet. Dropped, its client has left.
#[derive(Debug)]
pub(super) struct Recording {
    /// The name under which it is stored.
    pub(super) key: SequenceId,
    recorder: Option<Recorder>,
}

impl Recording {
    /// Begins to store an answer; on return it is on disk.
    ///
    /// # Errors
    /// In words, when the store does not take it; then it is not there later either.
    async fn begin(
        shared: &Parts,
        key: SequenceId,
        record: &Record,
        head: &Head,
        beside: Option<&str>,
    ) -> Result<Self, String> {
        let recorder = shared.stored.begin(key, record.clone(), &head.prompt, beside);
        let mut recording = Self { key, recorder: Some(recorder) };
        let written = match &recording.recorder {
            Some(recorder) => recorder.written().await,
            None => Ok(()),
        };
        if written.is_err()
            && let Some(recorder) = recording.recorder.take()
        {
            recorder.forget();
        }
        written.map(|()| recording)
    }

    /// It was not admitted.
    pub(super) fn refused(mut self, error: &ApiError) {
        if let Some(recorder) = self.recorder.take() {
            recorder.ended(error.outcome(), unix_seconds());
        }
    }

    /// It is computed from here on.
    pub(super) fn admitted(mut self) -> Option<Recorder> {
        self.recorder.take()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(recorder) = &self.recorder {
            recorder.abandoned(unix_seconds());
        }
    }
}

fn cannot_store(why: &str) -> ApiError {
    ApiError::store_closed(format!(
        "the answer cannot be stored: {why}; ask again later, or without `store`"
    ))
}
