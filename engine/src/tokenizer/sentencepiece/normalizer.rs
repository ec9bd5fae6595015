//! What sentencepiece does to a text before it looks for pieces.

use std::collections::{BTreeSet, HashSet};

use tokenizers::NormalizedString;

use super::charsmap::Charsmap;

/// Stands for a space in pieces.
pub(super) const SPACE: char = '▁';

/// Replaces characters, removes spaces that do not count, puts one before the text, and writes spaces as `▁`.
#[derive(Debug, Clone)]
pub(in crate::tokenizer) struct Normalizer {
    pub(super) prefix: Prefix,
    pub(super) removes_spaces: bool,
    pub(super) charsmap: Option<Charsmap>,
    pub(super) kept: Kept,
}

/// Before which texts a space is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    None,
    /// Before the beginning of a text.
    First,
    /// There, and after every special token.
    Every,
}

/// User-defined pieces, in which no character is replaced.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    pieces: HashSet<String>,
    lengths: BTreeSet<usize>,
}

impl Kept {
    pub(super) fn new(pieces: impl Iterator<Item = String>) -> Self {
        let pieces: HashSet<String> = pieces.collect();
        let lengths = pieces.iter().map(String::len).collect();
        Self { pieces, lengths }
    }

    /// The longest piece that a text begins with.
    fn longest<'a>(&self, text: &'a str) -> Option<&'a str> {
        let beginnings = self.lengths.iter().rev().filter_map(|length| text.get(..*length));
        beginnings.into_iter().find(|beginning| self.pieces.contains(*beginning))
    }
}

impl Normalizer {
    /// Normalizes the text between two special tokens. Which characters came of which is not kept: nobody asks.
    pub(in crate::tokenizer) fn normalize(&self, text: &mut NormalizedString) {
        let is_first = text.offsets_original().0 == 0;
        let normalized = self.normalized(text.get(), is_first);
        if normalized.is_empty() {
            text.clear();
            return;
        }
        let before = text.get().chars().count().cast_signed();
        // The first character takes the place of all that there were, the others are new.
        let changes = std::iter::once(1 - before).chain(std::iter::repeat(1));
        text.transform(normalized.chars().zip(changes), 0);
    }

    /// By how much a text may become shorter, blanks left aside; `None` when nobody knows.
    pub(in crate::tokenizer) fn shortening(&self) -> Option<usize> {
        (!self.removes_spaces && self.charsmap.is_none()).then_some(1)
    }

    fn normalized(&self, text: &str, is_first: bool) -> String {
        let mut rest = text;
        if self.removes_spaces {
            while let (" ", length) = self.chunk(rest) {
                rest = rest.get(length..).unwrap_or_default();
            }
        }
        let mut normalized = String::with_capacity(rest.len());
        if rest.is_empty() {
            return normalized;
        }
        if self.prefix == Prefix::Every || (self.prefix == Prefix::First && is_first) {
            normalized.push(SPACE);
        }
        let mut follows_space = self.removes_spaces;
        while !rest.is_empty() {
            let (mut chunk, length) = self.chunk(rest);
            if follows_space {
                chunk = chunk.trim_start_matches(' ');
            }
            normalized.extend(chunk.chars().map(|c| if c == ' ' { SPACE } else { c }));
            if !chunk.is_empty() {
                follows_space = self.removes_spaces && chunk.ends_with(' ');
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        if self.removes_spaces {
            let length = normalized.trim_end_matches(SPACE).len();
            normalized.truncate(length);
        }
        normalized
    }

    /// What the beginning of a text becomes, and how many bytes of the text that is. Empty for an empty text only,
    /// or where characters are replaced by nothing.
    fn chunk<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        let character = || {
            let length = text.chars().next().map_or(0, char::len_utf8);
            (text.get(..length).unwrap_or_default(), length)
        };
        let Some(charsmap) = &self.charsmap else {
            // Pieces that are kept differ from others only in what is replaced.
            return character();
        };
        if let Some(kept) = self.kept.longest(text) {
            return (kept, kept.len());
        }
        charsmap.longest(text).unwrap_or_else(character)
    }
}
