//! `/v1/responses`: OpenAI's API for agents.
//!
//! `request` reads a body, with `tools`, and `items` what is said in it, which `conversation` makes messages of; `reply`
//! is the response as it grows, a pure function of the pieces, and `output` what it consists of; `memory` remembers it,
//! with its events; `writing` writes what the core computes into it, `background` computes without a client, `following`
//! sends the events of a response to whoever asks for them, and `stored` holds the routes of responses that there are.
//! `kept` is what is on disk of a response, and `recall` brings it back; `references` is what a request refers to of all
//! these. `websocket` takes requests as messages of a connection, and `compaction` has a model sum up a conversation.
//!
//! A response is stored unless its request says `store: false`: in memory, by the node that was asked, until newer ones
//! need the room. With an explicit `store: true` it is on disk as well, as stored answers of chats are: it is there after
//! the node was started again, and goes on then if it was under way. If the disk does not take it, it says so and goes
//! on. Otherwise a response lives as long as its client stays, as an answer of a chat does; one in the background, as
//! long as its node.

mod background;
mod compaction;
mod conversation;
mod following;
mod items;
mod kept;
mod memory;
mod output;
mod recall;
mod references;
mod reply;
mod request;
mod stored;
mod tools;
mod websocket;
mod writing;

use std::sync::{Arc, OnceLock};

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use planaria_config::SequenceId;
use planaria_protocol::generation::Request;
use planaria_telemetry::wall_clock::unix_seconds;
use tokio::sync::watch;

pub(super) use self::compaction::compact;
pub(super) use self::kept::name_of;
use self::memory::Entry;
pub(super) use self::memory::Memory;
pub(super) use self::recall::{GoingOn, going_on};
use self::references::References;
use self::reply::Reply;
use self::request::{Told, Transport};
pub(super) use self::stored::{cancel, delete, input_items, one};
pub(super) use self::websocket::connect;
use self::writing::{ReplyWriter, Shown};
use super::body::Read;
use super::error::ApiError;
use super::generate;
use super::request::{Asked, Delivery};
use super::writer::{Dialect, Head, Kept, Writer};
use super::{Parts, Shared};

/// Answers a request, or begins to.
pub(super) async fn create(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Extension(body): Extension<Read>,
) -> Result<Response, ApiError> {
    let references = References::new(Arc::clone(&shared.responses), None);
    let spoken = Arc::new(Spoken::new(references, Transport::Http));
    let dialect = Arc::clone(&spoken) as Arc<dyn Dialect>;
    let begun = generate::begun(Shared::clone(&shared), dialect, &headers, body).await?;
    match spoken.in_background() {
        None => begun.respond().await,
        Some(entry) => background::respond(&shared, begun, entry, spoken.settled()).await,
    }
}

/// The dialect of one request, which refers to what is remembered and is shown in its response.
#[derive(Debug)]
struct Spoken {
    references: References,
    transport: Transport,
    /// What the request says; once it is read.
    told: OnceLock<Told>,
    /// Its response: from the beginning of one in the background, and of others from when they are admitted.
    entry: OnceLock<Arc<Entry>>,
    /// Temperature and `top_p` as they are used.
    sampled: OnceLock<[(&'static str, f32); 2]>,
    /// Why it is not on disk, if it is not and should be.
    warning: OnceLock<String>,
    /// Whether it is known if it is on disk.
    is_settled: watch::Sender<bool>,
}

impl Spoken {
    fn new(references: References, transport: Transport) -> Self {
        Self {
            references,
            transport,
            told: OnceLock::new(),
            entry: OnceLock::new(),
            sampled: OnceLock::new(),
            warning: OnceLock::new(),
            is_settled: watch::Sender::new(false),
        }
    }

    /// Waits until the response is on disk if it should be, or will not be.
    fn settled(&self) -> impl Future<Output = ()> + use<> {
        let mut settled = self.is_settled.subscribe();
        let is_kept = self.keeps();
        async move {
            if is_kept {
                // Whoever could tell is gone, and has told its own end.
                drop(settled.wait_for(|settled| *settled).await);
            }
        }
    }

    /// The response, if its client does not wait for it.
    fn in_background(&self) -> Option<Arc<Entry>> {
        self.told.get().filter(|told| told.is_background)?;
        // Nobody has admitted it yet, so it has a name of its own.
        Some(Arc::clone(self.entry(items::drawn_id("resp"), unix_seconds())))
    }

    fn entry(&self, id: String, created: u64) -> &Arc<Entry> {
        self.entry.get_or_init(|| {
            let (mut asked, input, is_background, is_stored) = match self.told.get() {
                Some(told) => {
                    let Told { asked, input, is_background, is_stored, .. } = told;
                    (asked.clone(), input.clone(), *is_background, *is_stored)
                }
                None => Default::default(),
            };
            if let Some(why) = self.warning.get() {
                asked.warn(why);
            }
            let reply = Reply::new(asked, id.clone(), created);
            Entry::new(id, reply, input, is_background, is_stored)
        })
    }
}

impl Dialect for Spoken {
    fn parse(&self, body: &[u8]) -> Result<Asked, ApiError> {
        let (asked, told) =
            self.references.read(|known| request::read(body, known, self.transport))?;
        self.told.get_or_init(|| told);
        Ok(asked)
    }

    fn recalls<'a>(&'a self, shared: &'a Parts) -> BoxFuture<'a, Result<bool, ApiError>> {
        self.references.recalls(shared).boxed()
    }

    fn prompt_field(&self) -> &'static str {
        request::PROMPT
    }

    fn answer_id(&self, sequence: SequenceId) -> String {
        match self.entry.get() {
            Some(entry) => entry.id.clone(),
            None => name_of(sequence),
        }
    }

    fn asks(&self, request: &Request) {
        let sampling = &request.sampling;
        let numbers = [("temperature", sampling.temperature), ("top_p", sampling.top_p)];
        self.sampled.get_or_init(|| numbers);
    }

    fn keeps(&self) -> bool {
        self.told.get().is_some_and(|told| told.is_kept)
    }

    fn kept(&self, head: &Head, sequence: Option<SequenceId>) -> Option<Kept> {
        let told = self.told.get().filter(|told| told.is_kept)?;
        // One in the background has its name before it is admitted.
        let (key, created) = match (told.is_background, sequence) {
            (false, Some(sequence)) => (sequence, head.created),
            (true, None) => {
                let entry = self.entry.get()?;
                (kept::key_of(&entry.id)?, entry.created())
            }
            _ => return None,
        };
        let numbers = self.sampled.get().map_or(&[][..], |numbers| numbers);
        Some(Kept { key, beside: kept::text(told, created, numbers) })
    }

    fn stored(&self, outcome: Result<(), &str>) {
        if let Err(why) = outcome {
            self.warning.get_or_init(|| why.to_owned());
            if let Some(entry) = self.entry.get() {
                entry.warn(why);
            }
        }
        self.is_settled.send_replace(true);
    }

    fn writer(&self, head: Head, delivery: &Delivery) -> Box<dyn Writer> {
        let entry = Arc::clone(self.entry(head.id, head.created));
        let told = self.told.get();
        let is_stored = told.is_some_and(|told| told.is_stored);
        let shown = match told.is_none_or(|told| told.generates) {
            false => Shown::Ends,
            true if delivery.stream => Shown::Events,
            true => Shown::Whole,
        };
        entry.fill(self.sampled.get().map_or(&[], |numbers| numbers));
        let memory = is_stored.then(|| Arc::clone(self.references.memory()));
        Box::new(ReplyWriter::new(entry, memory, head.prompt.len(), shown))
    }

    fn failed(&self, error: &ApiError) -> Vec<Bytes> {
        vec![reply::error_event(error)]
    }
}
