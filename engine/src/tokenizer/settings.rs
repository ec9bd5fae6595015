//! `tokenizer_config.json`: which tokens have which role, and perhaps the chat template.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::class::Class;
use super::source::Source;
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
    class: Option<Class>,
}

impl TokenizerSettings {
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let file = folder.join("tokenizer_config.json");
        // Older folders have the roles of tokens in a file of their own, newer ones leave it there.
        let mut special_tokens = special_tokens_of(&read(&folder.join("special_tokens_map.json"))?);
        let json = read(&file)?;
        special_tokens.extend(special_tokens_of(&json));
        let root = Section::root(&file, &json);
        let add_bos_token = match root.value("add_bos_token") {
            None => None,
            Some(_) => Some(root.flag("add_bos_token", false)?),
        };
        let mut settings = Self { special_tokens, add_bos_token, class: None, json, file };
        if Source::of(folder).is_some_and(|source| !source.is_whole()) {
            settings.complete(Class::of(folder, &settings.file, &settings.json)?);
        }
        Ok(settings)
    }

    /// Fills in what the class does where the file says nothing.
    fn complete(&mut self, class: Class) {
        for (role, token) in class.roles() {
            let tokens = &mut self.special_tokens;
            tokens.entry((*role).to_owned()).or_insert_with(|| (*token).to_owned());
        }
        self.add_bos_token = self.add_bos_token.or(class.adds_bos());
        self.class = Some(class);
    }

    /// The class of the authors' code; unknown where `tokenizer.json` says everything.
    pub(super) fn class(&self) -> Class {
        self.class.unwrap_or(Class::Other)
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

    /// What is asked for that would change tokens and is passed over, by name.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let asks = |key: &&str| self.json.get(*key).and_then(Value::as_bool) == Some(true);
        let say = |key| {
            format!(
                "tokenizer_config.json: `{key}` is true, which is not supported here and was \
                 passed over"
            )
        };
        ["add_eos_token", "do_lower_case", "split_special_tokens"]
            .into_iter()
            .filter(asks)
            .map(say)
            .collect()
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.json.get(key).and_then(Value::as_bool)
    }

    /// All of it but the chat template, which may as well lie in a file of its own, and with the roles of
    /// tokens that do.
    pub(crate) fn but_template(&self) -> Vec<u8> {
        let mut json = self.json.clone();
        json.remove("chat_template");
        for (role, text) in &self.special_tokens {
            json.entry(role).or_insert_with(|| Value::String(text.clone()));
        }
        Value::Object(json).to_string().into_bytes()
    }

    /// The file, for messages.
    pub(crate) fn section(&self) -> Section<'_> {
        Section::root(&self.file, &self.json)
    }
}

/// What a file holds; a file that is not there holds nothing.
fn read(file: &Path) -> Result<Map<String, Value>, ModelError> {
    if file.exists() {
        parse_object(file, &read_bounded(file, MAX_SETTINGS_BYTES)?)
    } else {
        Ok(Map::new())
    }
}

fn special_tokens_of(json: &Map<String, Value>) -> BTreeMap<String, String> {
    json.iter().filter_map(|(key, value)| Some((key.clone(), special(key, value)?))).collect()
}

/// A token's text, given as such or as an object with `content`.
fn special(key: &str, value: &Value) -> Option<String> {
    if !key.ends_with("_token") {
        return None;
    }
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    (!text.is_empty()).then(|| text.to_owned())
}
