//! Answers in OpenAI's JSON, whole or in chunks.

mod chat;
mod completion;

use std::collections::BTreeMap;

use planaria_protocol::generation::FinishReason;
use serde::Serialize;

use super::answer::{Counts, Piece};
use super::request::{Delivery, Endpoint};
use crate::stored_answers::{Outcome, Record};

/// What all chunks of an answer share.
#[derive(Debug)]
pub(super) struct Reply {
    /// Whom to answer like.
    pub(super) endpoint: Endpoint,
    /// How the client wants it.
    pub(super) delivery: Delivery,
    /// The answer's id.
    pub(super) id: String,
    /// When it began, in seconds since 1970.
    pub(super) created: u64,
    /// The model that answers.
    pub(super) model: String,
    /// The prompt's token ids.
    pub(super) prompt: Vec<u32>,
}

impl Reply {
    /// The chunk before the first token.
    pub(super) fn opening(&self) -> Option<String> {
        match self.endpoint {
            Endpoint::Chat => Some(self.chunk(self.prompt_ids(), &chat::role_chunk())),
            Endpoint::Completion => {
                self.prompt_ids().map(|ids| self.chunk(None, &completion::prompt_chunk(ids)))
            }
        }
    }

    /// The chunk for `piece`; none when the client would see nothing in it.
    pub(super) fn piece(&self, piece: Piece) -> Option<String> {
        let wants_tokens = self.delivery.token_ids || self.delivery.logprobs;
        if piece.text.is_empty() && (piece.tokens.is_empty() || !wants_tokens) {
            return None;
        }
        let ids = self.delivery.token_ids;
        Some(match self.endpoint {
            Endpoint::Chat => self.chunk(None, &chat::piece_chunk(piece, ids)),
            Endpoint::Completion => self.chunk(None, &completion::choice(piece, ids, None)),
        })
    }

    /// The chunk after the last token.
    pub(super) fn closing(&self, reason: FinishReason) -> String {
        match self.endpoint {
            Endpoint::Chat => self.chunk(None, &chat::last_chunk(reason)),
            Endpoint::Completion => {
                let choice = completion::choice(Piece::default(), false, Some(reason));
                self.chunk(None, &choice)
            }
        }
    }

    /// The chunk that counts tokens, if it was asked for.
    pub(super) fn usage(&self, counts: Counts) -> Option<String> {
        self.delivery.include_usage.then(|| {
            let nothing: [(); 0] = [];
            let usage = Some(Some(self.count(counts)));
            text(&self.envelope(self.chunk_object(), None, nothing, usage))
        })
    }

    /// The answer in one.
    pub(super) fn whole(&self, piece: Piece, reason: FinishReason, counts: Counts) -> String {
        let ids = self.delivery.token_ids;
        match self.endpoint {
            Endpoint::Chat => text(&self.whole_chat(piece, Some(reason), counts)),
            Endpoint::Completion => {
                let mut choice = completion::choice(piece, ids, Some(reason));
                choice.prompt_token_ids = self.prompt_ids();
                let usage = Some(Some(self.count(counts)));
                text(&self.envelope("text_completion", None, [choice], usage))
            }
        }
    }

    /// The answer in one, of a chat that was stored: as far as it is, and what became of it.
    pub(super) fn stored(
        &self,
        piece: Piece,
        reason: Option<FinishReason>,
        counts: Counts,
        record: &Record,
    ) -> String {
        let (status, error) = match &record.outcome {
            _ if reason.is_some() => ("completed", None),
            // A part of the answer, so something lacks that was written.
            None | Some(Outcome::Finished(_)) => ("in_progress", None),
            Some(Outcome::Failed { message, code }) => ("failed", Some(Failure { message, code })),
            Some(Outcome::Cancelled) => ("cancelled", None),
        };
        let completion = self.whole_chat(piece, reason, counts);
        text(&Stored { completion, status, error, metadata: &record.metadata })
    }

    fn whole_chat(
        &self,
        piece: Piece,
        reason: Option<FinishReason>,
        counts: Counts,
    ) -> Envelope<'_, [chat::Choice; 1]> {
        let choice = chat::whole(piece, self.delivery.token_ids, reason);
        let usage = Some(Some(self.count(counts)));
        self.envelope("chat.completion", self.prompt_ids(), [choice], usage)
    }

    fn chunk(&self, prompt: Option<&[u32]>, choice: &impl Serialize) -> String {
        // OpenAI says "not yet" where a count will follow.
        let usage = self.delivery.include_usage.then_some(None);
        text(&self.envelope(self.chunk_object(), prompt, [choice], usage))
    }

    const fn chunk_object(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completion => "text_completion",
        }
    }

    fn prompt_ids(&self) -> Option<&[u32]> {
        self.delivery.token_ids.then_some(self.prompt.as_slice())
    }

    fn count(&self, counts: Counts) -> Usage {
        let prompt_tokens = self.prompt.len() as u64;
        Usage {
            prompt_tokens,
            completion_tokens: counts.answer,
            total_tokens: prompt_tokens + u64::from(counts.answer),
            prompt_tokens_details: PromptTokens { cached_tokens: counts.reused },
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
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
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
}

#[derive(Serialize)]
struct PromptTokens {
    cached_tokens: u32,
}

/// OpenAI's `finish_reason`.
pub(super) const fn reason_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// JSON has no infinity; OpenAI writes this for "never".
const LEAST_LOGPROB: f32 = -9999.0;

const fn finite(logprob: f32) -> f32 {
    // `max` of a NaN and a number is the number.
    logprob.max(LEAST_LOGPROB)
}
