//! Answers as Anthropic writes them: one message, or the events that make it; and errors.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::answer::{Call, Counts, Finish, Part, Piece};
use crate::error::ApiError;
use crate::writer::{Head, Writer, named_event};

/// Writes an answer.
#[derive(Debug)]
pub(super) struct Message {
    head: Head,
    /// Blocks so far, the open one included.
    blocks: usize,
    open: Option<Open>,
    malformed_calls: u32,
    finish: Option<Finish>,
}

/// A block of a stream that more may be added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
}

impl Writer for Message {
    fn opening(&mut self) -> Vec<Bytes> {
        // How much of the prompt needs no computing is told at the end.
        let usage = self.usage(Counts { answer: 0, reasoning: 0, reused: 0 });
        let message = self.message(Vec::new(), None, usage);
        vec![of_type("message_start", json!({"message": message}))]
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Bytes> {
        self.malformed_calls += piece.malformed_calls;
        let mut events = Vec::new();
        for part in piece.parts {
            match part {
                Part::Text(text) => {
                    self.open(Open::Text, &mut events);
                    events.push(self.delta(&json!({"type": "text_delta", "text": text})));
                }
                Part::Reasoning(text) => {
                    self.open(Open::Thinking, &mut events);
                    events.push(self.delta(&json!({"type": "thinking_delta", "thinking": text})));
                }
                Part::Call(call) => {
                    self.close(&mut events);
                    self.call(call, &mut events);
                }
            }
        }
        events
    }

    fn finished(&mut self, _: usize, finish: &Finish) -> Vec<Bytes> {
        let mut events = Vec::new();
        self.close(&mut events);
        self.finish = Some(finish.clone());
        events
    }

    fn closing(&mut self, counts: Counts) -> Vec<Bytes> {
        let delta = Ending::of(self.finish.as_ref(), self.malformed_calls);
        let usage = self.usage(counts);
        vec![
            of_type("message_delta", json!({"delta": delta, "usage": usage})),
            of_type("message_stop", json!({})),
        ]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![error_event(error)]
    }

    fn whole(&mut self, answers: Vec<(Piece, Finish)>, counts: Counts) -> String {
        // There is one.
        let only = answers.into_iter().next();
        let (piece, finish) = only.unwrap_or_else(|| (Piece::default(), Finish::End));
        self.malformed_calls = piece.malformed_calls;
        let content = piece.parts.into_iter().map(|part| match part {
            Part::Text(text) => json!({"type": "text", "text": text}),
            Part::Reasoning(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Part::Call(call) => {
                let input: Value = serde_json::from_str(&call.arguments).unwrap_or(json!({}));
                json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
            }
        });
        let usage = self.usage(counts);
        self.message(content.collect(), Some(&finish), usage).to_string()
    }
}

impl Message {
    /// For what is answered under `head`.
    pub(super) const fn new(head: Head) -> Self {
        Self { head, blocks: 0, open: None, malformed_calls: 0, finish: None }
    }

    /// Has the open block be one of `kind`.
    fn open(&mut self, kind: Open, events: &mut Vec<Bytes>) {
        if self.open == Some(kind) {
            return;
        }
        self.close(events);
        self.open = Some(kind);
        events.push(self.start(&match kind {
            Open::Text => json!({"type": "text", "text": ""}),
            Open::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
        }));
    }

    fn close(&mut self, events: &mut Vec<Bytes>) {
        match self.open.take() {
            None => return,
            Some(Open::Text) => {}
            // Clients wait for one, and nothing needs to be signed here.
            Some(Open::Thinking) => {
                events.push(self.delta(&json!({"type": "signature_delta", "signature": ""})));
            }
        }
        events.push(self.stop());
    }

    /// A call, whole: it comes in one.
    fn call(&mut self, call: Call, events: &mut Vec<Bytes>) {
        let Call { id, name, arguments, .. } = call;
        events.push(self.start(&json!({"type": "tool_use", "id": id, "name": name, "input": {}})));
        let delta = json!({"type": "input_json_delta", "partial_json": arguments});
        events.extend([self.delta(&delta), self.stop()]);
    }

    fn start(&mut self, block: &Value) -> Bytes {
        self.blocks += 1;
        of_type("content_block_start", json!({"index": self.index(), "content_block": block}))
    }

    fn delta(&self, delta: &Value) -> Bytes {
        of_type("content_block_delta", json!({"index": self.index(), "delta": delta}))
    }

    fn stop(&self) -> Bytes {
        of_type("content_block_stop", json!({"index": self.index()}))
    }

    /// Of the last block that was begun.
    const fn index(&self) -> usize {
        self.blocks.saturating_sub(1)
    }

    fn message(&self, content: Vec<Value>, finish: Option<&Finish>, usage: Usage) -> Value {
        let Head { id, model, .. } = &self.head;
        json!(Whole {
            id,
            kind: "message",
            role: "assistant",
            model,
            content,
            ending: Ending::of(finish, self.malformed_calls),
            usage,
        })
    }

    fn usage(&self, counts: Counts) -> Usage {
        let prompt = u32::try_from(self.head.prompt.len()).unwrap_or(u32::MAX);
        Usage {
            input_tokens: prompt.saturating_sub(counts.reused),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: counts.reused,
            output_tokens: counts.answer,
            output_tokens_details: OutputTokens { thinking_tokens: counts.reasoning },
        }
    }
}

#[derive(Serialize)]
struct Whole<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Value>,
    #[serde(flatten)]
    ending: Ending<'a>,
    usage: Usage,
}

/// Why a message ends; nothing while it has not.
#[derive(Serialize)]
struct Ending<'a> {
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    /// Calls that are none, and are in the text. Not Anthropic's.
    #[serde(skip_serializing_if = "Option::is_none")]
    malformed_tool_calls: Option<u32>,
}

impl<'a> Ending<'a> {
    fn of(finish: Option<&'a Finish>, malformed_calls: u32) -> Self {
        let (stop_reason, stop_sequence) = match finish {
            None => (None, None),
            Some(Finish::End) => (Some("end_turn"), None),
            Some(Finish::StopText(text)) => (Some("stop_sequence"), Some(text.as_str())),
            Some(Finish::Length) => (Some("max_tokens"), None),
            Some(Finish::Calls) => (Some("tool_use"), None),
        };
        let malformed_tool_calls = (malformed_calls > 0).then_some(malformed_calls);
        Self { stop_reason, stop_sequence, malformed_tool_calls }
    }
}

/// Tokens. Those of the prompt that were computed, and those that needed no computing.
#[derive(Serialize)]
struct Usage {
    input_tokens: u32,
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: u32,
    output_tokens_details: OutputTokens,
}

#[derive(Serialize)]
struct OutputTokens {
    thinking_tokens: u32,
}

/// An event, which has its type for its name.
fn of_type(kind: &str, fields: Value) -> Bytes {
    let mut event = json!({"type": kind});
    if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
        event.extend(fields);
    }
    named_event(kind, event)
}

/// The end of a stream that failed.
pub(super) fn error_event(error: &ApiError) -> Bytes {
    named_event("error", error_body(error))
}

/// `{"type": "error", "error": {...}}`.
pub(crate) fn error_body(error: &ApiError) -> Value {
    let message = match error.word() {
        // Agents shorten their conversations when they read these words.
        "context_length_exceeded" => format!("prompt is too long: {}", error.message()),
        _ => error.message().to_owned(),
    };
    let kind = error_kind(error.status().as_u16());
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

/// Anthropic's word for a status.
const fn error_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        408 | 504 => "timeout_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}
