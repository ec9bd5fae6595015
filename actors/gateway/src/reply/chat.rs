//! The choices of a chat completion.

use serde::Serialize;

use super::finish_word;
use crate::answer::{Call, Finish, Part, Piece, Scores};
use crate::scores::TokenLogprob;

/// A choice of a whole answer, or of a chunk.
#[derive(Serialize)]
pub(super) struct Choice {
    index: usize,
    #[serde(flatten)]
    content: Content,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Content {
    Message {
        role: &'static str,
        /// `null` beside calls.
        content: Option<String>,
        refusal: (),
        #[serde(flatten)]
        extra: Extra,
    },
    Delta {
        #[serde(skip_serializing_if = "Option::is_none")]
        role: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        content: Option<String>,
        #[serde(flatten)]
        extra: Extra,
    },
}

/// What not every message has.
#[derive(Serialize, Default)]
struct Extra {
    /// As DeepSeek names it, and with it most clients.
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    /// As OpenRouter and vLLM name it.
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    /// Calls that are none, and are in the content.
    #[serde(skip_serializing_if = "is_zero")]
    malformed_tool_calls: u32,
}

#[derive(Serialize)]
struct ToolCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<TokenLogprobs>,
    refusal: (),
}

#[derive(Serialize)]
struct TokenLogprobs {
    #[serde(flatten)]
    chosen: TokenLogprob,
    top_logprobs: Vec<TokenLogprob>,
}

const ROLE: &str = "assistant";

/// The first delta of a stream.
pub(super) fn role_chunk(index: usize) -> Choice {
    choice(index, delta(Some(ROLE), Some(String::new()), Extra::default()))
}

/// Deltas with what is in a piece; the first bears its tokens.
pub(super) fn piece_chunks(index: usize, piece: Piece, with_ids: bool) -> Vec<Choice> {
    let token_ids = with_ids.then(|| piece.ids());
    let logprobs = logprobs(piece.tokens.into_iter().filter_map(|token| token.scores));
    let mut malformed_tool_calls = piece.malformed_calls;
    let mut deltas: Vec<Content> = Vec::new();
    for part in piece.parts {
        match part {
            Part::Text(text) => {
                let malformed_tool_calls = std::mem::take(&mut malformed_tool_calls);
                let extra = Extra { malformed_tool_calls, ..Extra::default() };
                deltas.push(delta(None, Some(text), extra));
            }
            Part::Reasoning(text) => deltas.push(delta(None, None, thought(text))),
            Part::Call(call) => deltas.extend(call_deltas(call)),
        }
    }
    if deltas.is_empty() {
        let extra = Extra { malformed_tool_calls, ..Extra::default() };
        deltas.push(delta(None, Some(String::new()), extra));
    }
    let mut choices: Vec<_> = deltas.into_iter().map(|content| choice(index, content)).collect();
    if let Some(first) = choices.first_mut() {
        (first.token_ids, first.logprobs) = (token_ids, logprobs);
    }
    choices
}

/// The last delta of an answer, which says why it ends.
pub(super) fn last_chunk(index: usize, finish: &Finish) -> Choice {
    let content = delta(None, None, Extra::default());
    Choice { finish_reason: Some(finish_word(finish)), ..choice(index, content) }
}

/// The answer in one, or what there is of it.
pub(super) fn whole(index: usize, piece: Piece, with_ids: bool, finish: Option<&Finish>) -> Choice {
    let calls = piece.calls();
    let text = piece.text();
    let content = (calls.is_empty() || !text.is_empty()).then_some(text);
    let extra = Extra {
        tool_calls: calls.into_iter().map(whole_call).collect(),
        malformed_tool_calls: piece.malformed_calls,
        ..thought(piece.reasoning())
    };
    Choice {
        token_ids: with_ids.then(|| piece.ids()),
        finish_reason: finish.map(finish_word),
        logprobs: logprobs(piece.tokens.into_iter().filter_map(|token| token.scores)),
        ..choice(index, Content::Message { role: ROLE, content, refusal: (), extra })
    }
}

fn thought(reasoning: String) -> Extra {
    Extra { reasoning_content: reasoning.clone(), reasoning, ..Extra::default() }
}

fn whole_call(call: Call) -> ToolCall {
    let Call { id, name, arguments, .. } = call;
    let function = Function { name: Some(name), arguments };
    ToolCall { index: None, id: Some(id), kind: Some("function"), function }
}

/// A call as OpenAI streams it: its name first, then its arguments.
fn call_deltas(call: Call) -> [Content; 2] {
    let Call { index, id, name, arguments } = call;
    let function = Function { name: Some(name), arguments: String::new() };
    let first = ToolCall { index: Some(index), id: Some(id), kind: Some("function"), function };
    let function = Function { name: None, arguments };
    let then = ToolCall { index: Some(index), id: None, kind: None, function };
    [first, then]
        .map(|call| delta(None, None, Extra { tool_calls: vec![call], ..Extra::default() }))
}

const fn delta(role: Option<&'static str>, content: Option<String>, extra: Extra) -> Content {
    Content::Delta { role, content, extra }
}

const fn choice(index: usize, content: Content) -> Choice {
    Choice { index, content, logprobs: None, finish_reason: None, token_ids: None }
}

fn logprobs(scores: impl Iterator<Item = Scores>) -> Option<Logprobs> {
    let content: Vec<_> = scores
        .map(|scores| TokenLogprobs {
            chosen: scores.chosen.into(),
            top_logprobs: scores.top.into_iter().map(Into::into).collect(),
        })
        .collect();
    (!content.is_empty()).then_some(Logprobs { content, refusal: () })
}
