//! Qwen3-VL (arXiv:2511.21631), the text part: a Qwen 3, with experts or without.

use super::{Source, inside, qwen3, qwen3_moe};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    inside::text_model(source, &["qwen3_vl_text"], qwen3::architecture)
}

/// With experts. The authors' code makes the weights of the chosen add up to one and asks no key about it.
pub(super) fn architecture_with_experts(source: &Source<'_>) -> Result<Architecture, ModelError> {
    inside::text_model(source, &["qwen3_vl_moe_text"], |source| {
        const KEY: &str = "norm_topk_prob";
        if !source.config.flag(KEY, true)? {
            return Err(source.config.problem(KEY, "is false; expected true"));
        }
        qwen3_moe::beside_pictures(source)
    })
}
