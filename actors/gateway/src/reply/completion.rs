//! The choices of a plain completion.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Map, Value};

use super::finish_word;
use crate::answer::{Finish, Piece, PieceToken, Spelling};
use crate::scores::{finite, short};

/// A choice of a whole answer, or of a chunk.
#[derive(Serialize)]
pub(super) struct Choice<'a> {
    index: usize,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// Parallel lists, one entry per token.
#[derive(Serialize, Default)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

/// The first chunk of a stream whose client wants token ids.
pub(super) fn prompt_chunk(index: usize, prompt: &[u32]) -> Choice<'_> {
    Choice { prompt_token_ids: Some(prompt), ..choice(index, Piece::default(), true, None) }
}

/// A piece of text, or all of it.
pub(super) fn choice<'a>(
    index: usize,
    piece: Piece,
    with_ids: bool,
    finish: Option<&Finish>,
) -> Choice<'a> {
    Choice {
        index,
        token_ids: with_ids.then(|| piece.ids()),
        text: piece.text(),
        logprobs: logprobs(piece.tokens),
        finish_reason: finish.map(finish_word),
        prompt_token_ids: None,
    }
}

fn logprobs(tokens: Vec<PieceToken>) -> Option<Logprobs> {
    let mut lists = Logprobs::default();
    for token in tokens {
        let Some(scores) = token.scores else {
            continue;
        };
        let mut top: Map<_, _> = scores
            .top
            .iter()
            .map(|scored| (name(&scored.token), short(finite(scored.logprob))))
            .collect();
        let chosen = name(&scores.chosen.token);
        // OpenAI always lists the chosen one too.
        top.entry(chosen.clone()).or_insert_with(|| short(finite(scores.chosen.logprob)));
        lists.tokens.push(chosen);
        lists.token_logprobs.push(finite(scores.chosen.logprob));
        lists.top_logprobs.push(top);
        lists.text_offset.push(token.offset);
    }
    (!lists.tokens.is_empty()).then_some(lists)
}

/// Tokens are keys here, so those that are no text of their own are spelled out, as OpenAI does.
fn name(Spelling(bytes): &Spelling) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut name, byte| {
            // Writing to a String cannot fail.
            let _ = write!(name, "\\x{byte:02x}");
            name
        }),
    }
}
