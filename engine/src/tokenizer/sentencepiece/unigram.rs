//! sentencepiece's Unigram: of all ways to cut a text into pieces, the one with the highest sum of scores.

use std::collections::HashMap;
use std::sync::Arc;

use tokenizers::Token;

use super::proto::Kind;
use super::{Entry, Pieces};

/// How much worse than the worst piece a character is that no piece has; sentencepiece's number.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The model. A copy shares what it holds.
#[derive(Debug, Clone)]
pub(in crate::tokenizer) struct Unigram(Arc<Vocabulary>);

#[derive(Debug)]
struct Vocabulary {
    texts: Vec<String>,
    scores: Vec<f32>,
    ids: HashMap<String, u32>,
    /// The pieces that texts are cut into, as a trie: the node that a byte leads to.
    children: HashMap<(u32, u8), u32>,
    /// The piece that ends at a node.
    ends: Vec<Option<u32>>,
    unknown: u32,
    unknown_score: f32,
    /// The pieces of single bytes, where characters that no piece has are cut into these.
    bytes: Option<Vec<u32>>,
}

/// The best way to cut a text up to some place, all but its last piece left aside.
#[derive(Debug, Clone, Copy)]
struct Best {
    score: f32,
    start: usize,
    id: u32,
}

impl Unigram {
    /// Of a vocabulary; `None` if it has no pieces of texts.
    pub(super) fn new(pieces: &Pieces, byte_fallback: bool) -> Option<Self> {
        let normal = |piece: &&Entry| piece.kind == Kind::Normal;
        let scores = pieces.all.iter().filter(normal).map(|piece| piece.score);
        let lowest = scores.reduce(f32::min)?;
        let mut vocabulary = Vocabulary {
            texts: pieces.all.iter().map(|piece| piece.text.clone()).collect(),
            scores: pieces.all.iter().map(|piece| piece.score).collect(),
            ids: (0..).zip(&pieces.all).map(|(id, piece)| (piece.text.clone(), id)).collect(),
            children: HashMap::new(),
            ends: vec![None],
            unknown: pieces.unknown,
            unknown_score: lowest - UNKNOWN_PENALTY,
            bytes: None,
        };
        for (id, text) in pieces.of_kind(Kind::Normal) {
            vocabulary.insert(id, text);
        }
        if byte_fallback {
            let name = |byte: u8| format!("<0x{byte:02X}>");
            let ids = (0..=u8::MAX).map(|byte| vocabulary.ids.get(&name(byte)).copied());
            vocabulary.bytes = ids.collect();
        }
        Some(Self(Arc::new(vocabulary)))
    }

    /// Cuts a text that was normalized.
    pub(in crate::tokenizer) fn tokenize(&self, text: &str) -> Vec<Token> {
        let Self(vocabulary) = self;
        let mut tokens: Vec<Token> = Vec::new();
        for (start, end, id) in vocabulary.cut(text) {
            let piece = text.get(start..end).unwrap_or_default();
            match &vocabulary.bytes {
                Some(bytes) if id == vocabulary.unknown => {
                    let ids =
                        piece.bytes().filter_map(|byte| bytes.get(usize::from(byte)).copied());
                    let name = |id| self.token_of(id).unwrap_or_default().to_owned();
                    tokens.extend(ids.map(|id| Token::new(id, name(id), (start, end))));
                }
                // Unknown characters in a row are one token.
                None if id == vocabulary.unknown
                    && tokens.last().is_some_and(|last| last.id == id) =>
                {
                    if let Some(last) = tokens.last_mut() {
                        last.value.push_str(piece);
                        last.offsets.1 = end;
                    }
                }
                _ => tokens.push(Token::new(id, piece.to_owned(), (start, end))),
            }
        }
        tokens
    }

    pub(in crate::tokenizer) fn id_of(&self, text: &str) -> Option<u32> {
        self.0.ids.get(text).copied()
    }

    pub(in crate::tokenizer) fn token_of(&self, id: u32) -> Option<&str> {
        self.0.texts.get(id as usize).map(String::as_str)
    }

    pub(in crate::tokenizer) fn vocabulary(&self) -> &HashMap<String, u32> {
        &self.0.ids
    }
}

impl Vocabulary {
    fn insert(&mut self, id: u32, text: &str) {
        let mut node = 0;
        for byte in text.bytes() {
            // Nodes are bounded by the bytes of all pieces.
            let next = u32::try_from(self.ends.len()).unwrap_or(u32::MAX);
            node = *self.children.entry((node, byte)).or_insert(next);
            if node == next {
                self.ends.push(None);
            }
        }
        if let Some(end) = self.ends.get_mut(node as usize) {
            *end = Some(id);
        }
    }

    /// Pieces with where they begin and end. Sums have 32 bits and are made from the left, and of two equal ones the
    /// first found counts, as in sentencepiece: it decides how runs of one character are cut.
    fn cut(&self, text: &str) -> Vec<(usize, usize, u32)> {
        let mut best: Vec<Option<Best>> = vec![None; text.len() + 1];
        for (start, character) in text.char_indices() {
            // Every character can be cut off, so there is a way to every one.
            let before = best.get(start).copied().flatten().map_or(0.0, |best| best.score);
            let mut offer = |end: usize, score: f32, id: u32| {
                let score = score + before;
                if let Some(best) = best.get_mut(end)
                    && best.is_none_or(|best| score > best.score)
                {
                    *best = Some(Best { score, start, id });
                }
            };
            let mut is_known = false;
            let mut node = 0;
            for (end, byte) in (start + 1..).zip(text.bytes().skip(start)) {
                let Some(next) = self.children.get(&(node, byte)) else {
                    break;
                };
                node = *next;
                if let Some(id) = self.ends.get(node as usize).copied().flatten() {
                    is_known |= end == start + character.len_utf8();
                    offer(end, self.scores.get(id as usize).copied().unwrap_or_default(), id);
                }
            }
            if !is_known {
                offer(start + character.len_utf8(), self.unknown_score, self.unknown);
            }
        }
        let mut pieces = Vec::new();
        let mut end = text.len();
        while let Some(last) = best.get(end).copied().flatten() {
            pieces.push((last.start, end, last.id));
            end = last.start;
        }
        pieces.reverse();
        pieces
    }
}
