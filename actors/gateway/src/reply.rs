//! Answers in OpenAI's JSON, whole or in chunks.

mod chat;
mod completion;

use std::collections::BTreeMap;

use bytes::Bytes;
use planaria_protocol::generation::FinishReason;
use serde::Serialize;

use super::answer::{Counts, Finish, Piece};
use super::error::ApiError;
use super::request::{Delivery, Endpoint};
use super::writer::{Head, Writer, event};
use crate::stored_answers::{Outcome, Record};

/// Writes answers of chats and completions.
#[derive(Debug)]
pub(super) struct Reply {
    endpoint: Endpoint,
    head: Head,
    include_usage: bool,
    token_ids: bool,
    logprobs: bool,
    /// Answers.
    count: usize,
}

impl Writer for Reply {
    fn opening(&mut self) -> Vec<Bytes> {
        let chunks = (0..self.count).filter_map(|index| match self.endpoint {
            Endpoint::Chat => Some(self.chunk(self.prompt_ids(), &chat::role_chunk(index))),
            Endpoint::Completion => {
                self.prompt_ids().map(|ids| self.chunk(None, &completion::prompt_chunk(index, ids)))
            }
        });
        chunks.collect()
    }

    fn piece(&mut self, answer: usize, piece: Piece) -> Vec<Bytes> {
        let wants_tokens = self.token_ids || self.logprobs;
        let is_empty = piece.parts.is_empty() && piece.malformed_calls == 0;
        if is_empty && (piece.tokens.is_empty() || !wants_tokens) {
            return Vec::new();
        }
        let ids = self.token_ids;
        match self.endpoint {
            Endpoint::Chat => {
                let chunks = chat::piece_chunks(answer, piece, ids);
                chunks.iter().map(|choice| self.chunk(None, choice)).collect()
            }
            Endpoint::Completion => {
                vec![self.chunk(None, &completion::choice(answer, piece, ids, None))]
            }
        }
    }

    fn finished(&mut self, answer: usize, finish: &Finish) -> Vec<Bytes> {
        vec![match self.endpoint {
            Endpoint::Chat => self.chunk(None, &chat::last_chunk(answer, finish)),
            Endpoint::Completion => {
                let choice = completion::choice(answer, Piece::default(), false, Some(finish));
                self.chunk(None, &choice)
            }
        }]
    }

    fn closing(&mut self, counts: Counts) -> Vec<Bytes> {
        let usage = self.include_usage.then(|| {
            let nothing: [(); 0] = [];
            let usage = Some(Some(self.usage(counts)));
            event(text(&self.envelope(self.chunk_object(), None, nothing, usage)))
        });
        usage.into_iter().chain([event("[DONE]")]).collect()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![event(error.body())]
    }

    fn whole(&mut self, answers: Vec<(Piece, Finish)>, counts: Counts) -> String {
        let ids = self.token_ids;
        let answers = answers.into_iter().enumerate();
        let usage = Some(Some(self.usage(counts)));
        match self.endpoint {
            Endpoint::Chat => {
                let choices = answers
                    .map(|(index, (piece, finish))| chat::whole(index, piece, ids, Some(&finish)));
                let choices: Vec<_> = choices.collect();
                text(&self.envelope("chat.completion", self.prompt_ids(), choices, usage))
            }
            Endpoint::Completion => {
                let choices = answers.map(|(index, (piece, finish))| {
                    let mut choice = completion::choice(index, piece, ids, Some(&finish));
                    choice.prompt_token_ids = self.prompt_ids();
                    choice
                });
                let choices: Vec<_> = choices.collect();
                text(&self.envelope("text_completion", None, choices, usage))
            }
        }
    }
}

impl Reply {
    /// For what is answered under `head`.
    pub(super) const fn new(endpoint: Endpoint, head: Head, delivery: &Delivery) -> Self {
        Self {
            endpoint,
            head,
            include_usage: delivery.include_usage,
            token_ids: delivery.token_ids,
            logprobs: delivery.logprobs,
            count: delivery.answers,
        }
    }

    /// The answer in one, of a chat that was stored: as far as it is, and what became of it.
    pub(super) fn stored(
        &self,
        piece: Piece,
        finish: Option<&Finish>,
        counts: Counts,
        record: &Record,
    ) -> String {
        let (status, error) = match &record.outcome {
            _ if finish.is_some() => ("completed", None),
            // A part of the answer, so something lacks that was written.
            None | Some(Outcome::Finished(_)) => ("in_progress", None),
            Some(Outcome::Failed { message, code }) => ("failed", Some(Failure { message, code })),
            Some(Outcome::Cancelled) => ("cancelled", None),
        };
        let choice = chat::whole(0, piece, self.token_ids, finish);
        let usage = Some(Some(self.usage(counts)));
        let completion = self.envelope("chat.completion", self.prompt_ids(), [choice], usage);
        text(&Stored { completion, status, error, metadata: &record.metadata })
    }

    fn chunk(&self, prompt: Option<&[u32]>, choice: &impl Serialize) -> Bytes {
        // OpenAI says "not yet" where a count will follow.
        let usage = self.include_usage.then_some(None);
        event(text(&self.envelope(self.chunk_object(), prompt, [choice], usage)))
    }

    const fn chunk_object(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completion => "text_completion",
        }
    }

    fn prompt_ids(&self) -> Option<&[u32]> {
        self.token_ids.then_some(&*self.head.prompt)
    }

    fn usage(&self, counts: Counts) -> Usage {
        let prompt_tokens = self.head.prompt.len() as u64;
        Usage {
            prompt_tokens,
            completion_tokens: counts.answer,
            total_tokens: prompt_tokens + u64::from(counts.answer),
            prompt_tokens_details: PromptTokens { cached_tokens: counts.reused },
            completion_tokens_details: CompletionTokens { reasoning_tokens: counts.reasoning },
        }
    }

    fn envelope<'a, C>(
        &'a self,
        object: &'static str,
        prompt_token_ids: Option<&'a [u32]>,
        choices: C,
        usage: Option<Option<Usage>>,
    ) -> Envelope<'a, C> {
        Envelope {
            id: &self.head.id,
            object,
            created: self.head.created,
            model: &self.head.model,
            choices,
            prompt_token_ids,
            usage,
        }
    }
}

fn text(envelope: &impl Serialize) -> String {
    // JSON has a form for all that is in there: texts, numbers, lists and named fields.
    serde_json::to_string(envelope).unwrap_or_default()
}

#[derive(Serialize)]
struct Stored<'a> {
    #[serde(flatten)]
    completion: Envelope<'a, [chat::Choice; 1]>,
    /// In the words of OpenAI's responses.
    status: &'static str,
    error: Option<Failure<'a>>,
    metadata: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Failure<'a> {
    message: &'a str,
    code: &'a str,
}

#[derive(Serialize)]
struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: C,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    /// Absent, `null`, or a count.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u32,
    total_tokens: u64,
    prompt_tokens_details: PromptTokens,
    completion_tokens_details: CompletionTokens,
}

#[derive(Serialize)]
struct CompletionTokens {
    reasoning_tokens: u32,
}

#[derive(Serialize)]
struct PromptTokens {
    cached_tokens: u32,
}

/// OpenAI's `finish_reason`.
const fn finish_word(finish: &Finish) -> &'static str {
    match finish {
        Finish::Calls => "tool_calls",
        other => reason_word(other.reason()),
    }
}

/// The same of what the cluster knows.
pub(super) const fn reason_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
