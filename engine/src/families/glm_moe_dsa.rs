//! GLM-5: DeepSeek-V3.2 whose indexer turns neighbours together. The epsilon of the norms within attention is DeepSeek's, as
//! transformers and mlx-lm have it.

use super::Source;
use super::decoder::Decoder;
use super::deepseek_v3::{self, DEFAULTS, Variant};
use super::deepseek_v32::{OF_DEEPSEEK, OfIndexer};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    // mlx-lm reads no other key of positions.
    const POSITIONS: &str = "rope_parameters";
    if source.config.value(POSITIONS).is_none() {
        return Err(source.config.problem(POSITIONS, "is missing"));
    }
    let indexer = Some(OfIndexer { turns_neighbours: true });
    let variant = Variant { theta_is_doubtful: true, indexer, ..OF_DEEPSEEK };
    deepseek_v3::build(source, &Decoder::read(source, &DEFAULTS)?, &variant)
}
