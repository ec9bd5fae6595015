//! The choices of a chat completion.

use planaria_protocol::generation::FinishReason;
use serde::Serialize;

use super::{finite, reason_word};
use crate::answer::{Piece, Scored, Scores, Spelling};

/// A choice of a whole answer, or of a chunk.
#[derive(Serialize)]
pub(super) struct Choice {
    index: u32,
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
        content: String,
        refusal: (),
    },
    Delta {
        #[serde(skip_serializing_if = "Option::is_none")]
        role: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        content: Option<String>,
    },
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

#[derive(Serialize)]
struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

const ROLE: &str = "assistant";

/// The first delta of a stream.
pub(super) fn role_chunk() -> Choice {
    choice(Content::Delta { role: Some(ROLE), content: Some(String::new()) })
}

/// A delta with text.
pub(super) fn piece_chunk(piece: Piece, with_ids: bool) -> Choice {
    Choice {
        token_ids: with_ids.then(|| piece.ids()),
        logprobs: logprobs(piece.tokens.into_iter().filter_map(|token| token.scores)),
        ..choice(Content::Delta { role: None, content: Some(piece.text) })
    }
}

/// The last delta of a stream, which says why it ends.
pub(super) fn last_chunk(reason: FinishReason) -> Choice {
    Choice {
        finish_reason: Some(reason_word(reason)),
        ..choice(Content::Delta { role: None, content: None })
    }
}

/// The answer in one, or what there is of it.
pub(super) fn whole(piece: Piece, with_ids: bool, reason: Option<FinishReason>) -> Choice {
    Choice {
        token_ids: with_ids.then(|| piece.ids()),
        finish_reason: reason.map(reason_word),
        logprobs: logprobs(piece.tokens.into_iter().filter_map(|token| token.scores)),
        ..choice(Content::Message { role: ROLE, content: piece.text, refusal: () })
    }
}

const fn choice(content: Content) -> Choice {
    Choice { index: 0, content, logprobs: None, finish_reason: None, token_ids: None }
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

impl From<Scored> for TokenLogprob {
    fn from(scored: Scored) -> Self {
        let Spelling(bytes) = scored.token;
        Self {
            token: String::from_utf8_lossy(&bytes).into_owned(),
            logprob: finite(scored.logprob),
            bytes,
        }
    }
}
