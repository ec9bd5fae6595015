//! The tokens of a model as bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie,
};

use super::error::GrammarError;
use super::limits::{TOKEN_BYTES, of_parser};
use crate::tokenizer::Tokenizer;

/// The bytes of each token below `vocab`. Markers begin with a byte that no text has; a token that the tokenizer does not know has
/// none, and never comes.
pub(super) fn words_of(tokenizer: &Tokenizer, vocab: u32) -> Vec<Vec<u8>> {
    let word = |id| {
        let mut bytes = tokenizer.token_bytes(id);
        if tokenizer.is_marker(id) {
            bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        bytes
    };
    (0..vocab).map(word).collect()
}

/// What compiles grammars for a vocabulary.
pub(super) fn factory(mut words: Vec<Vec<u8>>) -> Result<ParserFactory, GrammarError> {
    for word in words.iter_mut().filter(|word| word.len() > TOKEN_BYTES) {
        word.clear();
    }
    let vocab = u32::try_from(words.len()).unwrap_or(u32::MAX);
    // The tokens that end an answer are the request's, so the parser knows of none.
    let info = TokRxInfo::new(vocab, INVALID_TOKEN);
    let make = || {
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)?;
        factory.quiet();
        *factory.limits_mut() = of_parser();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(factory)
    };
    // It panics over vocabularies that it cannot hold.
    match catch_unwind(AssertUnwindSafe(make)) {
        Ok(factory) => factory.map_err(|error| GrammarError::Vocabulary(error.to_string())),
        Err(_) => Err(GrammarError::Vocabulary("its tokens do not fit a trie".to_owned())),
    }
}
