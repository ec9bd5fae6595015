//! A generation's events in, the text that its client sees out.

use std::sync::Arc;

use planaria_engine::detokenizer::Detokenizer;
use planaria_engine::sampler::Logprobs;
use planaria_engine::stop::StopStrings;
use planaria_engine::tokenizer::{Tokenizer, TokenizerError};
use planaria_protocol::generation::{ClientEvent, FinishReason, Token};

use super::error::ApiError;

/// The text of an answer so far, as far as it is settled: half a character and what may become a
/// stop text are held back.
#[derive(Debug)]
pub(super) struct Answer {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stop: StopStrings,
    tokens: u32,
    /// Tokens of the prompt that needed no computing.
    reused: u32,
    /// Of the text, whether shown or held back.
    characters: usize,
}

impl Answer {
    /// An answer that is written by `detokenizer` and ends at any of `stop`.
    pub(super) const fn new(
        tokenizer: Arc<Tokenizer>,
        detokenizer: Detokenizer,
        stop: StopStrings,
    ) -> Self {
        Self { tokenizer, detokenizer, stop, tokens: 0, reused: 0, characters: 0 }
    }

    /// Tokens so far.
    pub(super) const fn counts(&self) -> Counts {
        Counts { answer: self.tokens, reused: self.reused }
    }

    /// Takes the next event; `None` when there are no more. Gives nothing for an event that a client
    /// does not see.
    pub(super) fn on(&mut self, event: Option<ClientEvent>) -> Option<Progress> {
        let progress = match event {
            Some(ClientEvent::Reused(tokens)) => {
                self.reused = tokens;
                return None;
            }
            Some(ClientEvent::Recovering) => Ok(Progress::Recovering),
            Some(ClientEvent::Token(token)) => self.token(token),
            Some(ClientEvent::Finished(reason)) => self.finished(reason),
            Some(ClientEvent::Failed(error)) => Ok(Progress::Failed(ApiError::ended_early(&error))),
            None => Ok(Progress::Failed(ApiError::broken_off())),
        };
        Some(progress.unwrap_or_else(|e| Progress::Failed(ApiError::internal(e.to_string()))))
    }

    fn token(&mut self, token: Token) -> Result<Progress, TokenizerError> {
        self.tokens += 1;
        let tokens = vec![PieceToken {
            id: token.id,
            offset: self.characters,
            scores: token.logprobs.map(|logprobs| self.scores(token.id, &logprobs)),
        }];
        let text = self.detokenizer.push(token.id)?;
        let (text, stopped) = self.show(&text);
        let piece = Piece { text, tokens };
        Ok(if stopped { Progress::Last(piece, FinishReason::Stop) } else { Progress::More(piece) })
    }

    fn finished(&mut self, reason: FinishReason) -> Result<Progress, TokenizerError> {
        let rest = self.detokenizer.finish()?;
        let (mut text, stopped) = self.show(&rest);
        let reason = if stopped { FinishReason::Stop } else { reason };
        // Nothing after a stop.
        text.push_str(&self.stop.finish());
        let piece = Piece { text, tokens: Vec::new() };
        Ok(Progress::Last(piece, reason))
    }

    fn show(&mut self, text: &str) -> (String, bool) {
        self.characters += text.chars().count();
        let outcome = self.stop.push(text);
        (outcome.emit, outcome.stopped)
    }

    fn scores(&self, id: u32, logprobs: &Logprobs) -> Scores {
        let scored =
            |id, logprob| Scored { token: Spelling(self.tokenizer.token_bytes(id)), logprob };
        Scores {
            chosen: scored(id, logprobs.chosen),
            top: logprobs.top.iter().map(|(id, logprob)| scored(*id, *logprob)).collect(),
        }
    }
}

impl Piece {
    /// Adds what came after it.
    pub(super) fn append(&mut self, mut next: Self) {
        self.text.push_str(&next.text);
        self.tokens.append(&mut next.tokens);
    }

    /// The ids of its tokens.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Of the answer itself, so far.
    pub(super) answer: u32,
    /// Of its prompt, those that needed no computing.
    pub(super) reused: u32,
}

/// What came of an event.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// More will come.
    More(Piece),
    /// This was the last. The generation is of no use any more.
    Last(Piece, FinishReason),
    /// More will come, after a pause: something died.
    Recovering,
    /// There will be no more.
    Failed(ApiError),
}

/// Some text and the tokens that brought it. Either may be empty: text is held back, and comes
/// later without a token.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Piece {
    /// The text.
    pub(super) text: String,
    /// The tokens.
    pub(super) tokens: Vec<PieceToken>,
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PieceToken {
    /// Its id.
    pub(super) id: u32,
    /// Characters of the answer before it.
    pub(super) offset: usize,
    /// Log-probabilities, when asked for.
    pub(super) scores: Option<Scores>,
}

/// Log-probabilities at one position.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scores {
    /// Of the token that was chosen.
    pub(super) chosen: Scored,
    /// The likeliest, most likely first.
    pub(super) top: Vec<Scored>,
}

/// A token and its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scored {
    /// The token.
    pub(super) token: Spelling,
    /// Natural logarithm.
    pub(super) logprob: f32,
}

/// A token's bytes, which need not be whole characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spelling(pub(super) Vec<u8>);
