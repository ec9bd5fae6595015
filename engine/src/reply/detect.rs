//! Which dialect a model speaks, from its chat template and its vocabulary.

use super::dialect::{Dialect, ReasoningFormat, ToolFormat};
use crate::chat_template::find_source;
use crate::model_dir::{ModelDir, ModelError};
use crate::tokenizer::{Tokenizer, TokenizerSettings};

/// What tells that a format is spoken.
struct Sign<T> {
    format: T,
    /// The template has all of these...
    has: &'static [&'static str],
    /// ...and none of these;
    lacks: &'static [&'static str],
    /// or the vocabulary has all of these as tokens, if there are any.
    tokens: &'static [&'static str],
}

const fn sign<T>(format: T, has: &'static [&'static str]) -> Sign<T> {
    Sign { format, has, lacks: &[], tokens: &[] }
}

/// The first that fits counts, so those that are parts of others come later.
const TOOLS: &[Sign<ToolFormat>] = &[
    Sign {
        tokens: &["<|channel|>", "<|message|>", "<|call|>"],
        ..sign(ToolFormat::Harmony, &["<|channel|>", "<|message|>"])
    },
    Sign { tokens: &["｜DSML｜"], ..sign(ToolFormat::DeepseekDsml, &["｜DSML｜"]) },
    sign(ToolFormat::Step3, &["steptml:invoke"]),
    sign(ToolFormat::MinimaxM2, &["minimax:tool_call"]),
    sign(ToolFormat::KimiK2, &["<|tool_call_begin|>", "<|tool_call_argument_begin|>"]),
    sign(ToolFormat::Gemma4, &["<|tool_call>", "<tool_call|>"]),
    sign(ToolFormat::DeepseekV3, &["<｜tool▁sep｜>", "```json"]),
    sign(ToolFormat::DeepseekV31, &["<｜tool▁sep｜>"]),
    sign(ToolFormat::MistralArgs, &["[TOOL_CALLS]", "[ARGS]"]),
    sign(ToolFormat::MistralJson, &["[TOOL_CALLS]"]),
    sign(ToolFormat::QwenXml, &["tool_call>", "<function="]),
    sign(ToolFormat::Glm, &["<tool_call>", "<arg_key>"]),
    sign(ToolFormat::Hermes, &["<tool_call>", "name"]),
    sign(ToolFormat::Pythonic, &["[func_name"]),
    sign(ToolFormat::LlamaJson, &["<|python_tag|>"]),
    sign(ToolFormat::LlamaJson, &["<|start_header_id|>", "\"parameters\": "]),
    sign(ToolFormat::LlamaJson, &["<|python_start|>", "\"parameters\": "]),
];

const REASONING: &[Sign<ReasoningFormat>] = &[
    Sign {
        tokens: &["<|channel|>", "<|message|>", "<|call|>"],
        ..sign(ReasoningFormat::Harmony, &["<|channel|>", "<|message|>"])
    },
    Sign {
        tokens: &["<|channel>", "<channel|>"],
        ..sign(ReasoningFormat::Gemma4, &["<|channel>", "<channel|>"])
    },
    Sign { tokens: &["[THINK]", "[/THINK]"], ..sign(ReasoningFormat::MistralThink, &["[THINK]"]) },
    Sign { tokens: &["<seed:think>"], ..sign(ReasoningFormat::Seed, &["<seed:think>"]) },
    Sign {
        tokens: &["◁think▷", "◁/think▷"], ..sign(ReasoningFormat::Kimi, &["◁think▷"])
    },
    Sign { tokens: &["<think>", "</think>"], ..sign(ReasoningFormat::ThinkTags, &["</think>"]) },
    Sign { lacks: &["</thinking>"], ..sign(ReasoningFormat::ThinkTags, &["<think>"]) },
];

impl Dialect {
    /// The dialect of a model, from its files.
    ///
    /// # Errors
    /// When one of those that may hold a chat template cannot be read.
    pub fn open(model: &ModelDir, tokenizer: &Tokenizer) -> Result<Self, ModelError> {
        let settings = TokenizerSettings::open(model.path())?;
        let template = find_source(model.path(), &settings)?.unwrap_or_default();
        Ok(Self::detect(&template, |token| tokenizer.id_of(token).is_some()))
    }

    /// The dialect of a model with this chat template (its source; empty if it has none) and with the tokens of
    /// which `has_token` says so.
    ///
    /// A template may mention `tools` and have no marker that is known here. Then `tools` is `None`, and what
    /// the model writes is text.
    #[must_use]
    pub fn detect(template: &str, has_token: impl Fn(&str) -> bool) -> Self {
        Self {
            reasoning: first_of(REASONING, template, &has_token),
            tools: first_of(TOOLS, template, &has_token),
        }
    }
}

fn first_of<T: Copy>(
    signs: &[Sign<T>],
    template: &str,
    has_token: &impl Fn(&str) -> bool,
) -> Option<T> {
    let fits = |sign: &&Sign<T>| {
        let in_template = sign.has.iter().all(|text| template.contains(text))
            && !sign.lacks.iter().any(|text| template.contains(text));
        let in_vocabulary =
            !sign.tokens.is_empty() && sign.tokens.iter().all(|token| has_token(token));
        in_template || in_vocabulary
    };
    signs.iter().find(fits).map(|sign| sign.format)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model, its template, its tokens, and its formats.
    type Case = (
        &'static str,
        &'static str,
        &'static [&'static str],
        Option<ToolFormat>,
        Option<ReasoningFormat>,
    );

    /// What stands for a model's template: what tells its dialect, as published ones write it.
    #[test]
    fn dialects_are_known_by_their_templates() {
        let think = "{{ '<think>\\n' + m.reasoning_content + '\\n</think>' }}";
        let cases: &[Case] = &[
            ("none", "", &[], None, None),
            ("tools of no known format", "{% if tools %}{{ tools }}{% endif %}", &[], None, None),
            (
                "Qwen 2.5",
                "<tool_call>\\n{\\\"name\\\": <function-name>, \\\"arguments\\\": <args>}\\n</tool_call>",
                &[],
                Some(ToolFormat::Hermes),
                None,
            ),
            (
                "Qwen 3 without thoughts",
                "{{ '<tool_call>\\n{\"name\": \"' }}{{ c.arguments | tojson }}",
                &["<think>", "</think>"],
                Some(ToolFormat::Hermes),
                Some(ReasoningFormat::ThinkTags),
            ),
            (
                "Qwen3-Coder",
                "<tool_call>\n<function=example_function_name>\n<parameter=a>",
                &[],
                Some(ToolFormat::QwenXml),
                None,
            ),
            (
                "Seed-OSS",
                "<seed:tool_call>\n<function=f> <seed:think> </seed:think>",
                &[],
                Some(ToolFormat::QwenXml),
                Some(ReasoningFormat::Seed),
            ),
            (
                "GLM",
                "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key> <think></think>",
                &[],
                Some(ToolFormat::Glm),
                Some(ReasoningFormat::ThinkTags),
            ),
            (
                "MiniMax",
                "{%- set toolcall_begin_token = '<minimax:tool_call>' -%} </think>",
                &[],
                Some(ToolFormat::MinimaxM2),
                Some(ReasoningFormat::ThinkTags),
            ),
            (
                "DeepSeek V3",
                "'<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' </think>",
                &[],
                Some(ToolFormat::DeepseekV3),
                Some(ReasoningFormat::ThinkTags),
            ),
            (
                "DeepSeek V3.1",
                "'<｜tool▁sep｜>' + arguments + '<｜tool▁call▁end｜>'",
                &["<think>", "</think>"],
                Some(ToolFormat::DeepseekV31),
                Some(ReasoningFormat::ThinkTags),
            ),
            (
                "DeepSeek V3.2 has no template",
                "",
                &["｜DSML｜", "<think>", "</think>"],
                Some(ToolFormat::DeepseekDsml),
                Some(ReasoningFormat::ThinkTags),
            ),
            (
                "Kimi K2",
                "<|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>",
                &[],
                Some(ToolFormat::KimiK2),
                None,
            ),
            ("Kimi-VL", "", &["◁think▷", "◁/think▷"], None, Some(ReasoningFormat::Kimi)),
            ("Mistral 7B", "{{ '[TOOL_CALLS] [' }}", &[], Some(ToolFormat::MistralJson), None),
            (
                "Magistral",
                "{{ '[TOOL_CALLS]' + name + '[ARGS]' }}",
                &["[THINK]", "[/THINK]"],
                Some(ToolFormat::MistralArgs),
                Some(ReasoningFormat::MistralThink),
            ),
            (
                "Llama 3.1",
                "{{ '<|python_tag|>' }} {\"name\": function name, \"parameters\": dictionary}",
                &[],
                Some(ToolFormat::LlamaJson),
                None,
            ),
            (
                "Llama 3.2",
                "<|start_header_id|> '{\"name\": \"' + name + '\", ' '\"parameters\": '",
                &[],
                Some(ToolFormat::LlamaJson),
                None,
            ),
            (
                "Llama 3.2 in Python",
                "<|start_header_id|> [func_name1(params_name1=params_value1...)]",
                &[],
                Some(ToolFormat::Pythonic),
                None,
            ),
            (
                "Gemma 4",
                "'<|tool_call>call:' + name '<tool_call|>' '<|channel>thought\\n<channel|>'",
                &[],
                Some(ToolFormat::Gemma4),
                Some(ReasoningFormat::Gemma4),
            ),
            (
                "Step 3",
                "<｜tool_sep｜><steptml:invoke name=\"' </think>",
                &[],
                Some(ToolFormat::Step3),
                Some(ReasoningFormat::ThinkTags),
            ),
            (
                "gpt-oss",
                "<|start|>assistant<|channel|>analysis<|message|> \"name\" <tool_call>",
                &[],
                Some(ToolFormat::Harmony),
                Some(ReasoningFormat::Harmony),
            ),
            (
                "thoughts with a prompt that opens them",
                think,
                &[],
                None,
                Some(ReasoningFormat::ThinkTags),
            ),
        ];
        for (model, template, tokens, tools, reasoning) in cases {
            let dialect = Dialect::detect(template, |token| tokens.contains(&token));
            assert_eq!(dialect, Dialect { reasoning: *reasoning, tools: *tools }, "{model}");
        }
    }
}
