//! Text that a peer sent, made fit to be shown and logged.

/// At most this much of a peer's words is shown; an honest reason is one sentence.
const SHOWN: usize = 400;

/// Lossy UTF-8 without control characters (a log line stays one line), cut where it is too long.
pub(crate) fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean = text.chars().map(|shown| if shown.is_control() { ' ' } else { shown });
    let mut words: String = clean.take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bounded_line() {
        assert_eq!(readable(b"a\nb\x1b[31m\xff"), "a b [31m\u{fffd}");
        assert_eq!(readable(&[b'x'; 1000]).chars().count(), SHOWN + 1);
    }
}
