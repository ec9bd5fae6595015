//! An item of a response's output, and how it is shown.

use serde_json::{Value, json};

use super::items::carried;
use crate::answer::{Call, Scored, Scores, Spelling};
use crate::scores::{finite, short};

/// An item that a model puts out.
#[derive(Debug)]
pub(super) struct OutputItem {
    /// Its name.
    pub(super) id: String,
    /// What it is, as far as it is.
    pub(super) kind: Kind,
    /// What became of it.
    pub(super) state: ItemState,
}

/// What became of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ItemState {
    /// It grows.
    Open,
    /// It is all there.
    Complete,
    /// It was cut off.
    Incomplete,
}

/// What an item is.
#[derive(Debug)]
pub(super) enum Kind {
    /// What the model thinks.
    Reasoning(String),
    /// What it says.
    Message {
        /// Its text.
        text: String,
        /// Of its tokens, when asked for.
        scores: Vec<Scores>,
    },
    /// A tool that it calls.
    Call(Call),
}

impl OutputItem {
    /// As it is shown before it has grown.
    pub(super) fn beginning(&self) -> Value {
        let (id, status) = (&self.id, ItemState::Open.word());
        match &self.kind {
            Kind::Reasoning(_) => {
                json!({"id": id, "type": "reasoning", "summary": [], "content": [],
                                         "status": status})
            }
            Kind::Message { .. } => json!({"id": id, "type": "message", "status": status,
                                           "role": "assistant", "content": []}),
            Kind::Call(call) => json!({"id": id, "type": "function_call", "status": status,
                                       "call_id": call.id, "name": call.name, "arguments": ""}),
        }
    }

    /// As it is now.
    pub(super) fn value(&self, carries_reasoning: bool) -> Value {
        let (id, status, part) = (&self.id, self.state.word(), self.part());
        match &self.kind {
            Kind::Reasoning(text) => {
                let carried = carries_reasoning.then(|| carried(text));
                let mut value = json!({"id": id, "type": "reasoning", "summary": [], "content": [part],
                                       "status": status});
                if let (Some(carried), Some(fields)) = (carried, value.as_object_mut()) {
                    fields.insert("encrypted_content".to_owned(), json!(carried));
                }
                value
            }
            Kind::Message { .. } => json!({"id": id, "type": "message", "status": status,
                                           "role": "assistant", "content": [part]}),
            Kind::Call(call) => json!({"id": id, "type": "function_call", "status": status,
                                       "call_id": call.id, "name": call.name,
                                       "arguments": call.arguments}),
        }
    }

    /// Its content, which is one part.
    pub(super) fn part(&self) -> Option<Value> {
        match &self.kind {
            Kind::Reasoning(text) => Some(json!({"type": "reasoning_text", "text": text})),
            Kind::Message { text, scores } => {
                Some(json!({"type": "output_text", "text": text, "annotations": [],
                            "logprobs": logprobs(scores)}))
            }
            Kind::Call(_) => None,
        }
    }
}

impl ItemState {
    const fn word(self) -> &'static str {
        match self {
            Self::Open => "in_progress",
            Self::Complete => "completed",
            Self::Incomplete => "incomplete",
        }
    }
}

/// `object` with the fields of `more`.
pub(super) fn joined(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

/// Scores as clients are shown them.
pub(super) fn logprobs(scores: &[Scores]) -> Vec<Value> {
    let one = |Scored { token: Spelling(bytes), logprob }: &Scored| {
        json!({"token": String::from_utf8_lossy(bytes), "logprob": short(finite(*logprob)),
               "bytes": bytes})
    };
    let all = |scores: &Scores| {
        let top: Vec<_> = scores.top.iter().map(one).collect();
        joined(one(&scores.chosen), json!({"top_logprobs": top}))
    };
    scores.iter().map(all).collect()
}
