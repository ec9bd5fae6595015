//! Names of models, which are also folders below the models directory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A model's name: one folder, or `organisation/folder` as on the hubs.
///
/// A name can never leave the models directory: its parts hold letters, digits, `.`, `_` and `-`
/// only, and none begins with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// Not a model's name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{0}` is not a model name: write `folder` or `organisation/folder`, in letters, digits, `.`, \
     `_` and `-`, no part beginning with a dot"
)]
pub struct InvalidModelName(String);

impl ModelName {
    /// The name as text, also its path relative to the models directory.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = InvalidModelName;

    fn from_str(text: &str) -> Result<Self, InvalidModelName> {
        /// Longer than any name on a hub, short enough for every file system.
        const LONGEST: usize = 200;
        let part_is_valid = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if text.len() <= LONGEST
            && text.split('/').count() <= 2
            && text.split('/').all(part_is_valid)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidModelName(text.chars().take(LONGEST).collect()))
        }
    }
}

impl TryFrom<String> for ModelName {
    type Error = InvalidModelName;

    fn try_from(text: String) -> Result<Self, InvalidModelName> {
        text.parse()
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_models_directory() {
        for good in ["demo", "mlx-community/Llama-3.2-1B-Instruct-4bit", "a_b.c"] {
            assert!(good.parse::<ModelName>().is_ok(), "{good}");
        }
        for bad in ["", "..", "../x", "a/..", "/etc", "a/b/c", "a//b", "a b", ".git", "a\\b", "a\0"]
        {
            assert!(bad.parse::<ModelName>().is_err(), "{bad:?}");
        }
    }
}
