//! Solar Open: a GLM-4.5 that turns whole heads and has experts in every layer. mlx-lm overlooks `rope_scaling`, with which it is
//! published; transformers does not.

use super::{Source, glm4_moe};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    // mlx-lm asks for them, transformers takes others for granted than most.
    source.config.doubt_silence("head_dim");
    if source.config.value("rope_parameters").is_none() {
        source.config.doubt_silence("rope_theta");
    }
    glm4_moe::build(source, 1.0, 0)
}
