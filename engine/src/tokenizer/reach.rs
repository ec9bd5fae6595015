//! How much text a token can stand for, so that a text that is far too long is known without being tokenized.
//!
//! Proven only for tokenizers that lose no text but blanks: byte-level BPE, and BPE with bytes or unknown
//! tokens for what is not in its vocabulary, without a normalizer that shortens. That is what published models
//! have; of the others nothing is said.

use std::num::NonZeroUsize;

use serde_json::Value;
use tokenizers::models::ModelWrapper;

use super::parts::{Inner, TextModel, TextNormalizer};
use super::token_bytes::ByteAlphabet;

/// Most bytes of text, blanks left aside, that become one token; `None` when nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach(Option<NonZeroUsize>);

/// Bytes that composing by Unicode's form C can make of one: `ΐ` from three characters, one of which has a longer
/// equal, is 7 bytes before and 2 after.
const COMPOSED: usize = 4;

impl Reach {
    /// Looks at every token of a vocabulary.
    pub(super) fn of(tokenizer: &Inner, alphabet: &ByteAlphabet) -> Self {
        Self(longest(tokenizer, alphabet).and_then(NonZeroUsize::new))
    }

    /// The fewest tokens that `text` can have.
    pub(super) fn least_tokens(self, text: &str) -> usize {
        let Self(Some(longest)) = self else {
            return 0;
        };
        let words = text.split(char::is_whitespace).map(str::len);
        words.sum::<usize>().div_ceil(longest.get())
    }
}

fn longest(tokenizer: &Inner, alphabet: &ByteAlphabet) -> Option<usize> {
    let shortened = match tokenizer.get_normalizer() {
        None => 1,
        Some(TextNormalizer::Library(normalizer)) => {
            shortening(&serde_json::to_value(normalizer).ok()?)?
        }
        Some(TextNormalizer::SentencePiece(normalizer)) => normalizer.shortening()?,
    };
    let split = match tokenizer.get_pre_tokenizer() {
        None => Split { loses_nothing: true, is_byte_level: false },
        Some(split) => Split::of(&serde_json::to_value(split).ok()?),
    };
    let TextModel::Library(model) = tokenizer.get_model() else {
        return None;
    };
    let ModelWrapper::BPE(model) = &**model else {
        return None;
    };
    let has_unknown = model.unk_token.is_some() && !model.fuse_unk;
    let mut single = [false; 256];
    let mut longest = 0;
    for (name, id) in tokenizer.get_vocab(true) {
        let bytes = alphabet.bytes_of(tokenizer, id);
        if let [byte] = bytes.as_slice()
            && let Some(single) = single.get_mut(usize::from(*byte))
        {
            *single = true;
        }
        // Which of the two the text held is not known here.
        longest = longest.max(bytes.len()).max(name.len());
    }
    // UTF-8 has no others.
    let has_all = (0..=0xf4_u8).zip(single).all(|(byte, has)| has || matches!(byte, 0xc0 | 0xc1));
    let has_bytes = (split.is_byte_level || model.byte_fallback) && has_all;
    (split.loses_nothing && (has_bytes || has_unknown)).then_some(longest * shortened)
}

/// By how much a normalizer may shorten what is no blank; `None` when nobody knows.
fn shortening(normalizer: &Value) -> Option<usize> {
    match normalizer.get("type")?.as_str()? {
        "NFC" => Some(COMPOSED),
        "Prepend" => Some(1),
        "Replace" => {
            let what = normalizer.get("pattern")?.get("String")?.as_str()?;
            what.chars().all(char::is_whitespace).then_some(1)
        }
        "Sequence" => {
            let each = normalizer.get("normalizers")?.as_array()?.iter().map(shortening);
            each.product::<Option<usize>>()
        }
        _ => None,
    }
}

#[derive(Debug, Clone, Copy)]
struct Split {
    loses_nothing: bool,
    is_byte_level: bool,
}

impl Split {
    fn of(split: &Value) -> Self {
        let kind = split.get("type").and_then(Value::as_str).unwrap_or_default();
        let parts = split.get("pretokenizers").and_then(Value::as_array);
        match (kind, parts) {
            ("ByteLevel", _) => Self { loses_nothing: true, is_byte_level: true },
            ("Digits" | "Metaspace", _) => Self { loses_nothing: true, is_byte_level: false },
            ("Split" | "Punctuation", _) => {
                let behavior = split.get("behavior").and_then(Value::as_str);
                let loses_nothing = behavior.is_some_and(|behavior| behavior != "Removed");
                Self { loses_nothing, is_byte_level: false }
            }
            ("Sequence", Some(parts)) => parts.iter().map(Self::of).fold(
                Self { loses_nothing: true, is_byte_level: false },
                |all, part| Self {
                    loses_nothing: all.loses_nothing && part.loses_nothing,
                    is_byte_level: all.is_byte_level || part.is_byte_level,
                },
            ),
            _ => Self { loses_nothing: false, is_byte_level: false },
        }
    }
}
