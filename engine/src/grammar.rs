//! What an answer has to be, and which tokens keep it so.
//!
//! A [`Constraint`] is a part of a request. [`Grammars`] has what all sequences of a model share: the vocabulary as a trie of bytes.
//! It makes a [`Matcher`] of a constraint, which follows one answer token by token and says what may come next. A [`Guide`] keeps a
//! matcher in step with a token log, so whoever has the log comes to the same state.
//!
//! The parser is `llguidance`, which no other module names. Constraints come from anyone: what they may take in time and memory is
//! bounded (see `limits`), and nothing is fetched for them.

mod error;
mod guide;
mod harmony;
mod limits;
mod matcher;
mod schema;
mod source;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::thread;

use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use serde::{Deserialize, Serialize};

pub use self::error::GrammarError;
pub use self::guide::{Guide, Vocabulary};
pub use self::harmony::Channels;
use self::limits::{COMPILE_STACK, RECENT};
pub use self::matcher::Matcher;
use crate::tokenizer::Tokenizer;

/// What an answer has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// What it has to be.
    pub form: Form,
    /// Whether it may begin with thoughts, and how those are told apart from it.
    #[serde(default)]
    pub thinking: Option<Thinking>,
    /// The tokens that end the answer, at least one: they are possible exactly where the form is complete.
    pub ends: Vec<u32>,
}

/// The form of an answer, from its first byte to its last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes, given as JSON text.
    JsonSchema(String),
    /// A text that a regular expression matches from its beginning to its end, in the syntax of Rust's `regex`.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// What a grammar in `llguidance`'s variant of Lark describes. It may name special tokens.
    Lark(String),
}

/// An answer may begin with thoughts, which are free: the form holds for what follows `close`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thinking {
    /// The token that begins thoughts, if the model has one. It is possible as the first of the answer.
    pub open: Option<u32>,
    /// The token that ends them.
    pub close: u32,
    /// Whether the prompt ends inside thoughts.
    pub begun: bool,
}

/// What the constrained sequences of a model share.
pub struct Grammars {
    vocab: u32,
    factory: ParserFactory,
    /// Forms that were asked for lately, the latest last, each at its beginning: clients ask for the same again and again.
    recent: Mutex<VecDeque<(Form, llguidance::Matcher)>>,
}

impl Grammars {
    /// For a model with `vocab` logits and this tokenizer. Takes about a second for a large vocabulary.
    ///
    /// # Errors
    /// When no trie can be made of the tokens.
    pub fn new(tokenizer: &Tokenizer, vocab: u32) -> Result<Self, GrammarError> {
        Self::of_words(vocabulary::words_of(tokenizer, vocab))
    }

    /// For a model whose tokens are bytes: the token 65 is an `A`. Tokens from 256 on are nothing.
    ///
    /// # Errors
    /// As [`Grammars::new`].
    pub fn of_bytes(vocab: u32) -> Result<Self, GrammarError> {
        Self::of_words((0..vocab).map(|id| u8::try_from(id).into_iter().collect()).collect())
    }

    fn of_words(words: Vec<Vec<u8>>) -> Result<Self, GrammarError> {
        let vocab = u32::try_from(words.len()).unwrap_or(u32::MAX);
        let factory = vocabulary::factory(words)?;
        Ok(Self { vocab, factory, recent: Mutex::default() })
    }

    /// A matcher at the beginning of an answer.
    ///
    /// # Errors
    /// When the constraint makes no sense, names what is not supported, or would take too much.
    pub fn compile(&self, constraint: &Constraint) -> Result<Matcher, GrammarError> {
        if constraint.ends.is_empty() {
            return Err(GrammarError::Invalid("it names no token that ends the answer".to_owned()));
        }
        let parser = match self.recall(&constraint.form) {
            Some(parser) => parser,
            None => self.parser(&constraint.form)?,
        };
        Ok(Matcher::new(parser, constraint, self.vocab))
    }

    /// A form that was compiled lately. The copy shares no state with it: what one answer takes of the limits is not missing to
    /// another one.
    fn recall(&self, form: &Form) -> Option<llguidance::Matcher> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let place = recent.iter().position(|(known, _)| known == form)?;
        let (form, parser) = recent.remove(place)?;
        let copy = parser.deep_clone();
        recent.push_back((form, parser));
        Some(copy)
    }

    fn parser(&self, form: &Form) -> Result<llguidance::Matcher, GrammarError> {
        let grammar = source::grammar_of(form)?;
        let parser = self.on_a_deep_stack(grammar)?;
        matcher::try_out(parser.deep_clone())?;
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT {
            recent.pop_front();
        }
        recent.push_back((form.clone(), parser.deep_clone()));
        Ok(parser)
    }

    /// The compiler calls itself for each property of an object and each reference of a chain, which may be thousands.
    fn on_a_deep_stack(
        &self,
        grammar: TopLevelGrammar,
    ) -> Result<llguidance::Matcher, GrammarError> {
        let compile = move || {
            self.factory.create_parser(grammar).map(|parser| {
                let mut matcher = llguidance::Matcher::new(Ok(parser));
                // Finds out whether the form is complete before its first byte.
                matcher.consume_tokens(&[]).map(|()| matcher)
            })
        };
        let compiled = thread::scope(|scope| {
            let thread =
                thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILE_STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(|e| e.to_string())?;
            thread.join().map_err(|_| "its compiler has failed".to_owned())
        });
        let matcher = compiled.map_err(GrammarError::TooComplex)?;
        matcher.and_then(|matcher| matcher).map_err(|error| GrammarError::of(&format!("{error:#}")))
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}
