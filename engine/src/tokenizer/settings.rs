//! `tokenizer_config.json`: which tokens have which role, and perhaps the chat template.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::model_dir::ModelError;
use crate::model_dir::json::{Section, parse_object, read_bounded};

/// Some of these files list thousands of added tokens.
const MAX_SETTINGS_BYTES: u64 = 32 << 20;

/// What is used of a tokenizer's settings; all of it may be absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TokenizerSettings {
    file: PathBuf,
    json: Map<String, Value>,
    special_tokens: BTreeMap<String, String>,
    add_bos_token: Option<bool>,
}

impl TokenizerSettings {
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let file = folder.join("tokenizer_config.json");
        if !file.exists() {
            return Ok(Self { file, ..Self::default() });
        }
        let json = parse_object(&file, &read_bounded(&file, MAX_SETTINGS_BYTES)?)?;
        let root = Section::root(&file, &json);
        let special_tokens =
            root.entries().filter_map(|(key, value)| Some((key.clone(), special(key, value)?)));
        let special_tokens = special_tokens.collect();
        let add_bos_token = match root.value("add_bos_token") {
            None => None,
            Some(_) => Some(root.flag("add_bos_token", false)?),
        };
        Ok(Self { file, special_tokens, add_bos_token, json })
    }

    /// The text of `bos_token`, `eos_token` and the like, by these names.
    pub(crate) const fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special_tokens
    }

    pub(crate) fn bos_token(&self) -> Option<&str> {
        self.special_tokens.get("bos_token").map(String::as_str)
    }

    pub(crate) fn eos_token(&self) -> Option<&str> {
        self.special_tokens.get("eos_token").map(String::as_str)
    }

    pub(crate) const fn add_bos_token(&self) -> Option<bool> {
        self.add_bos_token
    }

    /// The file, for messages.
    pub(crate) fn section(&self) -> Section<'_> {
        Section::root(&self.file, &self.json)
    }
}

/// A token's text, given as such or as an object with `content`.
fn special(key: &str, value: &Value) -> Option<String> {
    if !key.ends_with("_token") {
        return None;
    }
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    (!text.is_empty()).then(|| text.to_owned())
}
