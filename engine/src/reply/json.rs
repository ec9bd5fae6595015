//! JSON that arrives byte by byte, and pieces of JSON as they are spelled.
//!
//! Arguments go to clients as the model wrote them: with its order of keys, its numbers and its spaces.
//! So objects are cut out of the text, and `serde_json` only says whether the piece is valid.

use serde_json::Value;

/// Follows one object or array from its opening bracket on. Text before the bracket is passed over.
#[derive(Debug, Clone, Default)]
pub(super) struct JsonScan {
    expects: Expects,
    /// The open brackets; `true` for an object.
    open: Vec<bool>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Expects {
    /// The first bracket.
    #[default]
    Beginning,
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
    /// More of a number, `true`, `false` or `null`.
    Scalar,
    /// More of a string; `key` if it is a key.
    Text {
        key: bool,
    },
    /// What a backslash stands before.
    Escaped {
        key: bool,
    },
    /// Nothing: this is no JSON.
    Nothing,
}

impl JsonScan {
    /// Takes the next byte. `true` when it closes the first bracket; the next byte then begins anew.
    pub(super) fn feed(&mut self, byte: u8) -> bool {
        if self.expects == Expects::Scalar {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.') {
                return false;
            }
            self.expects = Expects::CommaOrEnd;
        }
        let is_space = matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        self.expects = match (self.expects, byte) {
            (Expects::Beginning, b'{' | b'[')
            | (Expects::Value | Expects::ValueOrEnd, b'{' | b'[') => {
                self.open.push(byte == b'{');
                if byte == b'{' { Expects::KeyOrEnd } else { Expects::ValueOrEnd }
            }
            (Expects::Beginning, _) => Expects::Beginning,
            (Expects::Text { key }, b'\\') => Expects::Escaped { key },
            (Expects::Text { key: true }, b'"') => Expects::Colon,
            (Expects::Text { key: false }, b'"') => Expects::CommaOrEnd,
            (Expects::Text { .. } | Expects::Escaped { .. }, 0..0x20) | (Expects::Nothing, _) => {
                Expects::Nothing
            }
            (Expects::Text { key } | Expects::Escaped { key }, _) => Expects::Text { key },
            (expects, _) if is_space => expects,
            (Expects::Value | Expects::ValueOrEnd, b'"') => Expects::Text { key: false },
            (Expects::Key | Expects::KeyOrEnd, b'"') => Expects::Text { key: true },
            (Expects::Value | Expects::ValueOrEnd, b'-' | b'0'..=b'9' | b'a'..=b'z') => {
                Expects::Scalar
            }
            (Expects::Colon, b':') => Expects::Value,
            (Expects::CommaOrEnd, b',') => {
                if self.open.last() == Some(&true) {
                    Expects::Key
                } else {
                    Expects::Value
                }
            }
            (Expects::CommaOrEnd | Expects::KeyOrEnd, b'}') if self.open.last() == Some(&true) => {
                return self.close();
            }
            (Expects::CommaOrEnd | Expects::ValueOrEnd, b']')
                if self.open.last() == Some(&false) =>
            {
                return self.close();
            }
            _ => Expects::Nothing,
        };
        false
    }

    /// Whether the text ends within a string, where nothing is a marker.
    pub(super) const fn in_string(&self) -> bool {
        matches!(self.expects, Expects::Text { .. } | Expects::Escaped { .. })
    }

    /// Whether it waits for the first bracket.
    pub(super) fn is_idle(&self) -> bool {
        self.expects == Expects::Beginning
    }

    fn close(&mut self) -> bool {
        self.open.pop();
        let done = self.open.is_empty();
        self.expects = if done { Expects::Beginning } else { Expects::CommaOrEnd };
        done
    }
}

/// The JSON value that `text` begins with, as it is spelled, and what comes after it. Whether it is valid
/// is left open.
pub(super) fn split_value(text: &str) -> Option<(&str, &str)> {
    let end = match text.bytes().next()? {
        b'{' | b'[' => {
            let mut scan = JsonScan::default();
            text.bytes().position(|byte| scan.feed(byte))? + 1
        }
        b'"' => {
            let mut escaped = false;
            let closes = |byte| {
                let closes = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                closes
            };
            text.bytes().skip(1).position(closes)? + 2
        }
        _ => text.find([',', '}', ']', ' ', '\n', '\r', '\t']).unwrap_or(text.len()),
    };
    (end > 0).then(|| text.split_at_checked(end))?
}

/// The keys of an object with their values as they are spelled.
pub(super) fn entries(text: &str) -> Option<Vec<(String, &str)>> {
    let mut entries = Vec::new();
    let mut rest = trim_start(text.strip_prefix('{')?);
    if let Some(rest) = rest.strip_prefix('}') {
        return rest.is_empty().then_some(entries);
    }
    loop {
        let (key, after) = split_value(rest)?;
        let value = trim_start(trim_start(after).strip_prefix(':')?);
        let (value, after) = split_value(value)?;
        entries.push((serde_json::from_str(key).ok()?, value));
        let after = trim_start(after);
        match after.strip_prefix(',') {
            Some(next) => rest = trim_start(next),
            None => return (after == "}").then_some(entries),
        }
    }
}

/// The value, if the text is valid JSON.
pub(super) fn parse(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

/// A text as JSON string.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// What JSON takes for a space, and this module with it.
pub(super) const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\r' | '\t')
}

/// Without spaces at the beginning.
pub(super) fn trim_start(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// Without spaces at both ends.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_keep_their_spelling() {
        let text = r#"{"a" : 1.50, "b":{"x\"}": [1e3, "]"]}, "a": null} rest"#;
        let (object, rest) = split_value(text).unwrap();
        assert_eq!(rest, " rest");
        let entries = entries(object).unwrap();
        let values: Vec<_> = entries.iter().map(|(key, raw)| (key.as_str(), *raw)).collect();
        assert_eq!(values, [("a", "1.50"), ("b", r#"{"x\"}": [1e3, "]"]}"#), ("a", "null")]);
        assert_eq!(split_value(""), None);
        assert_eq!(split_value(",x"), None);
        assert_eq!(split_value(r#""a\"b"c"#), Some((r#""a\"b""#, "c")));
    }

    #[test]
    fn a_broken_text_is_in_no_string() {
        let broken = |text: &str| {
            let mut scan = JsonScan::default();
            text.bytes().for_each(|byte| assert!(!scan.feed(byte)));
            scan.expects == Expects::Nothing && !scan.in_string()
        };
        for text in ["{x", "{\"a\"\"", "[1 2", "{\"a\n", "[}", "{\"a\":1]", "{,", "[\"\\\n"] {
            assert!(broken(text), "{text}");
        }
        assert!(!broken("{\"a</tool_call>"));
    }

    proptest! {
        #[test]
        fn every_valid_container_is_cut_out_whole(
            text in r#"[\[{]([\[\]{}",:1a\\ ]|"a":|"a"|\{"a":|\]|\}){0,12}"#,
        ) {
            let cut = split_value(&text).map_or("", |(value, _)| value);
            let mut values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
            if let Some(Ok(_)) = values.next() {
                prop_assert_eq!(cut, &text[..values.byte_offset()]);
                if text.starts_with('{') {
                    prop_assert!(entries(cut).is_some());
                }
            }
        }
    }
}
