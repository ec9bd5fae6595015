//! `tiktoken.model`, as Kimi's models are published: a line for each token, its bytes in base64 and its rank,
//! which is its id.
//!
//! The file says neither by which pattern a text is cut into pieces nor what its special tokens are. Both are in
//! the code that a folder comes with, which is not run; so only the vocabularies of known code are read. The
//! tokens equal tiktoken's. Kimi's own code also cuts texts of more than 400,000 characters, and runs of more than
//! 25,000 without a blank, before tiktoken sees them, to spare a limit of it; that is not done here.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper, PreTokenizerWrapper};

use super::class::Class;
use super::merges::{Joiner, MAX_STEPS, TooMuchWork};
use super::parts::{Inner, TextModel};
use super::settings::TokenizerSettings;
use super::token_bytes::byte_characters;
use super::{added, guarded};
use crate::model_dir::ModelError;

/// The pattern of Moonshot's tokenizers: runs of Han characters; words of all other letters with a character before
/// them and an English contraction after them; up to three digits; punctuation; ends of lines; blanks.
const KIMI_PATTERN: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// Ids after those of the file that Moonshot's tokenizers have for special tokens.
const KIMI_RESERVED: u32 = 256;

/// The longest published tokens are 128 blanks.
const MAX_TOKEN_BYTES: usize = 1024;

/// Whether a file holds what this module reads, whatever it is called: the first token of every such vocabulary is
/// a single byte.
pub(super) fn looks_like_one(bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    bytes.is_ascii() && matches!(entry(first), Ok((token, _)) if token.len() == 1)
}

/// Makes a tokenizer of the file's content.
///
/// # Errors
/// When the file is no such vocabulary, or the folder's settings name code that is not known here.
pub(super) fn open(
    file: &Path,
    bytes: &[u8],
    settings: &TokenizerSettings,
) -> Result<Inner, ModelError> {
    expect_kimi(settings)?;
    let tokens = read(bytes).map_err(|problem| ModelError::malformed(file, problem))?;
    let mut inner = build(&tokens).map_err(|problem| ModelError::malformed(file, problem))?;
    add_reserved(&mut inner, tokens.len(), settings)?;
    Ok(inner)
}

fn expect_kimi(settings: &TokenizerSettings) -> Result<(), ModelError> {
    if settings.class() == Class::Kimi {
        return Ok(());
    }
    let section = settings.section();
    let key = if section.value("auto_map").is_some() { "auto_map" } else { "tokenizer_class" };
    let problem = "does not name Moonshot's TikTokenTokenizer, the only one whose pattern for a tiktoken vocabulary is \
                   known here; put a tokenizer.json into the folder, made with transformers' save_pretrained";
    Err(section.problem(key, problem))
}

/// The bytes of every token, by rank.
fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut entries = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if !line.is_empty() {
            let entry = entry(line).map_err(|problem| format!("line {} {problem}", index + 1))?;
            entries.push(entry);
        }
    }
    entries.sort_by_key(|(_, rank)| *rank);
    let mut known = HashSet::new();
    for (expected, (token, rank)) in entries.iter().enumerate() {
        if !known.insert(token.as_slice()) {
            return Err(format!("holds the token of rank {rank} twice"));
        }
        if *rank as usize != expected {
            let what = if (*rank as usize) < expected { "twice" } else { "after a gap" };
            return Err(format!("holds the rank {rank} {what}: ranks are ids, one for each token"));
        }
    }
    let missing = (0..=u8::MAX).find(|byte| !known.contains([*byte].as_slice()));
    if let Some(missing) = missing {
        return Err(format!("has no token for the byte 0x{missing:02X}: it is cut short"));
    }
    Ok(entries.into_iter().map(|(token, _)| token).collect())
}

/// A token and its rank.
fn entry(line: &[u8]) -> Result<(Vec<u8>, u32), &'static str> {
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let (Some(token), Some(rank), None) = (fields.next(), fields.next(), fields.next()) else {
        return Err("is not a token in base64 and a rank");
    };
    // Before anything is made of it.
    if token.len() > MAX_TOKEN_BYTES.div_ceil(3) * 4 {
        return Err("holds a token of more than 1024 bytes");
    }
    let token = from_base64(token).ok_or("holds a token that is not in base64")?;
    let rank = str::from_utf8(rank).ok().and_then(|rank| rank.parse().ok());
    Ok((token, rank.ok_or("holds a rank that is no number")?))
}

/// The standard alphabet, padded; at least one byte.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let (groups, rest) = text.as_chunks::<4>();
    let (last, _) = groups.split_last()?;
    if !rest.is_empty() {
        return None;
    }
    let padding = last.iter().rev().take_while(|character| **character == b'=').count();
    let digits = text.get(..text.len() - padding)?;
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(groups.len() * 3);
    for group in digits.chunks(4) {
        let mut bits = 0_u32;
        for index in 0..4 {
            let digit = group.get(index).map_or(Some(0), |digit| digit_of(*digit))?;
            bits = bits << 6 | digit;
        }
        let [_, whole @ ..] = bits.to_be_bytes();
        bytes.extend(whole.iter().take(group.len() * 6 / 8));
    }
    Some(bytes)
}

fn digit_of(character: u8) -> Option<u32> {
    let digit = match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(digit.into())
}

fn build(tokens: &[Vec<u8>]) -> Result<Inner, String> {
    let characters = byte_characters();
    let name = |token: &[u8]| -> String {
        token.iter().filter_map(|byte| characters.get(usize::from(*byte))).collect()
    };
    let ranks: HashMap<&[u8], u32> =
        (0..).zip(tokens).map(|(rank, token)| (token.as_slice(), rank)).collect();
    let mut joiner = Joiner::new(|bytes: &[u8]| ranks.get(bytes).copied(), MAX_STEPS);
    let mut merges = Merges::new();
    for token in tokens {
        let at = joiner
            .last_join(token, 0..token.len())
            .map_err(|TooMuchWork| "takes too long to read: its tokens are no real ones")?;
        if let Some((first, last)) = at.and_then(|at| token.split_at_checked(at)) {
            merges.push((name(first), name(last)));
        }
    }
    let vocab: Vocab = (0..).zip(tokens).map(|(rank, token)| (name(token), rank)).collect();
    let parts = || -> serde_json::Result<(PreTokenizerWrapper, DecoderWrapper)> {
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false,
                                "trim_offsets": false, "use_regex": false});
        let split = json!({"type": "Split", "pattern": {"Regex": KIMI_PATTERN},
                           "behavior": "Isolated", "invert": false});
        let split = json!({"type": "Sequence", "pretokenizers": [split, byte_level]});
        Ok((serde_json::from_value(split)?, serde_json::from_value(byte_level)?))
    };
    let (split, decoder) = parts().map_err(|error| error.to_string())?;
    // A piece that is a token is that token, even if no merges lead to it.
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(true);
    let model = guarded(|| model.build()).map_err(|error| error.to_string())?;
    let mut inner = Inner::new(TextModel::Library(Box::new(ModelWrapper::BPE(model))));
    inner.with_pre_tokenizer(Some(split));
    inner.with_decoder(Some(decoder));
    Ok(inner)
}

/// Gives every reserved id its special token: the one that the settings have, or one named after the id, as the
/// published code does.
fn add_reserved(
    inner: &mut Inner,
    count: usize,
    settings: &TokenizerSettings,
) -> Result<(), ModelError> {
    let named: HashMap<u32, AddedToken> =
        added::declared(settings)?.into_iter().map(|(id, _, token)| (id, token)).collect();
    // There are fewer tokens than bytes in the file.
    let first = u32::try_from(count).unwrap_or(u32::MAX);
    let reserved = first..first.saturating_add(KIMI_RESERVED);
    let token_of = |id: u32| {
        let named = named.get(&id).cloned();
        named.unwrap_or_else(|| AddedToken::from(format!("<|reserved_token_{id}|>"), true))
    };
    let section = settings.section();
    let failed = |problem: String| section.problem("added_tokens_decoder", problem);
    guarded(|| inner.add_tokens(reserved.clone().map(token_of)))
        .map_err(|error| failed(error.to_string()))?;
    for id in reserved {
        let content = token_of(id).content;
        if inner.token_to_id(&content) != Some(id) {
            return Err(failed(format!("has `{content}` for {id}, which is another token too")));
        }
    }
    Ok(())
}
