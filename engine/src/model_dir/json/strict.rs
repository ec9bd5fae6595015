//! What the standard of JSON leaves open or forbids, and files hold nevertheless: names that come
//! twice, of which one reader takes the first and another the last, and numbers that Python writes
//! as bare words.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A value in which no object has a name twice.
pub(super) struct Strict(pub(super) Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut seen = HashSet::new();
        let mut map = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("`{name}` comes twice")));
            }
            let Strict(value) = access.next_value()?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

/// What is wrong, if it is that a number is written as Python's `json` does it and JSON does not:
/// `NaN`, `Infinity` or `-Infinity`.
pub(super) fn foreign_number(bytes: &[u8], error: &serde_json::Error) -> Option<String> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines.take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    // The parser stops at the first letter, or at the one behind a minus.
    let at = before + error.column();
    let is_word = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'-';
    let start = bytes.get(..at)?.iter().rposition(|byte| !is_word(byte)).map_or(0, |end| end + 1);
    let word = bytes.get(start..)?.split(|byte| !is_word(byte)).next()?;
    if ![b"NaN".as_slice(), b"Infinity", b"-Infinity"].contains(&word) {
        return None;
    }
    let word = std::str::from_utf8(word).ok()?;
    let line = error.line();
    let place = key_before(bytes.get(..start)?)
        .map_or_else(|| format!("line {line}"), |key| format!("`{key}` in line {line}"));
    Some(format!("{place} is {word}; expected a number"))
}

/// The key whose value begins behind `text`.
fn key_before(text: &[u8]) -> Option<&str> {
    let quoted = text.trim_ascii_end().strip_suffix(b":")?.trim_ascii_end().strip_suffix(b"\"")?;
    let key = quoted.get(quoted.iter().rposition(|byte| *byte == b'"')? + 1..)?;
    std::str::from_utf8(key).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> Option<String> {
        let error = serde_json::from_str::<Strict>(text).err()?;
        foreign_number(text.as_bytes(), &error)
    }

    #[test]
    fn words_for_numbers_are_named_with_their_key() {
        let expected =
            |place: &str, word: &str| Some(format!("{place} is {word}; expected a number"));
        assert_eq!(problem(r#"{"a": 1, "eps": NaN}"#), expected("`eps` in line 1", "NaN"));
        assert_eq!(problem("{\n\"a\":\n -Infinity\n}"), expected("`a` in line 3", "-Infinity"));
        assert_eq!(problem("[1, Infinity]"), expected("line 1", "Infinity"));
        assert_eq!(problem("NaN"), expected("line 1", "NaN"));
        for other in ["{", "[nul]", "{\"a\": Nan}", "", "-", "\n", "[1"] {
            assert_eq!(problem(other), None, "{other}");
        }
    }

    #[test]
    fn values_are_as_serde_json_has_them() {
        let text = r#"{"b": [null, true, -1, 18446744073709551615, 0.5, "x\n"], "a": {"": {}}}"#;
        let Strict(strict) = serde_json::from_str(text).unwrap();
        assert_eq!(strict, serde_json::from_str::<Value>(text).unwrap());
        let twice = serde_json::from_str::<Strict>(r#"[{"a": 1, "a": 1}]"#).err().unwrap();
        assert!(twice.to_string().starts_with("`a` comes twice"), "{twice}");
        assert!(serde_json::from_str::<Strict>(&"[".repeat(200)).is_err());
    }
}
