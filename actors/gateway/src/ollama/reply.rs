//! Answers as lines of JSON, or as one.

use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use planaria_protocol::generation::FinishReason;
use serde::Serialize;
use serde_json::{Value, json};

use super::Endpoint;
use crate::answer::{Call, Counts, Finish, Piece, PieceToken, Scores};
use crate::error::ApiError;
use crate::reply::reason_word;
use crate::scores::TokenLogprob;
use crate::writer::{Head, Writer};

/// Writes one answer.
#[derive(Debug)]
pub(super) struct Reply {
    endpoint: Endpoint,
    head: Head,
    began: Instant,
    /// When the first token came.
    first: Option<Instant>,
    /// Of the end, once there is one.
    reason: FinishReason,
}

impl Reply {
    /// Of the answer under `head`, which begins now.
    pub(super) fn new(endpoint: Endpoint, head: Head) -> Self {
        let (began, first, reason) = (Instant::now(), None, FinishReason::Stop);
        Self { endpoint, head, began, first, reason }
    }

    fn end(&self, counts: Counts) -> End {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        End {
            done_reason: reason_word(self.reason),
            total_duration: nanos(now - self.began),
            load_duration: 0,
            prompt_eval_count: self.head.prompt.len(),
            prompt_eval_duration: nanos(first - self.began),
            eval_count: counts.answer,
            eval_duration: nanos(now - first),
        }
    }

    fn part(&self, piece: Piece, end: Option<End>) -> Part<'_> {
        part(self.endpoint, &self.head.model, piece, end)
    }
}

impl Writer for Reply {
    fn opening(&mut self) -> Vec<Bytes> {
        Vec::new()
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Bytes> {
        self.gathers(&piece);
        let has_scores = piece.tokens.iter().any(|token| token.scores.is_some());
        if piece.parts.is_empty() && piece.malformed_calls == 0 && !has_scores {
            return Vec::new();
        }
        vec![line(&self.part(piece, None))]
    }

    fn gathers(&mut self, _: &Piece) {
        self.first.get_or_insert_with(Instant::now);
    }

    fn finished(&mut self, _: usize, finish: &Finish) -> Vec<Bytes> {
        self.reason = finish.reason();
        Vec::new()
    }

    fn closing(&mut self, counts: Counts) -> Vec<Bytes> {
        vec![line(&self.part(Piece::default(), Some(self.end(counts))))]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![error_line(error)]
    }

    fn whole(&mut self, answers: Vec<(Piece, Finish)>, counts: Counts) -> String {
        let (piece, finish) = answers.into_iter().next().unwrap_or((Piece::default(), Finish::End));
        self.reason = finish.reason();
        text(&self.part(piece, Some(self.end(counts))))
    }
}

/// A line that says that there is nothing to say yet. Of what model is not known here; lines that follow say it.
pub(super) fn nothing_yet(endpoint: Endpoint) -> Bytes {
    line(&part(endpoint, "", Piece::default(), None))
}

/// What tells a client that a model is ready.
pub(super) fn loaded(endpoint: Endpoint, model: &str) -> String {
    let mut loaded = json!(part(endpoint, model, Piece::default(), None));
    if let Value::Object(fields) = &mut loaded {
        fields.insert("done".to_owned(), json!(true));
        fields.insert("done_reason".to_owned(), json!("load"));
    }
    loaded.to_string()
}

/// The last line of a stream that failed.
pub(super) fn error_line(error: &ApiError) -> Bytes {
    format!("{}\n", error_body(error)).into()
}

/// An error as Ollama writes it.
pub(crate) fn error_body(error: &ApiError) -> Value {
    json!({"error": error.message()})
}

fn line(part: &Part<'_>) -> Bytes {
    (text(part) + "\n").into()
}

fn text(part: &Part<'_>) -> String {
    // JSON has a form for all that is in there: texts, numbers, lists and named fields.
    serde_json::to_string(part).unwrap_or_default()
}

fn nanos(time: Duration) -> u64 {
    // Clients divide by it.
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// A piece of an answer, or all of it.
#[derive(Serialize)]
struct Part<'a> {
    model: &'a str,
    created_at: String,
    #[serde(flatten)]
    said: Said,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Logprob>,
    done: bool,
    #[serde(flatten)]
    end: Option<End>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Said {
    Chat {
        message: Message,
    },
    Text {
        response: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        thinking: String,
    },
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    /// Calls that are none, and are in the content.
    #[serde(skip_serializing_if = "Option::is_none")]
    malformed_tool_calls: Option<u32>,
}

#[derive(Serialize)]
struct ToolCall {
    id: String,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    index: u32,
    name: String,
    arguments: Value,
}

/// Of an answer that has ended. Times are in nanoseconds, from its admission on.
#[derive(Serialize)]
struct End {
    done_reason: &'static str,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
    prompt_eval_duration: u64,
    eval_count: u32,
    eval_duration: u64,
}

#[derive(Serialize)]
struct Logprob {
    #[serde(flatten)]
    chosen: TokenLogprob,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_logprobs: Vec<TokenLogprob>,
}

fn part(endpoint: Endpoint, model: &str, piece: Piece, end: Option<End>) -> Part<'_> {
    let (content, thinking) = (piece.text(), piece.reasoning());
    let said = match endpoint {
        Endpoint::Generate => Said::Text { response: content, thinking },
        Endpoint::Chat => Said::Chat {
            message: Message {
                role: "assistant",
                content,
                thinking,
                tool_calls: piece.calls().into_iter().map(tool_call).collect(),
                malformed_tool_calls: Some(piece.malformed_calls).filter(|calls| *calls > 0),
            },
        },
    };
    let scores = |token: PieceToken| token.scores.map(logprob);
    let logprobs = piece.tokens.into_iter().filter_map(scores).collect();
    let created_at = Timestamp::now().to_string();
    Part { model, created_at, said, logprobs, done: end.is_some(), end }
}

fn tool_call(call: Call) -> ToolCall {
    let Call { index, id, name, arguments } = call;
    // It is the JSON of an object.
    let arguments = serde_json::from_str(&arguments).unwrap_or_else(|_| json!({}));
    ToolCall { id, function: Function { index, name, arguments } }
}

fn logprob(scores: Scores) -> Logprob {
    let top_logprobs = scores.top.into_iter().map(Into::into).collect();
    Logprob { chosen: scores.chosen.into(), top_logprobs }
}
