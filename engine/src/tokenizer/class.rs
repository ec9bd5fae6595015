//! What the authors' code does for a folder without a `tokenizer.json`.
//!
//! A `tiktoken.model` or `tokenizer.model` is a vocabulary alone. Which tokens have which role, and whether a
//! prompt begins with one, says `tokenizer_config.json`; where that is silent, the class does that it names.

use std::path::Path;

use serde_json::{Map, Value};

use crate::model_dir::ModelError;
use crate::model_dir::json::{Section, parse_object, read_bounded};

/// The classes whose defaults are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// transformers' `LlamaTokenizer`.
    Llama,
    /// transformers' `GemmaTokenizer`.
    Gemma,
    /// `TikTokenTokenizer` of the code that Moonshot's models come with.
    Kimi,
    /// Any other: only what the settings say.
    Other,
}

/// Modules with the class [`KIMI_CLASS`], all with the same pattern.
const KIMI_MODULES: [&str; 2] = ["tokenization_kimi", "tokenization_moonshot"];

const KIMI_CLASS: &str = "TikTokenTokenizer";

/// As in `model_dir.rs`.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

impl Class {
    /// The class that a `tokenizer_config.json` names, else the one that transformers has for the model's type.
    ///
    /// # Errors
    /// When the class is no text, or `config.json` cannot be read.
    pub(super) fn of(
        folder: &Path,
        file: &Path,
        json: &Map<String, Value>,
    ) -> Result<Self, ModelError> {
        let settings = Section::root(file, json);
        let named = settings.text("tokenizer_class")?;
        if let Some(reference) = code_of(&settings) {
            // `organisation/name--module.Class` names the folder that the module lies in.
            let local = reference.rsplit("--").next().unwrap_or(reference);
            let known = local.split_once('.').is_some_and(|(module, class)| {
                KIMI_MODULES.contains(&module) && class == KIMI_CLASS
            });
            return Ok(if known { Self::Kimi } else { Self::Other });
        }
        let Some(named) = named else {
            return Self::of_model_type(folder);
        };
        Ok(match named.strip_suffix("Fast").unwrap_or(named) {
            "LlamaTokenizer" | "CodeLlamaTokenizer" => Self::Llama,
            "GemmaTokenizer" => Self::Gemma,
            KIMI_CLASS => Self::Kimi,
            _ => Self::Other,
        })
    }

    fn of_model_type(folder: &Path) -> Result<Self, ModelError> {
        let file = folder.join("config.json");
        if !file.exists() {
            return Ok(Self::Other);
        }
        let json = parse_object(&file, &read_bounded(&file, MAX_CONFIG_BYTES)?)?;
        Ok(match json.get("model_type").and_then(Value::as_str) {
            Some("llama" | "mistral" | "mixtral" | "phi3") => Self::Llama,
            Some("gemma2" | "gemma3" | "gemma3_text") => Self::Gemma,
            _ => Self::Other,
        })
    }

    /// Tokens with roles that the class has where the settings name none.
    pub(super) const fn roles(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Self::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
            ],
            Self::Kimi => &[("bos_token", "[BOS]"), ("eos_token", "[EOS]")],
            Self::Other => &[],
        }
    }

    /// Tokens that are special though their file does not say so.
    pub(super) const fn special(self) -> &'static [&'static str] {
        match self {
            Self::Gemma => &["<start_of_turn>", "<end_of_turn>"],
            Self::Llama | Self::Kimi | Self::Other => &[],
        }
    }

    /// Whether prompts begin with the token of the role `bos_token` where the settings do not say.
    pub(super) const fn adds_bos(self) -> Option<bool> {
        match self {
            Self::Llama | Self::Gemma => Some(true),
            Self::Kimi | Self::Other => None,
        }
    }
}

/// The code that the settings name for `AutoTokenizer`: of the slow tokenizer and the fast one, the first that is
/// there.
fn code_of<'a>(settings: &Section<'a>) -> Option<&'a str> {
    match settings.value("auto_map")?.get("AutoTokenizer")? {
        Value::String(code) => Some(code),
        Value::Array(codes) => codes.iter().find_map(Value::as_str),
        _ => None,
    }
}
