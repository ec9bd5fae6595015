//! The library's tokenizer, with parts of ours beside its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::unigram::UnigramTrainer;
use tokenizers::{
    DecoderWrapper, Model, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper,
    PostProcessorWrapper, PreTokenizerWrapper, Token, TokenizerImpl,
};

use super::sentencepiece;

/// As `tokenizers::Tokenizer`, but for the normalizer and the model.
pub(super) type Inner = TokenizerImpl<
    TextModel,
    TextNormalizer,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// What is done to a text before it is cut into tokens.
#[derive(Debug, Clone)]
pub(super) enum TextNormalizer {
    /// One of the library's, as `tokenizer.json` names it.
    Library(NormalizerWrapper),
    /// sentencepiece's, which no combination of the library's equals.
    SentencePiece(sentencepiece::Normalizer),
}

/// What cuts a text into tokens.
#[derive(Debug, Clone)]
pub(super) enum TextModel {
    /// One of the library's.
    Library(Box<ModelWrapper>),
    /// sentencepiece's Unigram. The library's adds up in 64 bits, and so cuts runs of one character otherwise.
    Unigram(sentencepiece::Unigram),
}

impl Normalizer for TextNormalizer {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        match self {
            Self::Library(normalizer) => normalizer.normalize(text),
            Self::SentencePiece(normalizer) => {
                normalizer.normalize(text);
                Ok(())
            }
        }
    }
}

impl<'de> Deserialize<'de> for TextNormalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NormalizerWrapper::deserialize(deserializer).map(Self::Library)
    }
}

impl Model for TextModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        match self {
            Self::Library(model) => model.tokenize(sequence),
            Self::Unigram(model) => Ok(model.tokenize(sequence)),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Library(model) => model.token_to_id(token),
            Self::Unigram(model) => model.id_of(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Library(model) => model.id_to_token(id),
            Self::Unigram(model) => model.token_of(id).map(str::to_owned),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Library(model) => model.get_vocab(),
            Self::Unigram(model) => model.vocabulary().clone(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Library(model) => model.get_vocab_size(),
            Self::Unigram(model) => model.vocabulary().len(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        match self {
            Self::Library(model) => model.save(folder, prefix),
            Self::Unigram(_) => Err("only read".into()),
        }
    }

    /// Nothing is trained here.
    fn get_trainer(&self) -> TrainerWrapper {
        match self {
            Self::Library(model) => model.get_trainer(),
            Self::Unigram(_) => UnigramTrainer::default().into(),
        }
    }
}

impl<'de> Deserialize<'de> for TextModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ModelWrapper::deserialize(deserializer).map(|model| Self::Library(Box::new(model)))
    }
}
