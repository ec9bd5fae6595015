//! Answers whose clients asked for them to be stored: on disk as they grow, so that this node can tell
//! what became of them, and go on with them, whatever it has been through.
//!
//! [`StoredAnswers`] knows which there are (`index`, pure) and reads them; a [`Recorder`] writes one.
//! Nothing waits for the disk. An answer is its request, with what became of it, in one row, its prompt in
//! some, and its tokens in some, numbered from 0 without a gap; the last row of tokens is written anew until
//! it is full. What its dialect needs beside that to show it again is a text, in rows of its own.

mod recorder;
mod retention_index;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use planaria_config::{ModelName, SequenceId};
use planaria_engine::grammar::Form;
use planaria_engine::reply::ToolTypes;
use planaria_engine::sampler::SamplingParams;
use planaria_protocol::generation::{FinishReason, Token, Until};
use planaria_storage::{Batch, CommitError, ReadError, Store, Table};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;

use self::recorder::Writing;
use self::retention_index::{Beside, Place, RetentionIndex, Standing};

pub use self::recorder::Recorder;

type Key = [u8; 16];
type RowKey = [u8; 20];

const ANSWERS: Table<Key, Row> = Table::new("answer");
const PROMPTS: Table<RowKey, Vec<u32>> = Table::new("answer-prompt");
const TOKENS: Table<RowKey, Vec<Token>> = Table::new("answer-token");
const BESIDE: Table<RowKey, String> = Table::new("answer-beside");

/// Tokens of a prompt in one row, with its key and at five bytes each a third of the largest batch.
const PROMPT_ROW: usize = 65_536;

/// Bytes of what is kept beside an answer in one row: a quarter of the largest batch.
const BESIDE_ROW: usize = 256 << 10;

/// Tokens of an answer in one row. Few, since the last one is written at each commit; many, since all are
/// removed at once.
const TOKEN_ROW: usize = 64;

/// What was asked, and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it was asked, in seconds since 1970.
    pub created: u64,
    /// Which model answers.
    pub model: ModelName,
    /// How tokens are chosen; also how many tokens the prompt has.
    pub sampling: SamplingParams,
    /// When the answer ends by itself.
    pub until: Until,
    /// Texts that end it and are not part of it.
    pub stop: Vec<String>,
    /// Whether the client wants token ids.
    pub token_ids: bool,
    /// What the client wrote on it.
    pub metadata: BTreeMap<String, String>,
    /// How it ended, if it has.
    pub outcome: Option<Outcome>,
    /// When that was, in seconds since 1970. An earlier build does not say it, nor the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    /// Tokens of the prompt that needed no computing; of an answer that went on, those of its last beginning.
    #[serde(default)]
    pub reused: u32,
    /// How it may call tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<Calls>,
}

impl Record {
    /// About what the form of the answer and the types of its tools take.
    pub(crate) fn form_bytes(&self) -> usize {
        let form =
            self.sampling.constraint.as_deref().map_or(0, |constraint| match &constraint.form {
                Form::JsonObject => 0,
                Form::JsonSchema(text) | Form::Regex(text) | Form::Lark(text) => text.len(),
                Form::Choice(texts) => texts.iter().map(|text| text.len() + 5).sum(),
            });
        // Names and numbers; as JSON they are longer than in the store.
        form + self
            .calls
            .as_ref()
            .map_or(0, |calls| serde_json::to_string(calls).map_or(0, |text| text.len()))
    }
}

/// How an answer calls tools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Calls {
    /// As its model marks calls.
    Marked {
        /// The types of their arguments.
        types: ToolTypes,
        /// Whether it may make several at once.
        parallel: bool,
    },
    /// Its text is a list of calls.
    Listed {
        /// Whether it may make several at once.
        parallel: bool,
        /// Whether it may be an answer in their place.
        or_text: bool,
    },
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As it should.
    Finished(FinishReason),
    /// With an error.
    Failed {
        /// In words.
        message: String,
        /// For programs.
        code: String,
    },
    /// Its client left.
    Cancelled,
}

/// An answer on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredAnswer {
    /// What was asked, and what became of it.
    pub record: Record,
    /// The prompt's token ids.
    pub prompt: Vec<u32>,
    /// The answer's tokens, as far as they were written.
    pub tokens: Vec<Token>,
    /// What its dialect keeps beside them, if it keeps anything.
    pub beside: Option<String>,
}

/// Why an answer cannot be read.
#[derive(Debug, Error)]
pub enum StoredError {
    /// The store said so.
    #[error("the stored answer cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The store is closed. Nothing is known of the answer until it is open again.
    #[error("this node cannot look into its store now, and tries again by itself: {0}")]
    Closed(String),
    /// This node was killed while what its dialect keeps was written.
    #[error("the stored answer is incomplete: {found} of {expected} rows beside it were written")]
    Parted {
        /// Rows that are there.
        found: u32,
        /// Rows that it has.
        expected: u32,
    },
    /// This node was killed while its prompt was written.
    #[error(
        "the stored answer is incomplete: {found} of {expected} tokens of its prompt were written"
    )]
    Incomplete {
        /// Tokens of the prompt that are there.
        found: usize,
        /// Tokens that it has.
        expected: u32,
    },
    /// The node is shutting down.
    #[error("the stored answer was not read to its end")]
    Interrupted,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    record: Record,
    /// Rows of its prompt.
    prompt_rows: u32,
    /// Rows of its tokens, and about how many bytes all of it takes; once it has ended.
    rows: u32,
    bytes: u64,
    /// What its dialect keeps. An earlier build kept nothing.
    #[serde(default)]
    beside: Beside,
}

/// All of them. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct StoredAnswers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    index: Mutex<RetentionIndex>,
    /// Who writes what grows, until all of it is on disk.
    writing: Mutex<BTreeMap<SequenceId, Weak<Writing>>>,
    /// Changes when an answer was interrupted.
    interrupted: watch::Sender<()>,
    /// Whether clients that are gone have left by themselves.
    is_serving: AtomicBool,
}

impl StoredAnswers {
    /// What a store holds, from now on in about `room` bytes of it. Answers that have not ended count as
    /// interrupted. Those that cannot be read are logged and left alone.
    ///
    /// # Errors
    /// When the store itself cannot be read.
    pub fn open(store: Store, room: u64) -> Result<Self, ReadError> {
        let mut index = RetentionIndex::new(room);
        for row in ANSWERS.rows(&store)? {
            let found = row.and_then(|(key, row)| {
                let bits = u128::from_be_bytes(key);
                Ok((SequenceId::from_bits(bits), place_of(&store, &key, &row)?))
            });
            match found {
                Ok((id, place)) => index.put(id, place),
                Err(error) => tracing::error!(%error, "a stored answer is lost"),
            }
        }
        Ok(Self(Arc::new(Inner {
            store,
            index: Mutex::new(index),
            writing: Mutex::default(),
            interrupted: watch::Sender::default(),
            is_serving: AtomicBool::new(false),
        })))
    }

    /// Whether there is room for any.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.index().room() > 0
    }

    /// Why the store takes and gives nothing now, in words, with what is done about it.
    #[must_use]
    pub fn closed(&self) -> Option<String> {
        let closed = self.0.store.closed()?;
        let next = closed.next_try.map_or_else(
            || "a restart of the node opens it anew".to_owned(),
            |next| {
                let seconds = next.saturating_duration_since(Instant::now()).as_secs() + 1;
                format!("it is tried again within {seconds} s")
            },
        );
        Some(format!(
            "the store in the data folder takes nothing ({}); {next}; until then no answer is stored and \
             no model is added or removed",
            closed.reason
        ))
    }

    /// Begins to write an answer, with what its dialect keeps `beside` it.
    #[must_use]
    pub fn begin(
        &self,
        id: SequenceId,
        record: Record,
        prompt: &[u32],
        beside: Option<&str>,
    ) -> Recorder {
        let prompt_rows = u32::try_from(prompt.len().div_ceil(PROMPT_ROW)).unwrap_or(u32::MAX);
        let texts = beside.map_or_else(Vec::new, |text| pieces(text, BESIDE_ROW));
        let beside = Beside {
            rows: u32::try_from(texts.len()).unwrap_or(u32::MAX),
            bytes: texts.iter().map(|text| ROW_BYTES + text.len() as u64).sum(),
        };
        let bytes = prompt_bytes(prompt.len()) + record_bytes(&record) + beside.bytes;
        let place = Place {
            created: record.created,
            standing: Standing::Grows,
            prompt_rows,
            rows: 0,
            bytes,
            beside,
        };
        let gone = {
            let mut index = self.index();
            index.put(id, place);
            index.overflow()
        };
        for (old, place) in gone {
            self.remove_later(old, place);
        }
        Recorder::begin(self.clone(), id, record, prompt, texts)
    }

    /// Has what is on disk of an answer that was never acknowledged removed, as soon as the store takes that.
    fn forget(&self, id: SequenceId, place: Place) {
        let answers = self.clone();
        self.0.store.commit_then(removal(id, &place), move |result| {
            if result.is_err() {
                let store = answers.0.store.clone();
                store.when_ready(move || answers.forget(id, place));
            }
        });
    }

    /// Has an answer that is on the index no more removed from the disk. One that the store keeps is on the
    /// index again, and goes next time.
    fn remove_later(&self, id: SequenceId, place: Place) {
        let answers = self.clone();
        self.0.store.commit_then(removal(id, &place), move |result| {
            if result.is_err() {
                answers.index().put(id, place);
            }
        });
    }

    /// Whether there is such an answer, of a dialect that keeps something beside it.
    #[must_use]
    pub fn keeps_beside(&self, id: SequenceId) -> bool {
        self.index().place(id).is_some_and(|place| place.beside.rows > 0)
    }

    /// The answers that were interrupted, of which the caller now takes care.
    #[must_use]
    pub fn claim(&self) -> Vec<Claim> {
        let ids = self.index().claim();
        ids.into_iter().map(|id| Claim { answers: self.clone(), id, is_taken: false }).collect()
    }

    /// Tells when there may be something to [`claim`](Self::claim).
    #[must_use]
    pub fn interruptions(&self) -> watch::Receiver<()> {
        self.0.interrupted.subscribe()
    }

    /// An answer with all that its recorder was told up to now, if there is one and it could be written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self, id: SequenceId) -> Result<Option<StoredAnswer>, StoredError> {
        let writing = self.writing().get(&id).and_then(Weak::upgrade);
        if let Some(writing) = writing {
            writing.settled().await.map_err(StoredError::Closed)?;
        }
        let answers = self.clone();
        let read = spawn_blocking(move || answers.read_written(id)).await;
        match (read.unwrap_or(Err(StoredError::Interrupted)), self.closed()) {
            (Err(StoredError::Read(_)), Some(closed)) => Err(StoredError::Closed(closed)),
            (read, _) => read,
        }
    }

    fn read_written(&self, id: SequenceId) -> Result<Option<StoredAnswer>, StoredError> {
        if !self.index().contains(id) {
            return Ok(None);
        }
        let key = id.bits().to_be_bytes();
        let store = &self.0.store;
        let Some(Row { record, prompt_rows, beside, .. }) = ANSWERS.get(store, &key)? else {
            // It is being written, or removed.
            return Ok(None);
        };
        let mut prompt = Vec::new();
        for number in 0..prompt_rows {
            prompt.extend(PROMPTS.get(store, &row_key(&key, number))?.unwrap_or_default());
        }
        let expected = record.sampling.prompt_tokens;
        if prompt.len() != expected as usize {
            return Err(StoredError::Incomplete { found: prompt.len(), expected });
        }
        let beside = beside_of(store, &key, beside.rows)?;
        let tokens = token_rows(store, &key).collect::<Result<Vec<_>, _>>()?.concat();
        Ok(Some(StoredAnswer { record, prompt, tokens, beside }))
    }

    /// Forgets an answer, and says whether there was one. On return it is gone from the disk.
    ///
    /// # Errors
    /// When the disk does not take that.
    pub async fn remove(&self, id: SequenceId) -> Result<bool, CommitError> {
        let Some(place) = self.index().take(id) else {
            return Ok(false);
        };
        let batch = removal(id, &place);
        let (told, hear) = oneshot::channel();
        let answers = self.clone();
        self.0.store.commit_then(batch, move |result| {
            if result.is_err() {
                answers.index().put(id, place);
            }
            // Nobody may wait any more.
            drop(told.send(result));
        });
        hear.await.unwrap_or(Ok(())).map(|()| true)
    }

    /// From now on, until what comes back is dropped, a client that is gone has left by itself.
    pub(crate) fn serving(&self) -> Serving {
        self.0.is_serving.store(true, Ordering::Relaxed);
        Serving(self.clone())
    }

    /// Nobody takes care of an answer any more.
    fn interrupted(&self, id: SequenceId) {
        self.index().stand(id, Standing::Interrupted);
        self.0.interrupted.send_replace(());
    }

    fn writing(&self) -> MutexGuard<'_, BTreeMap<SequenceId, Weak<Writing>>> {
        self.0.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, RetentionIndex> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer that was interrupted and is to go on. Dropped, it is as it was.
#[derive(Debug)]
pub struct Claim {
    answers: StoredAnswers,
    id: SequenceId,
    is_taken: bool,
}

impl Claim {
    /// Which one.
    #[must_use]
    pub const fn id(&self) -> SequenceId {
        self.id
    }

    /// Goes on with the answer, as far as it was written; `None` when it was removed.
    ///
    /// # Errors
    /// When it cannot be read; it will not be claimed again, unless the store is closed.
    pub async fn take_up(mut self) -> Result<Option<(StoredAnswer, Recorder)>, StoredError> {
        let answer = self.answers.read(self.id).await;
        if matches!(answer, Err(StoredError::Closed(_))) {
            return Err(answer.err().unwrap_or(StoredError::Interrupted));
        }
        self.is_taken = true;
        let answer = answer.inspect_err(|_| self.answers.index().stand(self.id, Standing::Over))?;
        Ok(answer.map(|answer| {
            let StoredAnswer { record, tokens, .. } = &answer;
            let recorder = Recorder::new(self.answers.clone(), self.id, record.clone(), tokens);
            (answer, recorder)
        }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_taken {
            self.answers.interrupted(self.id);
        }
    }
}

/// While the API is served.
pub(crate) struct Serving(StoredAnswers);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.0.is_serving.store(false, Ordering::Relaxed);
    }
}

fn row_key(key: &Key, number: u32) -> RowKey {
    let mut bytes = [0; 20];
    let (id, row) = bytes.split_at_mut(key.len());
    id.copy_from_slice(key);
    row.copy_from_slice(&number.to_be_bytes());
    bytes
}

fn token_rows<'a>(
    store: &'a Store,
    key: &'a Key,
) -> impl Iterator<Item = Result<Vec<Token>, ReadError>> + 'a {
    (0..).map_while(|number| TOKENS.get(store, &row_key(key, number)).transpose())
}

/// What a dialect keeps beside an answer, in so many rows.
fn beside_of(store: &Store, key: &Key, rows: u32) -> Result<Option<String>, StoredError> {
    let mut text = String::new();
    for number in 0..rows {
        let parted = StoredError::Parted { found: number, expected: rows };
        text.push_str(&BESIDE.get(store, &row_key(key, number))?.ok_or(parted)?);
    }
    Ok((rows > 0).then_some(text))
}

/// A text in pieces of at most so many bytes, four at least; an empty one in one.
fn pieces(mut text: &str, most: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    loop {
        let end = text.floor_char_boundary(most);
        let (piece, rest) = text.split_at(end);
        pieces.push(piece.to_owned());
        if rest.is_empty() {
            return pieces;
        }
        text = rest;
    }
}

fn place_of(store: &Store, key: &Key, row: &Row) -> Result<Place, ReadError> {
    let Row { record, prompt_rows, rows, bytes, beside } = row;
    let place = |standing, rows, bytes| Place {
        created: record.created,
        standing,
        prompt_rows: *prompt_rows,
        rows,
        bytes,
        beside: *beside,
    };
    if record.outcome.is_some() {
        return Ok(place(Standing::Over, *rows, *bytes));
    }
    let mut rows = 0;
    let prompt = prompt_bytes(record.sampling.prompt_tokens as usize);
    let mut bytes = record_bytes(record) + prompt + beside.bytes;
    for tokens in token_rows(store, key) {
        bytes += token_bytes(&tokens?);
        rows += 1;
    }
    Ok(place(Standing::Interrupted, rows, bytes))
}

fn removal(id: SequenceId, place: &Place) -> Batch {
    let mut batch = Batch::new();
    let key = id.bits().to_be_bytes();
    batch.remove(&ANSWERS, &key);
    for number in 0..place.prompt_rows {
        batch.remove(&PROMPTS, &row_key(&key, number));
    }
    for number in 0..place.beside.rows {
        batch.remove(&BESIDE, &row_key(&key, number));
    }
    for number in 0..place.rows {
        batch.remove(&TOKENS, &row_key(&key, number));
    }
    batch
}

/// About what a row takes beside its values.
const ROW_BYTES: u64 = 64;

fn record_bytes(record: &Record) -> u64 {
    /// Names of fields and the numbers in them.
    const FIELDS: usize = 512;
    let stop: usize = record.stop.iter().map(String::len).sum();
    let metadata: usize = record.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    let numbers = 5 * record.until.eos.len() + 10 * record.sampling.logit_bias.len();
    ROW_BYTES + (FIELDS + stop + metadata + numbers + record.form_bytes()) as u64
}

const fn prompt_bytes(tokens: usize) -> u64 {
    ROW_BYTES + 5 * tokens as u64
}

fn token_bytes(tokens: &[Token]) -> u64 {
    let one = |token: &Token| {
        let likeliest = token.logprobs.as_ref().map_or(0, |logprobs| logprobs.top.len() + 2);
        18 + 11 * likeliest as u64
    };
    tokens.iter().map(one).sum::<u64>() + ROW_BYTES * (tokens.len() / TOKEN_ROW) as u64
}

#[cfg(test)]
mod tests;
