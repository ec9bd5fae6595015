//! Kimi K2.5, the text part: a Kimi K2, which is a DeepSeek-V3.

use super::{Source, deepseek_v3, inside};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    inside::text_model(source, &["kimi_k2", "deepseek_v3"], deepseek_v3::architecture)
}
