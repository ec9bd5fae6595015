//! Whether an answer is to be stored, and what is written on it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::{Fields, wrong_kind};
use crate::error::ApiError;

/// OpenAI's limits.
const MOST_PAIRS: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;

/// The metadata of an answer that is to be stored. That of others is of no use to anybody.
pub(super) fn metadata(fields: &Fields<'_>) -> Result<Option<BTreeMap<String, String>>, ApiError> {
    if !fields.flag("store")?.unwrap_or(false) {
        return Ok(None);
    }
    pairs(fields).map(Some)
}

/// The pairs of `metadata`, within OpenAI's limits.
pub(crate) fn pairs(fields: &Fields<'_>) -> Result<BTreeMap<String, String>, ApiError> {
    let Some(pairs) = fields.object("metadata")? else {
        return Ok(BTreeMap::new());
    };
    let count = pairs.keys().count();
    if count > MOST_PAIRS {
        let message = format!("`metadata` has {count} entries; {MOST_PAIRS} are allowed");
        return Err(ApiError::invalid("metadata", message));
    }
    pairs
        .keys()
        .map(|key| match pairs.value(key) {
            Some(Value::String(text)) if fits(key, LONGEST_KEY) && fits(text, LONGEST_VALUE) => {
                Ok((key.clone(), text.clone()))
            }
            None | Some(Value::String(_)) => Err(ApiError::invalid(
                "metadata",
                format!(
                    "the entries of `metadata` are texts of up to {LONGEST_VALUE} characters under \
                     names of up to {LONGEST_KEY}"
                ),
            )),
            // Its name may be long.
            Some(other) => Err(wrong_kind("metadata".to_owned(), other, "an object of texts")),
        })
        .collect()
}

fn fits(text: &str, characters: usize) -> bool {
    text.chars().nth(characters).is_none()
}
