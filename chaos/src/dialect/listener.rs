//! What comes on a stream of any dialect, put together as its clients do, with an eye on its order.

use serde_json::Value;

use super::Kind;
use crate::api::Event;
use crate::history::{Call, Heard};

/// Listens to one stream.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    /// The number of the next event of a response, or of the next block of a message.
    next: u64,
    /// The block of a message that is open.
    open: Option<u64>,
}

impl Listener {
    /// To a stream in this dialect.
    #[must_use]
    pub const fn of(kind: Kind) -> Self {
        Self { kind, next: 0, open: None }
    }

    /// Takes an event in; whether a part of the answer came with it.
    pub fn take_in(&mut self, event: &Event, heard: &mut Heard) -> bool {
        if heard.done {
            misplaced(heard, "something came after the end");
        }
        match event {
            Event::Done if matches!(self.kind, Kind::Tokens | Kind::Chat) => heard.done = true,
            Event::Done => misplaced(heard, "[DONE] came, which this dialect does not have"),
            Event::Error(error) => heard.error = Some(in_words(error)),
            Event::Chunk(chunk) => {
                let before = (heard.tokens.len(), heard.said.size());
                match self.kind {
                    Kind::Tokens => tokens(chunk, heard),
                    Kind::Chat => chat(chunk, heard),
                    Kind::Messages => self.message(chunk, heard),
                    Kind::Responses | Kind::WebSocket => self.response(chunk, heard),
                    Kind::Ollama => ollama(chunk, heard),
                }
                heard.usage = usage(chunk).or(heard.usage);
                return before != (heard.tokens.len(), heard.said.size());
            }
        }
        false
    }

    fn message(&mut self, event: &Value, heard: &mut Heard) {
        let index = event.get("index").and_then(Value::as_u64);
        match text(event, "/type") {
            "content_block_start" => {
                if self.open.is_some() || index != Some(self.next) {
                    let (was, next) = (self.open, self.next);
                    misplaced(heard, &format!("block {index:?}, not {next}, begins in {was:?}"));
                }
                self.open = index;
                self.next += 1;
                if text(event, "/content_block/type") == "tool_use" {
                    heard.said.calls.push(Call::to(text(event, "/content_block/name")));
                }
            }
            "content_block_delta" => {
                self.is_of_the_open_block(index, heard);
                heard.said.text.push_str(text(event, "/delta/text"));
                heard.said.thoughts.push_str(text(event, "/delta/thinking"));
                let arguments = text(event, "/delta/partial_json");
                match heard.said.calls.last_mut() {
                    Some(call) => call.arguments.push_str(arguments),
                    None if arguments.is_empty() => {}
                    None => misplaced(heard, "arguments came before a call"),
                }
            }
            "content_block_stop" => {
                self.is_of_the_open_block(index, heard);
                self.open = None;
            }
            "message_delta" => finish(text(event, "/delta/stop_reason"), heard),
            "message_stop" => {
                if let Some(open) = self.open {
                    misplaced(heard, &format!("block {open} does not end"));
                }
                heard.done = true;
            }
            _ => {}
        }
    }

    fn is_of_the_open_block(&self, index: Option<u64>, heard: &mut Heard) {
        if index.is_none() || index != self.open {
            misplaced(heard, &format!("an event of block {index:?} came in {:?}", self.open));
        }
    }

    fn response(&mut self, event: &Value, heard: &mut Heard) {
        let (number, next) = (event.get("sequence_number").and_then(Value::as_u64), self.next);
        if number != Some(next) {
            misplaced(heard, &format!("event {number:?} came in place of {next}"));
        }
        self.next = number.unwrap_or(next) + 1;
        match text(event, "/type") {
            "response.output_text.delta" => heard.said.text.push_str(text(event, "/delta")),
            "response.reasoning_text.delta" => heard.said.thoughts.push_str(text(event, "/delta")),
            "response.completed" | "response.incomplete" => {
                finish(text(event, "/response/status"), heard);
                heard.done = true;
            }
            "response.failed" => {
                heard.error = Some(text(event, "/response/error/message").to_owned());
            }
            "error" => heard.error = Some(in_words(event)),
            _ => {}
        }
    }
}

fn tokens(chunk: &Value, heard: &mut Heard) {
    let ids = chunk.pointer("/choices/0/token_ids").and_then(Value::as_array);
    heard.tokens.extend(ids.into_iter().flatten().filter_map(Value::as_u64));
    finish(text(chunk, "/choices/0/finish_reason"), heard);
}

fn chat(chunk: &Value, heard: &mut Heard) {
    let before = heard.said.size();
    heard.said.text.push_str(text(chunk, "/choices/0/delta/content"));
    heard.said.thoughts.push_str(text(chunk, "/choices/0/delta/reasoning_content"));
    let calls = chunk.pointer("/choices/0/delta/tool_calls").and_then(Value::as_array);
    for call in calls.into_iter().flatten() {
        let name = text(call, "/function/name");
        if !name.is_empty() {
            heard.said.calls.push(Call::to(name));
        }
        let index = call.get("index").and_then(Value::as_u64);
        if index.map(|index| index + 1) != Some(heard.said.calls.len() as u64) {
            misplaced(heard, &format!("a part of call {index:?} came in another"));
        }
        if let Some(call_so_far) = heard.said.calls.last_mut() {
            call_so_far.arguments.push_str(text(call, "/function/arguments"));
        }
    }
    if heard.finish.is_some() && heard.said.size() != before {
        misplaced(heard, "more was said after the finish reason");
    }
    finish(text(chunk, "/choices/0/finish_reason"), heard);
}

fn ollama(line: &Value, heard: &mut Heard) {
    heard.said.text.push_str(text(line, "/message/content"));
    heard.said.thoughts.push_str(text(line, "/message/thinking"));
    finish(text(line, "/done_reason"), heard);
    heard.done = line.get("done").and_then(Value::as_bool) == Some(true);
}

/// Tokens of the answer, whatever the dialect calls them.
fn usage(chunk: &Value) -> Option<u64> {
    let names = [
        "/usage/completion_tokens",
        "/usage/output_tokens",
        "/response/usage/output_tokens",
        "/eval_count",
    ];
    names.iter().find_map(|name| chunk.pointer(name)?.as_u64())
}

fn finish(reason: &str, heard: &mut Heard) {
    if reason.is_empty() {
        return;
    }
    if heard.finish.is_some() {
        misplaced(heard, "a second finish reason came");
    }
    heard.finish = Some(reason.to_owned());
}

/// The first of them says most.
fn misplaced(heard: &mut Heard, what: &str) {
    heard.misplaced.get_or_insert_with(|| what.to_owned());
}

fn in_words(error: &Value) -> String {
    let words = error.as_str().or_else(|| error.get("message")?.as_str());
    words.map_or_else(|| error.to_string(), str::to_owned)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn heard(kind: Kind, events: &[Value]) -> Heard {
        let (mut heard, mut listener) = (Heard::default(), Listener::of(kind));
        for event in events {
            let event = if event.is_null() { Event::Done } else { Event::Chunk(event.clone()) };
            listener.take_in(&event, &mut heard);
        }
        heard
    }

    /// An answer in this dialect.
    fn answer(kind: Kind) -> Vec<Value> {
        let choice = |choice: Value| json!({"choices": [choice]});
        match kind {
            Kind::Tokens => vec![
                choice(json!({"token_ids": [1, 2], "finish_reason": null})),
                choice(json!({"token_ids": [], "finish_reason": "length"})),
                json!({"choices": [], "usage": {"completion_tokens": 2}}),
                Value::Null,
            ],
            Kind::Chat => vec![
                choice(json!({"delta": {"role": "assistant", "content": ""}})),
                choice(
                    json!({"delta": {"tool_calls": [{"index": 0, "function": {"name": "visit"}}]}}),
                ),
                choice(
                    json!({"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}),
                ),
                choice(json!({"delta": {}, "finish_reason": "tool_calls"})),
                json!({"choices": [], "usage": {"completion_tokens": 2}}),
                Value::Null,
            ],
            Kind::Messages => vec![
                json!({"type": "message_start", "message": {"usage": {"output_tokens": 0}}}),
                json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
                json!({"type": "content_block_delta", "index": 0, "delta": {"text": "so"}}),
                json!({"type": "content_block_stop", "index": 0}),
                json!({"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "visit"}}),
                json!({"type": "content_block_delta", "index": 1, "delta": {"partial_json": "{}"}}),
                json!({"type": "content_block_stop", "index": 1}),
                json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 2}}),
                json!({"type": "message_stop"}),
            ],
            Kind::Responses | Kind::WebSocket => vec![
                json!({"type": "response.created", "sequence_number": 0}),
                json!({"type": "response.output_text.delta", "sequence_number": 1, "delta": "{"}),
                json!({"type": "response.output_text.delta", "sequence_number": 2, "delta": "}"}),
                json!({"type": "response.completed", "sequence_number": 3,
                    "response": {"status": "completed", "usage": {"output_tokens": 2}}}),
            ],
            Kind::Ollama => vec![
                json!({"message": {"content": "{"}, "done": false}),
                json!({"message": {"content": "}"}, "done": false}),
                json!({"message": {"content": ""}, "done": true, "done_reason": "stop", "eval_count": 2}),
            ],
        }
    }

    #[test]
    fn an_answer_is_put_together() {
        for kind in Kind::MIX {
            let heard = heard(kind, &answer(kind));
            assert!(heard.done && heard.misplaced.is_none(), "{kind:?}: {heard:?}");
            assert_eq!((heard.usage, heard.finish.is_some()), (Some(2), true), "{kind:?}");
            let json = heard.said.calls.first().map_or(&heard.said.text, |call| &call.arguments);
            assert_eq!((kind == Kind::Tokens, json == "{}"), (json.is_empty(), !json.is_empty()));
        }
    }

    #[test]
    fn what_is_out_of_place_is_found() {
        let without = |kind, left_out: usize| {
            let mut events = answer(kind);
            events.remove(left_out);
            heard(kind, &events).misplaced
        };
        let twice = |kind, again: usize| {
            let mut events = answer(kind);
            events.insert(again, events[again].clone());
            heard(kind, &events).misplaced
        };
        for number in 0..3 {
            assert!(without(Kind::Responses, number).is_some(), "a gap at {number}");
            assert!(twice(Kind::Responses, number).is_some(), "{number} twice");
        }
        for number in [1, 3, 4, 6] {
            assert!(without(Kind::Messages, number).is_some(), "a gap at {number}");
            assert!(twice(Kind::Messages, number).is_some(), "{number} twice");
        }
        assert!(without(Kind::Chat, 1).is_some() && twice(Kind::Chat, 1).is_some());
        for kind in Kind::MIX {
            let last = answer(kind).len() - 1;
            assert!(twice(kind, last).is_some(), "{kind:?} ends twice");
            let cut = heard(kind, &answer(kind)[..last]);
            assert!(!cut.done, "{kind:?} has no end");
        }
        let mut events = answer(Kind::Responses);
        events.push(Value::Null);
        assert!(heard(Kind::Responses, &events).misplaced.is_some());
    }

    #[test]
    fn failures_are_told_in_words() {
        let failed = json!({"type": "response.failed", "sequence_number": 0,
            "response": {"error": {"message": "gone"}}});
        let error = json!({"type": "error", "sequence_number": 0, "message": "gone"});
        for event in [failed, error] {
            assert_eq!(heard(Kind::Responses, &[event]).error.as_deref(), Some("gone"));
        }
        assert_eq!(in_words(&json!("gone")), "gone");
        assert_eq!(in_words(&json!({"message": "gone"})), "gone");
    }
}
