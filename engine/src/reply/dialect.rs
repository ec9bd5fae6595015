//! The formats that models were trained to think and to call tools in, and their markers.

use std::str::FromStr;

use thiserror::Error;

/// Formats in which a model thinks and calls tools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dialect {
    /// How it marks what it thinks, if it does.
    pub reasoning: Option<ReasoningFormat>,
    /// How it calls tools, if it was trained to.
    pub tools: Option<ToolFormat>,
}

/// How a model writes calls of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>{"name": "f", "arguments": {}}</tool_call>`: Hermes, Qwen 2.5 and 3.
    Hermes,
    /// `<tool_call><function=f><parameter=a>...`: Qwen3-Coder, Qwen 3.5, Seed-OSS.
    QwenXml,
    /// `<tool_call>f<arg_key>a</arg_key><arg_value>...`: GLM 4.5 and later.
    Glm,
    /// `<minimax:tool_call><invoke name="f"><parameter name="a">...`.
    MinimaxM2,
    /// `<｜tool▁calls▁begin｜>` with arguments in a JSON fence: DeepSeek V3 and R1.
    DeepseekV3,
    /// The same with bare JSON: DeepSeek V3.1.
    DeepseekV31,
    /// `<｜DSML｜invoke name="f">`: DeepSeek V3.2 and V4.
    DeepseekDsml,
    /// `<|tool_calls_section_begin|>`: Kimi K2.
    KimiK2,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {}}]`: Mistral's first formats.
    MistralJson,
    /// `[TOOL_CALLS]f[ARGS]{}`: Mistral since 2025.
    MistralArgs,
    /// `{"name": "f", "parameters": {}}` as the whole reply: Llama 3.
    LlamaJson,
    /// `[f(a=1)]` as the whole reply: Llama 3.2 and 4 and others.
    Pythonic,
    /// `<|tool_call>call:f{a:1}<tool_call|>`.
    Gemma4,
    /// `<steptml:invoke name="f">` within DeepSeek's markers.
    Step3,
    /// The channel `commentary to=functions.f`: gpt-oss.
    Harmony,
}

/// How a model marks what it thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReasoningFormat {
    /// `<think>...</think>`.
    ThinkTags,
    /// `[THINK]...[/THINK]`.
    MistralThink,
    /// `<seed:think>...</seed:think>`.
    Seed,
    /// `◁think▷...◁/think▷`.
    Kimi,
    /// `<|channel>thought` on a line, then reasoning up to `<channel|>`.
    Gemma4,
    /// The channel `analysis`: gpt-oss. A whole reply is read in channels if either format is this.
    Harmony,
}

/// A setting names no format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{given}` is no format; the formats are {known}")]
pub struct UnknownFormat {
    given: String,
    known: String,
}

/// A format, its name in settings, and models that were trained to it.
type Known<T> = (T, &'static str, &'static str);

const TOOL_FORMATS: &[Known<ToolFormat>] = &[
    (ToolFormat::Hermes, "hermes", "Hermes, Qwen 2.5 and 3"),
    (ToolFormat::QwenXml, "qwen-xml", "Qwen3-Coder, Qwen 3.5"),
    (ToolFormat::Glm, "glm", "GLM 4.5 and later"),
    (ToolFormat::MinimaxM2, "minimax-m2", "MiniMax M2"),
    (ToolFormat::DeepseekV3, "deepseek-v3", "DeepSeek-V3, R1"),
    (ToolFormat::DeepseekV31, "deepseek-v31", "DeepSeek-V3.1"),
    (ToolFormat::DeepseekDsml, "deepseek-dsml", "DeepSeek-V3.2, V4"),
    (ToolFormat::KimiK2, "kimi-k2", "Kimi K2"),
    (ToolFormat::MistralJson, "mistral-json", "Mistral until 2024"),
    (ToolFormat::MistralArgs, "mistral-args", "Mistral since 2025"),
    (ToolFormat::LlamaJson, "llama-json", "Llama 3"),
    (ToolFormat::Pythonic, "pythonic", "Llama 3.2, Llama 4"),
    (ToolFormat::Gemma4, "gemma4", "Gemma 4"),
    (ToolFormat::Step3, "step3", "Step 3"),
    (ToolFormat::Harmony, "harmony", "gpt-oss"),
];

const REASONING_FORMATS: &[Known<ReasoningFormat>] = &[
    (ReasoningFormat::ThinkTags, "think-tags", "DeepSeek-R1, Qwen 3, and most others"),
    (ReasoningFormat::MistralThink, "mistral-think", "Magistral"),
    (ReasoningFormat::Seed, "seed", "Seed-OSS"),
    (ReasoningFormat::Kimi, "kimi", "Kimi-VL"),
    (ReasoningFormat::Gemma4, "gemma4", "Gemma 4"),
    (ReasoningFormat::Harmony, "harmony", "gpt-oss"),
];

impl ToolFormat {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        TOOL_FORMATS.iter().map(|(format, ..)| *format)
    }

    /// Its name in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        name_of(TOOL_FORMATS, self)
    }

    /// The name of each, and models that were trained to it.
    pub fn listed() -> impl Iterator<Item = (&'static str, &'static str)> {
        TOOL_FORMATS.iter().map(|(_, name, models)| (*name, *models))
    }
}

impl ReasoningFormat {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        REASONING_FORMATS.iter().map(|(format, ..)| *format)
    }

    /// Its name in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        name_of(REASONING_FORMATS, self)
    }

    /// The name of each, and models that were trained to it.
    pub fn listed() -> impl Iterator<Item = (&'static str, &'static str)> {
        REASONING_FORMATS.iter().map(|(_, name, models)| (*name, *models))
    }
}

impl FromStr for ToolFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        named(TOOL_FORMATS, name)
    }
}

impl FromStr for ReasoningFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        named(REASONING_FORMATS, name)
    }
}

fn name_of<T: Copy + PartialEq>(formats: &[Known<T>], format: T) -> &'static str {
    formats.iter().find(|(known, ..)| *known == format).map_or("", |(_, name, _)| name)
}

fn named<T: Copy>(formats: &[Known<T>], given: &str) -> Result<T, UnknownFormat> {
    let found = formats.iter().find(|(_, name, _)| *name == given);
    found.map(|(format, ..)| *format).ok_or_else(|| {
        let names: Vec<&str> = formats.iter().map(|(_, name, _)| *name).collect();
        UnknownFormat { given: given.to_owned(), known: names.join(", ") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for format in ToolFormat::all() {
            assert_eq!(format.name().parse(), Ok(format));
        }
        for format in ReasoningFormat::all() {
            assert_eq!(format.name().parse(), Ok(format));
        }
        let error = "qwen".parse::<ReasoningFormat>().unwrap_err().to_string();
        assert!(error.starts_with("`qwen` is no format; the formats are think-tags, "), "{error}");
    }
}
