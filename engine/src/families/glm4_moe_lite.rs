//! GLM-4.7 Flash: a small DeepSeek-V3 whose norms all have one epsilon, that of the configuration. (Transformers has 1e-6
//! in the norms within attention; mlx-lm reads it.)

use super::Source;
use super::decoder::Decoder;
use super::deepseek_v3::{self, DEFAULTS, Variant};
use super::mixture::SparseLayers;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let sparse = SparseLayers { first: 1, in_steps: true, always: true };
    let variant = Variant { inner_norm_eps: None, sparse, theta_is_doubtful: true, indexer: None };
    deepseek_v3::build(source, &Decoder::read(source, &DEFAULTS)?, &variant)
}
