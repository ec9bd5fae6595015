//! Text from a stream of tokens, without half characters.

use std::sync::Arc;

use crate::tokenizer::{Tokenizer, TokenizerError};

/// After so many tokens that do not add up to whole characters, what they are is shown. A
/// character has at most four bytes, so only noise comes here, and it must not be kept for ever.
const MAX_HELD: usize = 32;

/// How many tokens of a prompt are looked at to learn what comes before the first token.
const MAX_CONTEXT: usize = 8;

/// Turns tokens into text as they come. Special tokens give no text.
///
/// A token that ends in the middle of a character is held back until the character is whole.
/// Tokens are decoded together with those before them, because some decoders write a token
/// differently at the beginning of a text (SentencePiece drops the first space there).
///
/// The pieces together equal what [`Tokenizer::decode`] makes of all tokens. The exception is text
/// that is not UTF-8 anyway: a decoder may take back characters that it wrote when garbage follows
/// them, a stream cannot.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Tokens whose text is out and that those to come are decoded with; then those held back.
    window: Vec<u32>,
    /// How many of the window are out.
    shown: usize,
    /// The text of those.
    context: String,
}

impl Detokenizer {
    /// For a text that begins with the first token, such as a chat answer.
    #[must_use]
    pub const fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, window: Vec::new(), shown: 0, context: String::new() }
    }

    /// For a text that goes on from `prompt`, such as a completion.
    ///
    /// # Errors
    /// When the decoder fails on the prompt.
    pub fn after(tokenizer: Arc<Tokenizer>, prompt: &[u32]) -> Result<Self, TokenizerError> {
        let tail = prompt.get(prompt.len().saturating_sub(MAX_CONTEXT)..).unwrap_or(prompt);
        let context = tokenizer.decode(tail, true)?;
        Ok(Self { tokenizer, window: tail.to_vec(), shown: tail.len(), context })
    }

    /// Takes the next token and gives the text that is now whole; often empty.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        self.window.push(token);
        let fresh = self.fresh()?;
        let overdue = self.window.len() - self.shown >= MAX_HELD;
        if fresh.is_empty() {
            if overdue {
                self.window.truncate(self.shown);
            }
            return Ok(fresh);
        }
        if fresh.ends_with(char::REPLACEMENT_CHARACTER) && !overdue {
            return Ok(String::new());
        }
        self.show()?;
        Ok(fresh)
    }

    /// The text of the tokens that are held back, when the next one is not to be read with them: it is
    /// no text. Those after it are decoded as if nothing had happened.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn settle(&mut self) -> Result<String, TokenizerError> {
        let fresh = self.fresh()?;
        if !fresh.is_empty() {
            self.show()?;
        }
        Ok(fresh)
    }

    /// The text of the tokens that were held back, when no more come.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        let fresh = self.fresh()?;
        self.window.clear();
        self.shown = 0;
        self.context.clear();
        Ok(fresh)
    }

    /// The tokens held back are out.
    fn show(&mut self) -> Result<(), TokenizerError> {
        self.window.drain(..self.shown);
        self.shown = self.window.len();
        self.context = self.tokenizer.decode(&self.window, true)?;
        Ok(())
    }

    /// The text of the tokens held back.
    fn fresh(&self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.window, true)?;
        match text.strip_prefix(self.context.as_str()) {
            Some(fresh) => Ok(fresh.to_owned()),
            // The decoder took back what is out already; the new tokens stand for themselves.
            None => self.tokenizer.decode(self.window.get(self.shown..).unwrap_or(&[]), true),
        }
    }
}
