//! A matcher that is in step with a token log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use super::{Constraint, GrammarError, Grammars, Matcher};
use crate::architecture::FORM_TOKEN_BYTES;
use crate::model_dir::{ModelConfig, ModelDir};
use crate::sampler::{SamplingParams, TokenMask};
use crate::tokenizer::Tokenizer;

/// The grammars of a stage's model, made once: ahead, or when the first constrained sequence is sampled.
#[derive(Debug)]
pub struct Vocabulary(Arc<Tokens>);

#[derive(Debug)]
struct Tokens {
    vocab: u32,
    /// The folder with the tokenizer; without one tokens are bytes.
    model: Option<ModelDir>,
    grammars: OnceLock<Result<Grammars, GrammarError>>,
    /// Whether a thread makes them, or has made them.
    is_prepared: AtomicBool,
}

impl Vocabulary {
    /// For a model with so many logits whose tokens are bytes.
    #[must_use]
    pub fn of_bytes(vocab: u32) -> Self {
        Self::of(vocab, None)
    }

    /// For the model in a folder, with its tokenizer.
    #[must_use]
    pub fn of_model(model: &ModelDir) -> Self {
        Self::of(model.geometry().vocab, Some(model.clone()))
    }

    fn of(vocab: u32, model: Option<ModelDir>) -> Self {
        let (grammars, is_prepared) = (OnceLock::new(), AtomicBool::new(false));
        Self(Arc::new(Tokens { vocab, model, grammars, is_prepared }))
    }

    /// Has a thread make them, unless one was asked to before: that takes about a second for a large vocabulary. Whoever
    /// needs them sooner waits for it. The thread is given to whoever asks first.
    pub fn prepare(&self) -> Option<JoinHandle<()>> {
        // Those of bytes are made in no time.
        if self.0.model.is_none() || self.0.is_prepared.swap(true, Ordering::Relaxed) {
            return None;
        }
        let tokens = Arc::clone(&self.0);
        // Whoever needs them is told why there are none.
        let make = move || drop(tokens.grammars());
        // Without a thread they are made when they are needed.
        thread::Builder::new().name("vocabulary".to_owned()).spawn(make).ok()
    }

    /// About what they take in memory: nothing before they are made.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let are_made = matches!(self.0.grammars.get(), Some(Ok(_)));
        if are_made { u64::from(self.0.vocab) * FORM_TOKEN_BYTES } else { 0 }
    }
}

impl Tokens {
    fn grammars(&self) -> Result<&Grammars, GrammarError> {
        let made = self.grammars.get_or_init(|| {
            let Some(model) = &self.model else { return Grammars::of_bytes(self.vocab) };
            let is_fake = matches!(model.config(), ModelConfig::Fake(_));
            if is_fake && !Tokenizer::is_in(model) {
                return Grammars::of_bytes(self.vocab);
            }
            let tokenizer = Tokenizer::open(model);
            let tokenizer = tokenizer.map_err(|error| GrammarError::Vocabulary(error.to_string()));
            Grammars::new(&tokenizer?, self.vocab)
        });
        made.as_ref().map_err(Clone::clone)
    }
}

/// What keeps the answer of one sequence to its constraint. It remembers which tokens it has followed and of which constraint, and
/// begins anew where the log or the constraint is another: so its state follows from these two, whatever came before.
#[derive(Debug, Default)]
pub struct Guide(Option<Following>);

#[derive(Debug)]
struct Following {
    constraint: Arc<Constraint>,
    matcher: Matcher,
    /// The generated tokens that the matcher has accepted.
    accepted: Vec<u32>,
}

impl Guide {
    /// Which tokens may follow `log`, the prompt and what was generated; `None` where all may.
    ///
    /// # Errors
    /// When the constraint cannot be compiled, what was generated is not of its form, or no token is possible.
    pub fn mask(
        &mut self,
        vocabulary: &Vocabulary,
        params: &SamplingParams,
        log: &[u32],
    ) -> Result<Option<TokenMask>, GrammarError> {
        let Some(constraint) = &params.constraint else {
            self.0 = None;
            return Ok(None);
        };
        let generated = log.get(params.prompt_tokens as usize..).unwrap_or_default();
        // Whatever fails leaves nothing behind.
        let known = self.0.take().filter(|known| known.is_before(constraint, generated));
        let mut following = match known {
            Some(known) => known,
            None => Following {
                constraint: Arc::clone(constraint),
                matcher: vocabulary.0.grammars()?.compile(constraint)?,
                accepted: Vec::new(),
            },
        };
        for token in generated.iter().skip(following.accepted.len()) {
            following.matcher.accept(*token)?;
            following.accepted.push(*token);
        }
        let mask = following.matcher.mask()?;
        self.0 = Some(following);
        Ok(Some(mask))
    }
}

impl Following {
    /// Whether it has followed the beginning of what was generated, under this constraint.
    fn is_before(&self, constraint: &Arc<Constraint>, generated: &[u32]) -> bool {
        let same = Arc::ptr_eq(&self.constraint, constraint) || self.constraint == *constraint;
        same && generated.starts_with(&self.accepted)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::grammar::Form;

    fn demo() -> Vocabulary {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        Vocabulary::of_model(&ModelDir::open(&folder).unwrap())
    }

    fn asked() -> SamplingParams {
        let form = Form::Choice(vec!["yes".to_owned()]);
        let constraint = Some(Arc::new(Constraint { form, thinking: None, ends: vec![0] }));
        SamplingParams { constraint, ..SamplingParams::greedy() }
    }

    #[test]
    fn what_is_made_ahead_is_made_once() {
        let vocabulary = demo();
        let thread = vocabulary.prepare().expect("whoever asks first has the thread");
        assert!(vocabulary.prepare().is_none());
        thread.join().unwrap();
        assert!(vocabulary.bytes() > 0 && demo().bytes() == 0);
        assert!(matches!(vocabulary.0.grammars.get(), Some(Ok(_))));
        let ahead = Guide::default().mask(&vocabulary, &asked(), &[]);
        assert_eq!(ahead, Guide::default().mask(&demo(), &asked(), &[]));
        assert!(Vocabulary::of_bytes(300).prepare().is_none());
    }

    /// Whether the thread or the first answer is sooner, there is one vocabulary.
    #[test]
    fn who_needs_it_sooner_waits() {
        let vocabulary = demo();
        let thread = vocabulary.prepare();
        let mask = Guide::default().mask(&vocabulary, &asked(), &[]).unwrap().unwrap();
        assert!(!mask.is_empty());
        thread.unwrap().join().unwrap();
    }
}
