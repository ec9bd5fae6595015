//! A response as it grows: its object, and the events that tell what is new in it. Pure.
//!
//! Items of the output follow each other, and the last one may still grow. Each event has a number, from 0 on and
//! without gaps, and is a pure function of what came before it.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::output::{ItemState, Kind, OutputItem, joined, logprobs};
use crate::answer::{Call, Counts, Finish, Part, Piece, Scores};
use crate::error::ApiError;
use crate::scores::short;
use crate::writer::named_event;

/// A response so far.
#[derive(Debug)]
pub(super) struct Reply {
    /// What it shows of its request.
    pub(super) asked: Asked,
    id: String,
    /// When it began, in seconds since 1970.
    pub(super) created: u64,
    /// Tokens of the prompt, once they are counted.
    prompt: usize,
    status: Status,
    output: Vec<OutputItem>,
    /// Of tokens whose text is held back.
    scores: Vec<Scores>,
    /// Calls that are none, and are in the text.
    malformed: u32,
    is_cut_off: bool,
    counts: Option<Counts>,
    error: Option<Value>,
    /// In seconds since 1970.
    completed: Option<u64>,
    /// The number of the next event.
    next: u64,
}

/// What a reply shows of its request.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    /// The fields that are shown as they were, or as they were understood.
    pub(super) fields: Map<String, Value>,
    /// Whether thoughts are shown in the form that is handed back unread too.
    pub(super) carries_reasoning: bool,
}

impl Asked {
    /// The value that is used where the request left it open.
    pub(super) fn fill(&mut self, key: &str, number: f32) {
        if let Some(value) = self.fields.get_mut(key).filter(|value| value.is_null()) {
            *value = short(number);
        }
    }

    /// The response is not on disk, though its request wants that.
    pub(super) fn warn(&mut self, why: &str) {
        let warning = format!("this response is in the memory of its node alone: {why}");
        self.fields.insert("store_warning".to_owned(), json!(warning));
    }
}

/// What became of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Failed,
    Cancelled,
}

impl Reply {
    pub(super) const fn new(asked: Asked, id: String, created: u64) -> Self {
        Self {
            asked,
            id,
            created,
            prompt: 0,
            status: Status::Queued,
            output: Vec::new(),
            scores: Vec::new(),
            malformed: 0,
            is_cut_off: false,
            counts: None,
            error: None,
            completed: None,
            next: 0,
        }
    }

    /// Whether nothing is added any more.
    pub(super) const fn is_over(&self) -> bool {
        !matches!(self.status, Status::Queued | Status::InProgress)
    }

    /// Whether all of it is there, as far as its request let it grow.
    pub(super) const fn has_succeeded(&self) -> bool {
        matches!(self.status, Status::Completed | Status::Incomplete)
    }

    /// Whether it waits for its turn.
    pub(super) fn is_queued(&self) -> bool {
        self.status == Status::Queued
    }

    /// It waits for its turn.
    pub(super) fn queued(&mut self) -> Vec<Bytes> {
        vec![self.whole_event("response.created"), self.whole_event("response.queued")]
    }

    /// It has its turn, with a prompt of so many tokens.
    pub(super) fn begun(&mut self, prompt: usize) -> Vec<Bytes> {
        self.prompt = prompt;
        self.status = Status::InProgress;
        let created = (self.next == 0).then(|| self.whole_event("response.created"));
        let mut events: Vec<_> = created.into_iter().collect();
        events.push(self.whole_event("response.in_progress"));
        events
    }

    /// More of it.
    pub(super) fn piece(&mut self, piece: Piece) -> Vec<Bytes> {
        let mut events = Vec::new();
        self.malformed += piece.malformed_calls;
        self.scores.extend(piece.tokens.into_iter().filter_map(|token| token.scores));
        for part in piece.parts {
            match part {
                Part::Text(text) => self.text(&text, &mut events),
                Part::Reasoning(text) => self.reasoning(&text, &mut events),
                Part::Call(call) => self.call(call, &mut events),
            }
        }
        events
    }

    /// The model has ended it.
    pub(super) fn finished(&mut self, finish: &Finish) -> Vec<Bytes> {
        self.is_cut_off = *finish == Finish::Length;
        let mut events = Vec::new();
        if self.output.is_empty() {
            // Clients look for something to show.
            self.open_message(&mut events);
        }
        let end = if self.is_cut_off { ItemState::Incomplete } else { ItemState::Complete };
        self.close(end, &mut events);
        events
    }

    /// It is complete by `now`.
    pub(super) fn closing(&mut self, counts: Counts, now: u64) -> Vec<Bytes> {
        self.counts = Some(counts);
        let name = if self.is_cut_off {
            self.status = Status::Incomplete;
            "response.incomplete"
        } else {
            self.status = Status::Completed;
            self.completed = Some(now);
            "response.completed"
        };
        vec![self.whole_event(name)]
    }

    /// There will be no more, for this reason.
    pub(super) fn failed(&mut self, error: &ApiError) -> Vec<Bytes> {
        self.failed_with(error.word(), error.message())
    }

    /// The same with a reason in a word and in words.
    pub(super) fn failed_with(&mut self, code: &str, message: &str) -> Vec<Bytes> {
        self.cut(Status::Failed);
        self.error = Some(json!({"code": code, "message": message}));
        vec![self.whole_event("response.failed")]
    }

    /// There will be no more, since nobody wants it.
    pub(super) fn cancelled(&mut self) {
        self.cut(Status::Cancelled);
    }

    fn cut(&mut self, status: Status) {
        self.status = status;
        if let Some(last) = self.output.last_mut().filter(|last| last.state == ItemState::Open) {
            last.state = ItemState::Incomplete;
        }
    }

    fn text(&mut self, text: &str, events: &mut Vec<Bytes>) {
        let is_open = |last: &OutputItem| {
            last.state == ItemState::Open && matches!(last.kind, Kind::Message { .. })
        };
        if !self.output.last().is_some_and(is_open) {
            self.close(ItemState::Complete, events);
            self.open_message(events);
        }
        let new = std::mem::take(&mut self.scores);
        let logprobs = logprobs(&new);
        if let Some(OutputItem { kind: Kind::Message { text: all, scores }, .. }) =
            self.output.last_mut()
        {
            all.push_str(text);
            scores.extend(new);
        }
        let more = json!({"content_index": 0, "delta": text, "logprobs": logprobs});
        events.push(self.item_event("response.output_text.delta", more));
    }

    fn open_message(&mut self, events: &mut Vec<Bytes>) {
        self.open("msg", Kind::Message { text: String::new(), scores: Vec::new() }, events);
    }

    fn reasoning(&mut self, text: &str, events: &mut Vec<Bytes>) {
        // Scores are shown of what is said.
        self.scores.clear();
        let is_open = |last: &OutputItem| {
            last.state == ItemState::Open && matches!(last.kind, Kind::Reasoning(_))
        };
        if !self.output.last().is_some_and(is_open) {
            self.close(ItemState::Complete, events);
            self.open("rs", Kind::Reasoning(String::new()), events);
        }
        if let Some(OutputItem { kind: Kind::Reasoning(all), .. }) = self.output.last_mut() {
            all.push_str(text);
        }
        let more = json!({"content_index": 0, "delta": text});
        events.push(self.item_event("response.reasoning_text.delta", more));
    }

    fn call(&mut self, call: Call, events: &mut Vec<Bytes>) {
        self.scores.clear();
        self.close(ItemState::Complete, events);
        let arguments = call.arguments.clone();
        self.open("fc", Kind::Call(call), events);
        let delta = json!({"delta": arguments});
        events.push(self.item_event("response.function_call_arguments.delta", delta));
        self.close(ItemState::Complete, events);
    }

    /// Adds an item, and its only part if it has parts.
    fn open(&mut self, prefix: &str, kind: Kind, events: &mut Vec<Bytes>) {
        let own = self.id.trim_start_matches("resp_");
        let id = format!("{prefix}_{own}{:04x}", self.output.len());
        self.output.push(OutputItem { id, kind, state: ItemState::Open });
        events.extend(self.last_event("response.output_item.added", |item| item.beginning()));
        if let Some(part) = self.output.last().and_then(OutputItem::part) {
            let more = json!({"content_index": 0, "part": part});
            events.push(self.item_event("response.content_part.added", more));
        }
    }

    /// Ends the last item, if it has not ended.
    fn close(&mut self, end: ItemState, events: &mut Vec<Bytes>) {
        let Some(last) = self.output.last_mut().filter(|last| last.state == ItemState::Open) else {
            return;
        };
        last.state = end;
        if let Kind::Message { scores, .. } = &mut last.kind {
            scores.append(&mut self.scores);
        }
        let (name, done) = match &last.kind {
            Kind::Reasoning(text) => {
                ("response.reasoning_text.done", json!({"content_index": 0, "text": text}))
            }
            Kind::Message { text, scores } => {
                let logprobs = logprobs(scores);
                let done = json!({"content_index": 0, "text": text, "logprobs": logprobs});
                ("response.output_text.done", done)
            }
            Kind::Call(call) => {
                let done = json!({"name": call.name, "arguments": call.arguments});
                ("response.function_call_arguments.done", done)
            }
        };
        let part = last.part();
        events.push(self.item_event(name, done));
        if let Some(part) = part {
            let more = json!({"content_index": 0, "part": part});
            events.push(self.item_event("response.content_part.done", more));
        }
        let carries = self.asked.carries_reasoning;
        events.extend(self.last_event("response.output_item.done", |item| item.value(carries)));
    }

    /// An event with the last item in it.
    fn last_event(&mut self, name: &str, show: impl FnOnce(&OutputItem) -> Value) -> Option<Bytes> {
        let item = show(self.output.last()?);
        let index = self.output.len() - 1;
        Some(self.event(name, json!({"output_index": index, "item": item})))
    }

    /// An event about the last item.
    fn item_event(&mut self, name: &str, more: Value) -> Bytes {
        let id = self.output.last().map(|item| item.id.as_str());
        let index = self.output.len().saturating_sub(1);
        let about = json!({"item_id": id, "output_index": index});
        self.event(name, joined(about, more))
    }

    /// An event with all of it.
    fn whole_event(&mut self, name: &str) -> Bytes {
        let response = self.value();
        self.event(name, json!({"response": response}))
    }

    fn event(&mut self, name: &str, more: Value) -> Bytes {
        let head = json!({"type": name, "sequence_number": self.next});
        self.next += 1;
        named_event(name, joined(head, more))
    }

    /// The items of its output.
    pub(super) fn output(&self) -> Vec<Value> {
        let carries = self.asked.carries_reasoning;
        self.output.iter().map(|item| item.value(carries)).collect()
    }

    /// All of it, as it is now.
    pub(super) fn value(&self) -> Value {
        let incomplete =
            (self.status == Status::Incomplete).then(|| json!({"reason": "max_output_tokens"}));
        let head = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": self.completed,
            "status": self.status.word(),
            "error": self.error,
            "incomplete_details": incomplete,
            "output": self.output(),
            "usage": self.counts.map(|counts| usage(self.prompt, counts)),
        });
        let mut value = joined(head, Value::Object(self.asked.fields.clone()));
        if let (1.., Some(fields)) = (self.malformed, value.as_object_mut()) {
            fields.insert("malformed_tool_calls".to_owned(), json!(self.malformed));
        }
        value
    }
}

impl Status {
    const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The tokens of an answer to a prompt of so many.
pub(super) fn usage(prompt: usize, counts: Counts) -> Value {
    json!({
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": counts.reused, "cache_write_tokens": 0},
        "output_tokens": counts.answer,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": prompt + counts.answer as usize,
    })
}

/// The last event of a stream that failed before there was a response: flat as OpenAI has it, and within `error`, beside
/// the status, as Open Responses does; with the headers that the answer of a request would have.
pub(super) fn error_event(error: &ApiError) -> Bytes {
    let body = error.body();
    let said = |key: &str| body.pointer(&format!("/error/{key}")).cloned().unwrap_or_default();
    let mut event = json!({"type": "error", "sequence_number": 0, "status": error.status().as_u16(),
                           "code": said("code"), "message": said("message"), "param": said("param"),
                           "error": body.get("error")});
    if let (Some(seconds), Some(fields)) = (error.retry_after_seconds(), event.as_object_mut()) {
        fields.insert("headers".to_owned(), json!({"retry-after": seconds.to_string()}));
    }
    named_event("error", event)
}
