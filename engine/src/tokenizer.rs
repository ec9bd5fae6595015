//! A model's tokenizer, as shipped with it: `tokenizer.json`, else `tiktoken.model`, else `tokenizer.model`, and
//! `tokenizer_config.json`.

mod added;
mod class;
mod merges;
mod parts;
mod reach;
mod sentencepiece;
mod settings;
mod source;
mod tiktoken;
mod token_bytes;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use serde_json::Value;
use thiserror::Error;
use tokenizers::TokenizerBuilder;

use self::parts::{Inner, TextNormalizer};
use self::reach::Reach;
pub(crate) use self::settings::TokenizerSettings;
use self::source::Format;
pub(crate) use self::source::Source;
use self::token_bytes::ByteAlphabet;
use crate::model_dir::{ModelDir, ModelError};

/// The largest published `tokenizer.json` (Gemma's) has 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Text to tokens and back.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Inner,
    /// The same, reading special tokens as plain text; made when first asked for.
    literal: OnceLock<Inner>,
    alphabet: ByteAlphabet,
    /// Found when first asked for.
    reach: OnceLock<Reach>,
    settings: TokenizerSettings,
    eos_token_ids: BTreeSet<u32>,
    /// The name of the file that it was read from.
    file: &'static str,
}

/// A text could not be turned into tokens, or tokens not into text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the tokenizer failed: {0}")]
pub struct TokenizerError(String);

impl Tokenizer {
    /// Whether a model's folder has one, sound or not.
    #[must_use]
    pub fn is_in(model: &ModelDir) -> bool {
        Source::of(model.path()).is_some()
    }

    /// Opens the tokenizer of a model.
    ///
    /// # Errors
    /// When there is none, or it is malformed.
    pub fn open(model: &ModelDir) -> Result<Self, ModelError> {
        let source = Source::expect(model.path())?;
        let settings = TokenizerSettings::open(model.path())?;
        let inner = read(&source, &settings)?;
        let mut eos_token_ids: BTreeSet<u32> = model.eos_token_ids().iter().copied().collect();
        eos_token_ids.extend(settings.eos_token().and_then(|token| inner.token_to_id(token)));
        let alphabet = ByteAlphabet::of(&inner);
        Ok(Self {
            inner,
            literal: OnceLock::new(),
            alphabet,
            reach: OnceLock::new(),
            settings,
            eos_token_ids,
            file: source.format.file_name(),
        })
    }

    /// The tokens of a plain prompt, with a beginning-of-text token where the model wants one: as
    /// the tokenizer's post-processor has it, overruled by `add_bos_token` in
    /// `tokenizer_config.json`, and never a second one.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let bos = self.settings.bos_token();
        let has_bos = bos.is_some_and(|bos| text.starts_with(bos));
        let add_bos = self.settings.add_bos_token();
        let mut ids = encode(&self.inner, text, !has_bos && add_bos != Some(false))?;
        if add_bos == Some(true)
            && let Some(bos) = bos.and_then(|bos| self.inner.token_to_id(bos))
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The tokens of a text that already holds its special tokens, as chat templates write it;
    /// nothing is added.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        encode(&self.inner, text, false)
    }

    /// The tokens of a text in which nothing is special: what looks like a special token is read
    /// as the characters that it consists of. Nothing is added.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode_literal(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let literal = self.literal.get_or_init(|| {
            let mut literal = self.inner.clone();
            literal.set_encode_special_tokens(true);
            literal
        });
        encode(literal, text, false)
    }

    /// A number of tokens that `text` has at least, found without tokenizing it; 0 where nothing is known. Takes
    /// a moment the first time.
    #[must_use]
    pub fn least_tokens(&self, text: &str) -> usize {
        self.reach.get_or_init(|| Reach::of(&self.inner, &self.alphabet)).least_tokens(text)
    }

    /// The text of tokens as the tokenizer's own decoder has it; bytes that are no UTF-8 come as
    /// U+FFFD. Unknown ids are passed over. For a stream of tokens use
    /// [`crate::detokenizer::Detokenizer`].
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        guarded(|| self.inner.decode(ids, skip_special))
    }

    /// The bytes that a token stands for, not always UTF-8 by themselves; empty for an unknown id.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.alphabet.bytes_of(&self.inner, id)
    }

    /// Whether a token is a marker and no part of a text: a special one, or one that was added and is called `<…>`, as
    /// `<think>` is by models that do not call it special.
    #[must_use]
    pub fn is_marker(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| {
            token.special || (token.content.starts_with('<') && token.content.ends_with('>'))
        })
    }

    /// The text that a token stands for, with U+FFFD for bytes that are no UTF-8.
    #[must_use]
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// The token that stands for exactly this text, if there is one.
    #[must_use]
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Whether a token is a sign for the model and no text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
    }

    /// Tokens that end an answer: the model's (`generation_config.json`, else `config.json`) and
    /// the tokenizer's own.
    #[must_use]
    pub const fn eos_token_ids(&self) -> &BTreeSet<u32> {
        &self.eos_token_ids
    }

    /// How many tokens it knows that a model with `vocab` tokens does not. What such a token stands for,
    /// the model was never told.
    #[must_use]
    pub fn count_beyond(&self, vocab: u32) -> usize {
        self.inner.get_vocab(true).values().filter(|id| **id >= vocab).count()
    }

    /// What its files ask for in vain, each naming the file and the key.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.settings.warnings();
        let own = serde_json::to_value(self.inner.get_pre_tokenizer()).unwrap_or_default();
        let own = find_flag(&own, ADD_PREFIX_SPACE);
        if let (Some(own), Some(said)) = (own, self.settings.flag(ADD_PREFIX_SPACE))
            && own != said
        {
            warnings.push(format!(
                "tokenizer_config.json: `{ADD_PREFIX_SPACE}` is {said}, but {own} in {}, which \
                 counts",
                self.file
            ));
        }
        warnings
    }

    /// How many tokens it knows, special ones included. Can be more or less than the model's
    /// vocabulary, which is often padded.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

const ADD_PREFIX_SPACE: &str = "add_prefix_space";

/// A flag anywhere in a part of a tokenizer.
fn find_flag(part: &Value, key: &str) -> Option<bool> {
    match part {
        Value::Object(map) => {
            let own = map.get(key).and_then(Value::as_bool);
            own.or_else(|| map.values().find_map(|inner| find_flag(inner, key)))
        }
        Value::Array(list) => list.iter().find_map(|inner| find_flag(inner, key)),
        _ => None,
    }
}

/// Reads a tokenizer, and adds what the settings add.
fn read(source: &Source, settings: &TokenizerSettings) -> Result<Inner, ModelError> {
    let (file, bytes) = (source.file(), source.read()?);
    let failed = |error: TokenizerError| {
        ModelError::malformed(file, format!("is no tokenizer: {}", error.0))
    };
    match source.format {
        Format::Json => {
            let parsed = guarded(|| Ok(serde_json::from_slice::<Inner>(&bytes)?));
            let mut inner = parsed.map_err(failed)?;
            // Some files come with the padding and truncation of their training.
            inner.with_padding(None);
            inner.with_truncation(None).map_err(|e| ModelError::malformed(file, e.to_string()))?;
            added::add(&mut inner, settings, source.format)?;
            Ok(inner)
        }
        Format::Tiktoken => {
            let mut inner = tiktoken::open(file, &bytes, settings)?;
            added::add(&mut inner, settings, source.format)?;
            Ok(inner)
        }
        Format::SentencePiece => {
            let mut opened = sentencepiece::open(file, &bytes, settings)?;
            added::add(&mut opened.inner, settings, source.format)?;
            guarded(|| with_normalizer(&opened.inner, opened.normalizer)).map_err(failed)
        }
    }
}

/// The same tokenizer, with a normalizer that the tokens which were added do not go through.
fn with_normalizer(
    inner: &Inner,
    normalizer: sentencepiece::Normalizer,
) -> tokenizers::Result<Inner> {
    TokenizerBuilder::new()
        .with_model(inner.get_model().clone())
        .with_normalizer(Some(TextNormalizer::SentencePiece(normalizer)))
        .with_decoder(inner.get_decoder().cloned())
        .with_added_vocabulary(inner.get_added_vocabulary().clone())
        .build()
}

fn encode(tokenizer: &Inner, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
    let encoding = guarded(|| tokenizer.encode_fast(text, add_special))?;
    Ok(encoding.get_ids().to_vec())
}

/// The library trusts its files: it panics over some that make no sense, when it reads them or when
/// it uses them.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokenizerError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| TokenizerError(error.to_string())),
        Err(_) => Err(TokenizerError("its settings make no sense".to_owned())),
    }
}
