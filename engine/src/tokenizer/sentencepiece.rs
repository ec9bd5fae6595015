//! `tokenizer.model`, as sentencepiece writes it.
//!
//! The tokens of a text equal sentencepiece's. Control pieces and user-defined ones are added tokens, as transformers
//! makes them: a text that was not written by users may hold control pieces, which sentencepiece itself never reads.
//! User-defined pieces are found from the left, the longest first. So does sentencepiece in models of the type BPE; in
//! those of the type Unigram it only prefers them very much.

mod charsmap;
mod normalizer;
mod proto;
mod unigram;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, DecoderWrapper};

use self::charsmap::Charsmap;
pub(super) use self::normalizer::Normalizer;
use self::normalizer::{Kept, Prefix, SPACE};
use self::proto::{Algorithm, Kind, ModelProto, NormalizerSpec, TrainerSpec};
pub(super) use self::unigram::Unigram;
use super::class::Class;
use super::merges::{Joiner, MAX_STEPS, TooMuchWork};
use super::parts::{Inner, TextModel, TextNormalizer};
use super::settings::TokenizerSettings;
use super::token_bytes::fallback_byte;
use super::{guarded, tiktoken};
use crate::model_dir::ModelError;

/// sentencepiece makes pieces of up to 16 characters unless it is told otherwise; the longest published ones are
/// runs of 31 spaces and user-defined markers.
const MAX_PIECE_BYTES: usize = 512;

/// Bytes of all pieces of a model of the type Unigram. The largest published ones have two million; each byte takes
/// some 30 bytes of memory.
const MAX_UNIGRAM_BYTES: usize = 8 << 20;

/// A vocabulary, with the normalizer that follows once all tokens were added: their names do not go through it.
pub(super) struct Opened {
    pub(super) inner: Inner,
    pub(super) normalizer: Normalizer,
}

/// Makes a tokenizer of the file's content.
///
/// # Errors
/// When the file is no such model, or one that asks for what is not supported.
pub(super) fn open(
    file: &Path,
    bytes: &[u8],
    settings: &TokenizerSettings,
) -> Result<Opened, ModelError> {
    let failed = |problem: String| ModelError::malformed(file, problem);
    if tiktoken::looks_like_one(bytes) {
        return Err(failed(
            "is a tiktoken vocabulary, and no file says by which pattern it cuts texts; put a tokenizer.json into the \
             folder, made with transformers' save_pretrained"
                .to_owned(),
        ));
    }
    let model = ModelProto::decode(bytes)
        .map_err(|error| failed(format!("is no sentencepiece model: {error}")))?;
    let pieces = Pieces::read(&model).map_err(failed)?;
    let (Some(trainer), Some(spec)) = (model.trainer_spec, model.normalizer_spec) else {
        return Err(failed("has no trainer_spec or normalizer_spec: it is cut short".to_owned()));
    };
    let denormalizer = model.denormalizer_spec.unwrap_or_default();
    let has_charsmap = |spec: &NormalizerSpec| !spec.precompiled_charsmap().is_empty();
    for (is_asked, what) in [
        (has_charsmap(&denormalizer), "`denormalizer_spec`"),
        (trainer.treat_whitespace_as_suffix(), "`treat_whitespace_as_suffix`"),
        (!spec.escape_whitespaces(), "`escape_whitespaces` = false"),
    ] {
        if is_asked {
            return Err(failed(format!("has {what}, which is not supported")));
        }
    }
    let prefix = prefix(&spec, settings)?;
    let built = pieces.build(&trainer).and_then(|inner| {
        let charsmap = has_charsmap(&spec).then(|| {
            let parsed = Charsmap::parse(spec.precompiled_charsmap());
            parsed.ok_or_else(|| "has a `precompiled_charsmap` that is none".to_owned())
        });
        let kept = pieces.of_kind(Kind::UserDefined).map(|(_, text)| text.to_owned());
        let normalizer = Normalizer {
            prefix,
            removes_spaces: spec.remove_extra_whitespaces(),
            charsmap: charsmap.transpose()?,
            kept: Kept::new(kept),
        };
        let decoder = decoder(&trainer, &normalizer);
        let decoder = serde_json::from_value(decoder).map_err(|error| error.to_string())?;
        let mut inner = inner;
        inner.with_decoder(Some::<DecoderWrapper>(decoder));
        // Texts in which tokens are looked for that were added hold no spaces.
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let spaces = serde_json::from_value(spaces).map_err(|error| error.to_string())?;
        let spaces = TextNormalizer::Library(spaces);
        guarded(|| inner.with_normalizer(Some(spaces)).map(drop)).map_err(|e| e.to_string())?;
        Ok(Opened { inner, normalizer })
    });
    let mut opened = built.map_err(failed)?;
    pieces.add_to(&mut opened.inner, settings.class()).map_err(failed)?;
    Ok(opened)
}

/// The name of the piece for a character of one byte.
fn byte_name(character: &str) -> String {
    character.bytes().map(|byte| format!("<0x{byte:02X}>")).collect()
}

/// As the folder's settings have it: `add_prefix_space` overrules the model, and `legacy` puts a space after
/// every special token, which transformers 5 does only where it is true.
fn prefix(spec: &NormalizerSpec, settings: &TokenizerSettings) -> Result<Prefix, ModelError> {
    let section = settings.section();
    let has_prefix = section.flag("add_prefix_space", spec.add_dummy_prefix())?;
    Ok(match (has_prefix, section.flag("legacy", false)?) {
        (false, _) => Prefix::None,
        (true, false) => Prefix::First,
        (true, true) => Prefix::Every,
    })
}

fn decoder(trainer: &TrainerSpec, normalizer: &Normalizer) -> Value {
    let mut steps = vec![json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "})];
    if trainer.byte_fallback() {
        steps.push(json!({"type": "ByteFallback"}));
    }
    steps.push(json!({"type": "Fuse"}));
    // Where more than one is removed before a text, sentencepiece drops more of an answer too, which a stream of tokens
    // cannot have: it is not known there whether they are the first.
    if normalizer.removes_spaces || normalizer.prefix != Prefix::None {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// The vocabulary, found sound.
struct Pieces {
    all: Vec<Entry>,
    unknown: u32,
}

struct Entry {
    text: String,
    score: f32,
    kind: Kind,
}

impl Pieces {
    fn read(model: &ModelProto) -> Result<Self, String> {
        let mut all = Vec::with_capacity(model.pieces.len());
        let mut known = HashSet::with_capacity(model.pieces.len());
        for (id, piece) in model.pieces.iter().enumerate() {
            let (text, score) = (piece.piece(), piece.score());
            let kind = piece.kind.map_or(Ok(Kind::Normal), Kind::try_from);
            let is_alone = text.chars().nth(1).is_none();
            let problem = match kind {
                Err(_) => "is of a type that nobody knows".to_owned(),
                _ if text.is_empty() => "is empty".to_owned(),
                _ if text.len() > MAX_PIECE_BYTES => "has more than 512 bytes".to_owned(),
                _ if !score.is_finite() => format!("has the score {score}"),
                _ if !known.insert(text) => "is there twice".to_owned(),
                Ok(Kind::Unused) => "is of the type UNUSED, which is not supported".to_owned(),
                Ok(Kind::Byte) if fallback_byte(text).is_none() => "is no byte".to_owned(),
                Ok(kind) if kind != Kind::Byte && fallback_byte(text).is_some() => {
                    "has the name of a byte, but is none".to_owned()
                }
                // The library would find it in texts.
                Ok(Kind::Control | Kind::Unknown) if is_alone => {
                    "is a marker of one character, which is not supported".to_owned()
                }
                Ok(kind) => {
                    all.push(Entry { text: text.to_owned(), score, kind });
                    continue;
                }
            };
            let shown: String = text.chars().take(40).collect();
            return Err(format!("piece {id} (`{shown}`) {problem}"));
        }
        let kinds = all.iter().map(|piece| piece.kind);
        let mut unknown = (0..).zip(kinds).filter(|(_, kind)| *kind == Kind::Unknown);
        let (Some((unknown, _)), None) = (unknown.next(), unknown.next()) else {
            return Err("has not one piece of the type UNKNOWN, as every model does".to_owned());
        };
        Ok(Self { all, unknown })
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (u32, &str)> {
        let pieces = (0..).zip(&self.all).filter(move |(_, piece)| piece.kind == kind);
        pieces.map(|(id, piece)| (id, piece.text.as_str()))
    }

    fn build(&self, trainer: &TrainerSpec) -> Result<Inner, String> {
        let (has_bytes, bytes) = (trainer.byte_fallback(), self.of_kind(Kind::Byte).count());
        if bytes != if has_bytes { 256 } else { 0 } {
            return Err(format!("has {bytes} pieces of bytes and `byte_fallback` = {has_bytes}"));
        }
        let model = match Algorithm::try_from(trainer.model_type.unwrap_or(1)) {
            Ok(Algorithm::Bpe) => TextModel::Library(Box::new(self.bpe(has_bytes)?.into())),
            Ok(Algorithm::Unigram) => TextModel::Unigram(self.unigram(has_bytes)?),
            other => {
                let name = other.map_or("unknown".to_owned(), |other| format!("{other:?}"));
                return Err(format!("is of the type {name}; only Bpe and Unigram are supported"));
            }
        };
        Ok(Inner::new(model))
    }

    fn bpe(&self, byte_fallback: bool) -> Result<BPE, String> {
        // Only these are made by joining. User-defined ones are found before.
        let mut normal: Vec<&Entry> =
            self.all.iter().filter(|piece| piece.kind == Kind::Normal).collect();
        normal.sort_by(|a, b| b.score.total_cmp(&a.score));
        let joined = normal.iter().filter(|piece| piece.text.chars().nth(1).is_some());
        let pairs = joined.clone().zip(joined.skip(1));
        if let Some((a, b)) = pairs.into_iter().find(|(a, b)| a.score == b.score) {
            return Err(format!(
                "has the same score for `{}` and `{}`, which is not supported; put a tokenizer.json into the folder, \
                 made with transformers' save_pretrained",
                a.text, b.text
            ));
        }
        let ranks: HashMap<&[u8], u32> =
            (0..).zip(&normal).map(|(rank, piece)| (piece.text.as_bytes(), rank)).collect();
        let mut joiner = Joiner::new(|bytes: &[u8]| ranks.get(bytes).copied(), MAX_STEPS);
        let defined: HashSet<&str> =
            self.of_kind(Kind::UserDefined).map(|(_, text)| text).collect();
        // Characters of longer pieces that are no pieces, by those of their bytes, which they are then called by:
        // Gemma has two tabs, and one only as a byte.
        let mut bytes: HashMap<String, String> = HashMap::new();
        let mut merges = Merges::new();
        for piece in &normal {
            let starts = piece.text.char_indices().map(|(start, _)| start);
            let at = joiner
                .last_join(piece.text.as_bytes(), starts)
                .map_err(|TooMuchWork| "takes too long to read: its pieces are no real ones")?;
            let Some((first, last)) = at.and_then(|at| piece.text.split_at_checked(at)) else {
                continue;
            };
            // Only characters can be no pieces.
            let parts = [first, last];
            let mut missing = parts.iter().filter(|part| !ranks.contains_key(part.as_bytes()));
            if parts.iter().any(|part| defined.contains(part)) {
                // That character is never joined with others.
                continue;
            }
            if let Some(odd) = missing.clone().find(|part| !(byte_fallback && part.is_ascii())) {
                return Err(format!("has the piece `{}`, but none for `{odd}` in it", piece.text));
            }
            bytes.extend(missing.by_ref().map(|part| (byte_name(part), (*part).to_owned())));
            merges.push((first.to_owned(), last.to_owned()));
        }
        let name = |text: &String| bytes.get(text).unwrap_or(text).clone();
        let vocab: Vocab =
            (0..).zip(&self.all).map(|(id, piece)| (name(&piece.text), id)).collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .unk_token(self.unknown().to_owned())
            .fuse_unk(true)
            .byte_fallback(byte_fallback);
        guarded(|| model.build()).map_err(|error| error.to_string())
    }

    fn unigram(&self, byte_fallback: bool) -> Result<Unigram, String> {
        let bytes: usize = self.all.iter().map(|piece| piece.text.len()).sum();
        if bytes > MAX_UNIGRAM_BYTES {
            return Err(format!(
                "has {bytes} bytes of pieces; at most {MAX_UNIGRAM_BYTES} are read"
            ));
        }
        Unigram::new(self, byte_fallback).ok_or_else(|| "has no pieces of texts".to_owned())
    }

    fn unknown(&self) -> &str {
        self.all.get(self.unknown as usize).map_or("", |piece| &piece.text)
    }

    /// Makes control pieces special tokens, with those that the class has besides, and finds user-defined ones in
    /// normalized texts.
    fn add_to(&self, inner: &mut Inner, class: Class) -> Result<(), String> {
        let control = self.of_kind(Kind::Control).map(|(_, text)| AddedToken::from(text, true));
        let is_special = |text: &str| class.special().contains(&text);
        let defined = self.of_kind(Kind::UserDefined);
        let defined = defined.map(|(_, text)| AddedToken::from(text, is_special(text)));
        guarded(|| inner.add_tokens(control.chain(defined))).map_err(|error| error.to_string())?;
        Ok(())
    }
}
