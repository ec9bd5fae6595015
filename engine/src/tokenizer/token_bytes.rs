//! Which bytes a single token stands for, whatever stands before and after it.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;

use super::parts::Inner;

/// How a tokenizer writes bytes as characters in the names of its tokens.
#[derive(Debug)]
pub(super) enum ByteAlphabet {
    /// Every byte has a character of its own (GPT-2's byte-level BPE).
    ByteLevel(HashMap<char, u8>),
    /// Text, with `▁` for a space and `<0x0A>` for a byte without a token (SentencePiece).
    SentencePiece,
}

impl ByteAlphabet {
    pub(super) fn of(tokenizer: &Inner) -> Self {
        match tokenizer.get_decoder() {
            Some(decoder) if is_byte_level(decoder) => Self::ByteLevel(byte_level()),
            _ => Self::SentencePiece,
        }
    }

    pub(super) fn bytes_of(&self, tokenizer: &Inner, id: u32) -> Vec<u8> {
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder().get(&id);
        if let Some(added) = added {
            let is_piece = matches!(self, Self::SentencePiece) && !added.special;
            let content = &added.content;
            return if is_piece { content.replace('▁', " ") } else { content.clone() }.into_bytes();
        }
        let Some(name) = tokenizer.id_to_token(id) else {
            return Vec::new();
        };
        match self {
            Self::ByteLevel(bytes) => name
                .chars()
                .map(|character| bytes.get(&character).copied())
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| name.into_bytes()),
            Self::SentencePiece => match fallback_byte(&name) {
                Some(byte) => vec![byte],
                None => name.replace('▁', " ").into_bytes(),
            },
        }
    }
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// `0x0A` for `<0x0A>`.
pub(super) fn fallback_byte(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    let two_digits = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    two_digits.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's table: bytes that print stand for themselves, the others for the characters from
/// U+0100 on, in order.
fn byte_level() -> HashMap<char, u8> {
    byte_characters().into_iter().zip(0..=u8::MAX).collect()
}

/// The same, by byte.
pub(super) fn byte_characters() -> [char; 256] {
    let prints = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    let mut characters = ['\0'; 256];
    for (byte, character) in (0..=u8::MAX).zip(&mut characters) {
        let own = prints(byte).then(|| char::from(byte));
        // There are fewer others than characters from there on.
        *character = own.or_else(|| others.next()).unwrap_or_default();
    }
    characters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let table = byte_level();
        assert_eq!(table.len(), 256);
        assert_eq!(table[&'Ġ'], b' ');
        assert_eq!(table[&'Ċ'], b'\n');
        assert_eq!(table[&'a'], b'a');
        assert_eq!(table[&'Ń'], 0xad);
    }

    #[test]
    fn fallback_bytes() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xZZ>"), None);
        assert_eq!(fallback_byte("<0xé>"), None);
        assert_eq!(fallback_byte("<0x+1>"), None);
    }
}
