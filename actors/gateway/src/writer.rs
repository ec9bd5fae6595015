//! How answers are written for their clients: one [`Dialect`] for each API that clients speak, and a [`Writer`]
//! of it for each answer.
//!
//! A request of any dialect becomes one kind of request, and what comes of it one kind of pieces. Dialects know
//! nothing of one another.

use std::fmt::{Debug, Display};
use std::sync::Arc;

use axum::http::HeaderValue;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use planaria_config::SequenceId;
use planaria_protocol::generation::Request;

use super::Parts;
use super::answer::{Counts, Finish, Piece};
use super::error::ApiError;
use super::request::{Asked, Delivery};

/// An API in which answers are asked for.
pub(super) trait Dialect: Debug + Send + Sync {
    /// Reads the body of a request.
    fn parse(&self, body: &[u8]) -> Result<Asked, ApiError>;

    /// What its requests ask for, in the words of OpenTelemetry.
    fn operation(&self) -> &'static str {
        "chat"
    }

    /// The field that holds the prompt.
    fn prompt_field(&self) -> &'static str {
        "messages"
    }

    /// The name of an answer.
    fn answer_id(&self, sequence: SequenceId) -> String;

    /// Hears what the cluster is asked, with all that the request left open, before it is asked for a writer.
    fn asks(&self, _request: &Request) {}

    /// Whether answers are to be stored as far as that is possible. What a request demands to be stored is in its
    /// [`Delivery`], and is stored or refused.
    fn keeps(&self) -> bool {
        false
    }

    /// What to store beside an answer, and under which name: of one that is not admitted yet, so without a `sequence`,
    /// or of one that is. A dialect has it for one of the two.
    fn kept(&self, _head: &Head, _sequence: Option<SequenceId>) -> Option<Kept> {
        None
    }

    /// Hears what became of storing an answer: it is on disk, or is not for this reason.
    fn stored(&self, _outcome: Result<(), &str>) {}

    /// Brings back from the disk what a request that could not be parsed refers to. With `true` it is worth another try.
    fn recalls<'a>(&'a self, _shared: &'a Parts) -> BoxFuture<'a, Result<bool, ApiError>> {
        ready(Ok(false)).boxed()
    }

    /// A writer for one answer.
    fn writer(&self, head: Head, delivery: &Delivery) -> Box<dyn Writer>;

    /// Of a stream.
    fn content_type(&self) -> HeaderValue {
        HeaderValue::from_static("text/event-stream")
    }

    /// What shows a client that a stream lives.
    fn waiting(&self) -> Bytes {
        // Comments, which every client passes over.
        Bytes::from_static(b": waiting\n\n")
    }

    /// The same while something that died is replaced.
    fn recovering(&self) -> Bytes {
        Bytes::from_static(b": recovering\n\n")
    }

    /// The end of a stream that failed before there was a writer.
    fn failed(&self, error: &ApiError) -> Vec<Bytes>;
}

/// A dialect that is the same for all its requests.
impl<D: Dialect + ?Sized> Dialect for &'static D {
    fn parse(&self, body: &[u8]) -> Result<Asked, ApiError> {
        (**self).parse(body)
    }

    fn operation(&self) -> &'static str {
        (**self).operation()
    }

    fn prompt_field(&self) -> &'static str {
        (**self).prompt_field()
    }

    fn answer_id(&self, sequence: SequenceId) -> String {
        (**self).answer_id(sequence)
    }

    fn asks(&self, request: &Request) {
        (**self).asks(request);
    }

    fn keeps(&self) -> bool {
        (**self).keeps()
    }

    fn kept(&self, head: &Head, sequence: Option<SequenceId>) -> Option<Kept> {
        (**self).kept(head, sequence)
    }

    fn stored(&self, outcome: Result<(), &str>) {
        (**self).stored(outcome);
    }

    fn recalls<'a>(&'a self, shared: &'a Parts) -> BoxFuture<'a, Result<bool, ApiError>> {
        (**self).recalls(shared)
    }

    fn writer(&self, head: Head, delivery: &Delivery) -> Box<dyn Writer> {
        (**self).writer(head, delivery)
    }

    fn content_type(&self) -> HeaderValue {
        (**self).content_type()
    }

    fn waiting(&self) -> Bytes {
        (**self).waiting()
    }

    fn recovering(&self) -> Bytes {
        (**self).recovering()
    }

    fn failed(&self, error: &ApiError) -> Vec<Bytes> {
        (**self).failed(error)
    }
}

/// What a dialect stores beside an answer.
#[derive(Debug)]
pub(super) struct Kept {
    /// The name under which both are stored; names of calls are made of it.
    pub(super) key: SequenceId,
    /// All that shows the answer again, with its tokens.
    pub(super) beside: String,
}

/// What all parts of a reply share.
#[derive(Debug, Clone)]
pub(super) struct Head {
    /// The answer's name.
    pub(super) id: String,
    /// When it began, in seconds since 1970.
    pub(super) created: u64,
    /// The model that answers.
    pub(super) model: String,
    /// The prompt's token ids.
    pub(super) prompt: Arc<[u32]>,
}

/// Writes what its client sees of one reply, which has one answer or several.
pub(super) trait Writer: Debug + Send {
    /// Before the first piece.
    fn opening(&mut self) -> Vec<Bytes>;

    /// A piece of an answer; nothing when the client would see nothing in it.
    fn piece(&mut self, answer: usize, piece: Piece) -> Vec<Bytes>;

    /// Hears of a piece, where all is written in one.
    fn gathers(&mut self, _piece: &Piece) {}

    /// Behind the last piece of an answer.
    fn finished(&mut self, answer: usize, finish: &Finish) -> Vec<Bytes>;

    /// Behind the last answer.
    fn closing(&mut self, counts: Counts) -> Vec<Bytes>;

    /// The end of a stream that failed.
    fn failed(&mut self, error: &ApiError) -> Vec<Bytes>;

    /// All of it in one.
    fn whole(&mut self, answers: Vec<(Piece, Finish)>, counts: Counts) -> String;
}

/// An event of a stream, of which only the data matters. JSON has no line breaks of its own, so one line holds it.
pub(super) fn event(data: impl Display) -> Bytes {
    format!("data: {data}\n\n").into()
}

/// An event that has a name too.
pub(super) fn named_event(name: &str, data: impl Display) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

/// The data of an event that has a name.
pub(super) fn data_of(event: &Bytes) -> Option<Bytes> {
    const BEFORE: &[u8] = b"\ndata: ";
    let at = event.windows(BEFORE.len()).position(|bytes| bytes == BEFORE)? + BEFORE.len();
    Some(event.slice(at..event.len().checked_sub(2)?))
}
