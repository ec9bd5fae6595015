//! Fields of a JSON object, read so that every mistake names its field.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object in a request. `null` counts as absent, as it does for OpenAI.
#[derive(Clone)]
pub(crate) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object `value`, found at `path` (empty for the body itself).
    pub(crate) fn of(path: String, value: &'a Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other if path.is_empty() => Err(ApiError::malformed(format!(
                "the request's body is {}; it has to be an object",
                kind(other)
            ))),
            other => Err(wrong_kind(path, other, "an object")),
        }
    }

    /// The whole name of `key`, for errors.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a String> {
        self.map.keys()
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn required(&self, key: &str) -> Result<&'a Value, ApiError> {
        self.value(key).ok_or_else(|| {
            let path = self.path(key);
            ApiError::invalid(&path, format!("`{path}` is missing"))
        })
    }

    /// An object that has to be there.
    pub(crate) fn required_object(&self, key: &str) -> Result<Fields<'a>, ApiError> {
        Fields::of(self.path(key), self.required(key)?)
    }

    /// A text that has to be there.
    pub(crate) fn required_text(&self, key: &str) -> Result<&'a str, ApiError> {
        match self.required(key)? {
            Value::String(text) => Ok(text),
            other => Err(wrong_kind(self.path(key), other, "a text")),
        }
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.value(key).map(|value| Fields::of(self.path(key), value)).transpose()
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ApiError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(wrong_kind(self.path(key), other, "a list")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ApiError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_kind(self.path(key), other, "a text")),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(wrong_kind(self.path(key), other, "true or false")),
        }
    }

    /// A number that is finite as an `f32`, which is all that a sampler uses.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f32>, ApiError> {
        #[expect(clippy::cast_possible_truncation, reason = "checked right after")]
        let parse = |value: &Value| value.as_f64().map(|number| number as f32);
        self.parsed(key, "a number", |value| parse(value).filter(|n| n.is_finite()))
    }

    pub(crate) fn whole(
        &self,
        key: &str,
        allowed: RangeInclusive<u32>,
    ) -> Result<Option<u32>, ApiError> {
        let wanted = format!("a whole number from {} to {}", allowed.start(), allowed.end());
        self.parsed(key, &wanted, |value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| allowed.contains(number))
        })
    }

    /// A number, by `parse`, which refuses what is not `wanted`.
    pub(crate) fn parsed<T>(
        &self,
        key: &str,
        wanted: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None if value.is_number() => {
                let path = self.path(key);
                let message = format!("`{path}` is {value}; it has to be {wanted}");
                Err(ApiError::invalid(path, message))
            }
            None => Err(wrong_kind(self.path(key), value, wanted)),
        }
    }
}

/// Whether a value says no more than that there is none.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// An error about a value of the wrong type. It does not quote the value, which may be a prompt.
pub(crate) fn wrong_kind(path: String, found: &Value, wanted: &str) -> ApiError {
    let message = format!("`{path}` is {}; it has to be {wanted}", kind(found));
    ApiError::invalid(path, message)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
