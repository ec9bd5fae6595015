//! One answer, followed token by token.

use std::fmt;

use super::error::GrammarError;
use super::limits::TRIED;
use super::{Constraint, Thinking};
use crate::sampler::TokenMask;

/// The state of an answer that has to be of a form.
pub struct Matcher {
    parser: llguidance::Matcher,
    thinking: Option<Thinking>,
    ends: Vec<u32>,
    vocab: u32,
    phase: Phase,
}

/// Where an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing has come, and thoughts may.
    Beginning,
    /// In its thoughts.
    Thinking,
    /// In what has to be of the form.
    Form,
    /// The form is complete, and no token goes on with it.
    Complete,
    /// A token that ends it has come.
    Ended,
}

impl Matcher {
    pub(super) fn new(parser: llguidance::Matcher, constraint: &Constraint, vocab: u32) -> Self {
        let thinking = constraint.thinking;
        let phase = match thinking {
            Some(Thinking { begun: true, .. }) => Phase::Thinking,
            Some(Thinking { open: Some(_), .. }) => Phase::Beginning,
            _ => Phase::Form,
        };
        Self { parser, thinking, ends: constraint.ends.clone(), vocab, phase }
    }

    /// The answer goes on with a token.
    ///
    /// # Errors
    /// When the token cannot come here. Nothing can be told from then on.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        match (self.phase, self.thinking) {
            (Phase::Ended, _) => {}
            (Phase::Beginning, Some(Thinking { open: Some(open), .. })) if token == open => {
                self.phase = Phase::Thinking;
            }
            (Phase::Thinking, Some(Thinking { close, .. })) => {
                if token == close {
                    self.phase = Phase::Form;
                }
            }
            _ if self.ends.contains(&token) => {
                if !self.is_complete()? {
                    return Err(GrammarError::OffForm("it ends too soon".to_owned()));
                }
                self.phase = Phase::Ended;
            }
            _ => {
                self.phase = Phase::Form;
                let taken = self.parser.consume_token(token);
                taken.map_err(|error| went_wrong(&error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Which tokens may come next.
    ///
    /// # Errors
    /// When none may, or to find out would take too much.
    pub fn mask(&mut self) -> Result<TokenMask, GrammarError> {
        if self.phase == Phase::Thinking {
            // Thoughts are free, but an answer that ends within them would be of no form.
            let mut mask = TokenMask::all(self.vocab);
            for end in &self.ends {
                mask.set(*end, false);
            }
            return Ok(mask);
        }
        let may_open = self.phase == Phase::Beginning;
        let mut mask = self.form_mask()?;
        let ends_here = self.is_complete()?;
        for end in &self.ends {
            mask.set(*end, ends_here);
        }
        if may_open && let Some(open) = self.thinking.and_then(|thinking| thinking.open) {
            mask.set(open, true);
        }
        if mask.is_empty() { Err(GrammarError::DeadEnd) } else { Ok(mask) }
    }

    /// What continues the form.
    fn form_mask(&mut self) -> Result<TokenMask, GrammarError> {
        let nothing = TokenMask::none(self.vocab);
        let is_over = matches!(self.phase, Phase::Complete | Phase::Ended);
        if is_over || (self.parser.is_stopped() && !self.parser.is_error()) {
            return Ok(nothing);
        }
        let is_complete = self.is_complete()?;
        match self.parser.compute_mask() {
            Ok(set) => Ok(TokenMask::of_words(self.vocab, set.as_slice())),
            Err(error) if error.to_string().starts_with(NOTHING_FOLLOWS) => {
                if !is_complete {
                    return Err(GrammarError::DeadEnd);
                }
                self.phase = Phase::Complete;
                Ok(nothing)
            }
            Err(error) => Err(went_wrong(&error.to_string())),
        }
    }

    /// Whether the answer may end here.
    fn is_complete(&mut self) -> Result<bool, GrammarError> {
        match self.phase {
            Phase::Complete | Phase::Ended => Ok(true),
            Phase::Thinking => Ok(false),
            Phase::Beginning | Phase::Form => {
                self.parser.is_accepting().map_err(|error| went_wrong(&error.to_string()))
            }
        }
    }
}

/// What the parser says where no token is possible.
const NOTHING_FOLLOWS: &str = "NoExtensionBias";

/// A parser that was fine when it was made has failed: over a token that is not of the form, or over a limit.
fn went_wrong(text: &str) -> GrammarError {
    match GrammarError::of(text) {
        GrammarError::Invalid(what) | GrammarError::Unsupported(what) => {
            GrammarError::OffForm(what)
        }
        other => other,
    }
}

/// Looks whether a form has a beginning, and whether it can be followed for a few tokens, whichever come first in the vocabulary.
pub(super) fn try_out(mut parser: llguidance::Matcher) -> Result<(), GrammarError> {
    for tried in 0..TRIED {
        if parser.is_stopped() {
            break;
        }
        let failed = |error: &dyn fmt::Display| went_wrong(&error.to_string());
        let is_complete = parser.is_accepting().map_err(|error| failed(&error))?;
        let set = match parser.compute_mask() {
            Ok(set) => set,
            Err(error) if error.to_string().starts_with(NOTHING_FOLLOWS) => {
                // Further on it may have been begun with the wrong token.
                let is_dead = tried == 0 && !is_complete;
                return if is_dead { Err(GrammarError::DeadEnd) } else { Ok(()) };
            }
            Err(error) => return Err(failed(&error)),
        };
        let Some(token) = set.first_bit_set().and_then(|token| u32::try_from(token).ok()) else {
            break;
        };
        parser.consume_token(token).map_err(|error| failed(&error))?;
    }
    Ok(())
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher").field("phase", &self.phase).finish_non_exhaustive()
    }
}
