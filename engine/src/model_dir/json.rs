//! Reading the JSON files of a model folder without trusting them: bounded in size and depth, and
//! every mistake names the file and the key.

mod strict;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::{Map, Value};

use self::strict::{Strict, foreign_number};

use super::ModelError;
use super::error::shown;

/// Reads a file of text that must not be longer than `limit` bytes, without a byte order mark.
pub(crate) fn read_bounded(file: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    let io = |source| ModelError::io(file, source);
    // A pipe of that name would never end.
    if !std::fs::metadata(file).map_err(io)?.is_file() {
        return Err(ModelError::malformed(file, "is not a file"));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells "too long" apart from "just fits".
    File::open(file).map_err(io)?.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        let problem = format!("is longer than {limit} bytes");
        return Err(ModelError::malformed(file, problem));
    }
    // The mark that Windows puts before texts is no part of them.
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    Ok(bytes)
}

/// Parses an object, in which no name may come twice. Depth is bounded by `serde_json`, which
/// refuses more than 128 levels.
pub(crate) fn parse_object(file: &Path, bytes: &[u8]) -> Result<Map<String, Value>, ModelError> {
    match serde_json::from_slice(bytes) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(Strict(other)) => Err(ModelError::malformed(file, format!("is {}", brief(&other)))),
        Err(error) => {
            let problem = foreign_number(bytes, &error).unwrap_or_else(|| error.to_string());
            Err(ModelError::malformed(file, problem))
        }
    }
}

/// One object of a JSON file, with its place in it for messages.
///
/// It remembers which keys were asked for, so that the others can be told: a key that nobody asked
/// for may change what the file means.
#[derive(Clone)]
pub(crate) struct Section<'a> {
    file: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
    /// The keys that were asked for, with those of the objects around them; of the whole file.
    asked: Rc<RefCell<BTreeSet<String>>>,
    /// Those that are silent where readers of these files do not agree what that means.
    doubts: Rc<RefCell<BTreeSet<String>>>,
}

impl<'a> Section<'a> {
    pub(crate) fn root(file: &'a Path, map: &'a Map<String, Value>) -> Self {
        let (asked, doubts) = (Rc::default(), Rc::default());
        Self { file, prefix: String::new(), map, asked, doubts }
    }

    /// The keys of this object that nobody has asked for, with what they hold; `null` is nothing.
    pub(crate) fn never_asked(&self) -> Vec<(&'a str, &'a Value)> {
        let asked = self.asked.borrow();
        let is_new = |key: &str| !asked.contains(&format!("{}{key}", self.prefix));
        self.map
            .iter()
            .filter(|(key, value)| !value.is_null() && is_new(key))
            .map(|(key, value)| (key.as_str(), value))
            .collect()
    }

    /// Notes that `key` has to be there, if it is not: mlx-lm and transformers have other defaults.
    pub(crate) fn doubt_silence(&self, key: &str) {
        if self.value(key).is_none() {
            self.doubts.borrow_mut().insert(format!("{}{key}", self.prefix));
        }
    }

    /// Refuses a file that is silent where that was doubted.
    pub(crate) fn expect_no_doubts(&self) -> Result<(), ModelError> {
        match self.doubts.borrow().first() {
            None => Ok(()),
            Some(key) => Err(ModelError::Config {
                file: self.file.to_owned(),
                key: shown(key.clone()),
                problem: "is missing, and mlx-lm and transformers have other defaults".to_owned(),
            }),
        }
    }

    /// The key as messages name it: with those of the objects around it.
    pub(crate) fn path_of(&self, key: &str) -> String {
        shown(format!("{}{key}", self.prefix))
    }

    /// An error about `key` of this object.
    pub(crate) fn problem(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Config {
            file: self.file.to_owned(),
            key: self.path_of(key),
            problem: shown(problem.into()),
        }
    }

    /// The value of `key`; `null` counts as absent, as it does for the libraries that write these
    /// files.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(format!("{}{key}", self.prefix));
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the file says nothing of `key`, not even `null`. Where an author's default is not
    /// "none", `null` and silence are two things.
    pub(crate) fn is_silent(&self, key: &str) -> bool {
        !self.map.contains_key(key)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    pub(crate) fn section(&self, key: &str) -> Result<Option<Section<'a>>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Ok(Some(Section { prefix, map, ..self.clone() }))
            }
            Some(other) => Err(self.problem(key, format!("is {}, not an object", brief(other)))),
        }
    }

    pub(crate) fn optional_count(
        &self,
        key: &str,
        allowed: RangeInclusive<u32>,
    ) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let count = value.as_u64().and_then(|n| u32::try_from(n).ok());
        match count {
            Some(count) if allowed.contains(&count) => Ok(Some(count)),
            _ => {
                let (low, high) = (allowed.start(), allowed.end());
                let found = brief(value);
                Err(self
                    .problem(key, format!("is {found}; expected a number from {low} to {high}")))
            }
        }
    }

    pub(crate) fn count(&self, key: &str, allowed: RangeInclusive<u32>) -> Result<u32, ModelError> {
        self.optional_count(key, allowed)?.ok_or_else(|| self.problem(key, "is missing"))
    }

    pub(crate) fn optional_number(
        &self,
        key: &str,
        allowed: RangeInclusive<f32>,
    ) -> Result<Option<f32>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match as_f32(value) {
            Some(number) if allowed.contains(&number) => Ok(Some(number)),
            _ => {
                let (low, high) = (allowed.start(), allowed.end());
                let found = brief(value);
                Err(self
                    .problem(key, format!("is {found}; expected a number from {low} to {high}")))
            }
        }
    }

    pub(crate) fn number(
        &self,
        key: &str,
        allowed: RangeInclusive<f32>,
    ) -> Result<f32, ModelError> {
        self.optional_number(key, allowed)?.ok_or_else(|| self.problem(key, "is missing"))
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                Err(self.problem(key, format!("is {}; expected true or false", brief(other))))
            }
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.problem(key, format!("is {}; expected a text", brief(other)))),
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        self.list(key, "texts", Value::as_str)
    }

    /// A list of numbers, each within `allowed`.
    pub(crate) fn numbers(
        &self,
        key: &str,
        allowed: RangeInclusive<f32>,
    ) -> Result<Vec<f32>, ModelError> {
        let expected = format!("numbers from {} to {}", allowed.start(), allowed.end());
        let number = |value: &Value| as_f32(value).filter(|number| allowed.contains(number));
        self.list(key, &expected, number)?.ok_or_else(|| self.problem(key, "is missing"))
    }

    /// A second key for what is known already: has to say the same, if it says anything.
    pub(crate) fn agrees(&self, key: &str, known: u32, as_what: &str) -> Result<(), ModelError> {
        match self.value(key) {
            Some(value) if value.as_u64() != Some(u64::from(known)) => {
                let problem = format!("is {}, but `{as_what}` says {known}", brief(value));
                Err(self.problem(key, problem))
            }
            _ => Ok(()),
        }
    }

    /// A list of counts; absent is empty.
    pub(crate) fn counts(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let count = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        Ok(self.list(key, "counts", count)?.unwrap_or_default())
    }

    fn list<T>(
        &self,
        key: &str,
        expected: &str,
        entry: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let problem = |value| {
            self.problem(key, format!("holds {}; expected a list of {expected}", brief(value)))
        };
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(list)) => {
                let entries = list.iter().map(|value| entry(value).ok_or_else(|| problem(value)));
                entries.collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(problem(other)),
        }
    }

    /// Ids given as one number or a list of numbers; absent is empty.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| {
            value.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| {
                self.problem(key, format!("is {}; expected a token id or a list", brief(value)))
            })
        };
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(one) => Ok(vec![id(one)?]),
        }
    }
}

/// A file of the folder by its name there. Names come from JSON and must not lead elsewhere.
pub(crate) fn plain_file(folder: &Path, name: &str) -> Option<PathBuf> {
    let plain = !name.is_empty()
        && !name.starts_with('.')
        && !name.contains(['/', '\\', '\0', ':'])
        && Path::new(name).components().count() == 1;
    plain.then(|| folder.join(name))
}

fn as_f32(value: &Value) -> Option<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "f32 is all that the models use")]
    value.as_f64().map(|number| number as f32)
}

/// A value for a message: short whatever a hostile file holds.
pub(crate) fn brief(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(text) if text.chars().count() > 40 => "a long text".to_owned(),
        other => other.to_string(),
    }
}
