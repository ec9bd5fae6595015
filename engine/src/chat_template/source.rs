//! Where a model keeps its chat template.

use std::path::Path;

use serde_json::Value;

use crate::model_dir::json::{Section, parse_object, read_bounded};
use crate::model_dir::{MAX_CONFIG_BYTES, ModelError};
use crate::tokenizer::TokenizerSettings;

/// The longest published templates have 30 KiB.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Templates of families whose folders have none, since their authors make prompts by a program.
///
/// DeepSeek-V3.2's is `encoding/encoding_dsv32.py` of its folder. What it makes of messages of all roles, of thoughts, tools,
/// calls and results, this makes too; tools stand behind the first message if it is the system's, and before all others if not.
const BUILT_IN: [(&str, &str); 1] = [("deepseek_v32", include_str!("deepseek_v32.jinja"))];

/// The source of the template, from the first place that has one, or of what stands for it. Every end of a line is one
/// character, as Jinja reads it, whatever system wrote the file.
pub(crate) fn find(
    folder: &Path,
    settings: &TokenizerSettings,
) -> Result<Option<String>, ModelError> {
    let source = match find_as_written(folder, settings)? {
        Some(source) => Some(source),
        None => built_in(folder)?,
    };
    Ok(source.map(|source| source.replace("\r\n", "\n").replace('\r', "\n")))
}

fn built_in(folder: &Path) -> Result<Option<String>, ModelError> {
    let file = folder.join("config.json");
    let config = parse_object(&file, &read_bounded(&file, MAX_CONFIG_BYTES)?)?;
    let family = Section::root(&file, &config).text("model_type")?;
    let own = BUILT_IN.iter().find(|(name, _)| Some(*name) == family);
    Ok(own.map(|(_, source)| (*source).to_owned()))
}

fn find_as_written(
    folder: &Path,
    settings: &TokenizerSettings,
) -> Result<Option<String>, ModelError> {
    let jinja = folder.join("chat_template.jinja");
    if jinja.exists() {
        let bytes = read_bounded(&jinja, MAX_TEMPLATE_BYTES)?;
        return String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| ModelError::malformed(&jinja, "is not UTF-8"));
    }
    let file = folder.join("chat_template.json");
    if file.exists() {
        let json = parse_object(&file, &read_bounded(&file, MAX_TEMPLATE_BYTES)?)?;
        return in_json(&Section::root(&file, &json));
    }
    in_json(&settings.section())
}

/// One template, or a list of named ones of which `default` is meant.
fn in_json(section: &Section<'_>) -> Result<Option<String>, ModelError> {
    const KEY: &str = "chat_template";
    let Some(Value::Array(list)) = section.value(KEY) else {
        return Ok(section.text(KEY)?.map(str::to_owned));
    };
    let source_of = |entry: &Value| Some(entry.get("template")?.as_str()?.to_owned());
    let is_default = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
    match list.iter().find(is_default).or(list.first()).and_then(source_of) {
        Some(source) => Ok(Some(source)),
        None => Err(section.problem(KEY, "is a list without a template")),
    }
}
