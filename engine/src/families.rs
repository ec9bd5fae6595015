//! The model families: from a `config.json` to an [`Architecture`].
//!
//! Each family is one file, which says what its models are made of in the order in which a token
//! passes through them. What families share is in [`decoder`] (the sizes that nearly all have, the
//! usual modules by their usual names), [`mixture`] and [`rope`].
//!
//! To add a family, write its file and its line in [`FAMILIES`].

mod decoder;
mod deepseek_v3;
mod deepseek_v32;
mod dots1;
mod ernie4_5;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4_moe;
mod glm4_moe_lite;
mod glm_moe_dsa;
mod gpt_oss;
mod granite;
mod hunyuan_v1_dense;
mod inside;
mod keys;
mod kimi_k25;
mod llama;
mod minimax_m2;
mod ministral3;
mod mistral;
mod mistral3;
mod mixtral;
mod mixture;
mod of_layers;
mod olmo3;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod qwen3_vl;
mod rope;
mod seed_oss;
mod smollm3;
mod solar_open;
mod step3p5;
mod windows;

pub(crate) use self::keys::unknown as unknown_keys;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;

/// Every family: its `model_type`, the models that call themselves so, and what reads them.
const FAMILIES: &[(&str, &str, Family)] = &[
    ("deepseek_v3", "DeepSeek-V3, R1", deepseek_v3::architecture),
    ("deepseek_v32", "DeepSeek-V3.2", deepseek_v32::architecture),
    ("dots1", "dots.llm1", dots1::architecture),
    ("ernie4_5", "ERNIE 4.5, without experts", ernie4_5::architecture),
    ("gemma2", "Gemma 2", gemma2::architecture),
    ("gemma3", "Gemma 3, of which the text", gemma3::inside_multimodal),
    ("gemma3_text", "Gemma 3", gemma3::architecture),
    ("gemma4", "Gemma 4, of which the text", gemma4::inside_multimodal),
    ("gemma4_text", "Gemma 4", gemma4::architecture),
    ("glm4_moe", "GLM-4.5, 4.6, 4.7, with experts", glm4_moe::architecture),
    ("glm4_moe_lite", "GLM-4.7 Flash", glm4_moe_lite::architecture),
    ("glm_moe_dsa", "GLM-5", glm_moe_dsa::architecture),
    ("gpt_oss", "gpt-oss", gpt_oss::architecture),
    ("granite", "Granite 3 and 4, without experts or recurrent layers", granite::architecture),
    ("hunyuan_v1_dense", "HunYuan, without experts", hunyuan_v1_dense::architecture),
    ("joyai_llm_flash", "JoyAI-LLM Flash", deepseek_v3::architecture),
    ("kimi_k2", "Kimi K2", deepseek_v3::architecture),
    ("kimi_k25", "Kimi K2.5, of which the text", kimi_k25::architecture),
    ("llama", "Llama 2, 3, and others of their making", llama::architecture),
    ("minimax", "MiniMax M2, by its first name", minimax_m2::architecture),
    ("minimax_m2", "MiniMax M2", minimax_m2::architecture),
    ("ministral3", "Ministral 3", ministral3::architecture),
    ("mistral", "Mistral", mistral::architecture),
    ("mistral3", "Mistral Small 3.1, 3.2, Ministral 3, of which the text", mistral3::architecture),
    ("mixtral", "Mixtral", mixtral::architecture),
    ("olmo3", "OLMo 3", olmo3::architecture),
    ("phi3", "Phi 3, Phi 4", phi3::architecture),
    ("qwen2", "Qwen 2, 2.5", qwen2::architecture),
    ("qwen3", "Qwen 3", qwen3::architecture),
    ("qwen3_moe", "Qwen 3, mixtures of experts", qwen3_moe::architecture),
    ("qwen3_vl", "Qwen3-VL, of which the text", qwen3_vl::architecture),
    ("qwen3_vl_moe", "Qwen3-VL, mixtures of experts", qwen3_vl::architecture_with_experts),
    ("seed_oss", "Seed-OSS", seed_oss::architecture),
    ("smollm3", "SmolLM3", smollm3::architecture),
    ("solar_open", "Solar Open", solar_open::architecture),
    ("step3p5", "Step 3.5 Flash", step3p5::architecture),
];

type Family = fn(&Source<'_>) -> Result<Architecture, ModelError>;

/// What a family is told of a model.
pub(crate) struct Source<'a> {
    /// `config.json`, or the part of it that describes the language model.
    config: Section<'a>,
    /// Whether the files hold a tensor of that name.
    has: &'a dyn Fn(&str) -> bool,
    /// What names of tensors begin with.
    names: Names,
    /// Of a language model inside a larger one: whether the embedding is the head, if that is known.
    tied: Option<bool>,
}

/// What names of tensors begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Names {
    /// Those of all modules but the head.
    root: &'static str,
    /// The head.
    head: &'static str,
    /// Whether this is a part of a larger model.
    is_inside: bool,
}

impl<'a> Source<'a> {
    /// A folder with this configuration.
    pub(crate) const fn new(config: Section<'a>, has: &'a dyn Fn(&str) -> bool) -> Self {
        let names = Names { root: "model", head: "lm_head", is_inside: false };
        Self { config, has, names, tied: None }
    }
}

/// The family of that `model_type`.
pub(crate) fn of(model_type: &str) -> Option<Family> {
    FAMILIES.iter().find(|(name, ..)| *name == model_type).map(|(.., family)| *family)
}

/// Every `model_type` that is known here, in order.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    listed().map(|(name, _)| name)
}

/// The same, each with the models that call themselves so.
pub(crate) fn listed() -> impl Iterator<Item = (&'static str, &'static str)> {
    FAMILIES.iter().map(|(name, models, _)| (*name, *models))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_in_order() {
        assert!(names().is_sorted());
        assert!(of("qwen3").is_some() && of("qwen").is_none());
    }
}
