//! ERNIE 4.5 without experts: a Llama whose pairs of numbers to be turned are neighbours, with biases everywhere or nowhere.

use super::Source;
use super::decoder::{Decoder, Defaults, Head, expect_silu};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults { head: Head::OwnIfThere, ..Defaults::NONE })?;
    expect_silu(config)?;
    let mut rope = decoder.rope_of_said_base(config)?;
    rope.traditional = true;
    // It is this that tells the family from others; mlx-lm asks for it.
    config.doubt_silence("use_bias");
    let biased = config.flag("use_bias", false)?;
    decoder.model(|layer| {
        let attention = decoder.attention(layer, &rope).with_biases(biased, biased);
        Ok(decoder.layer(layer, attention, decoder.gated(layer).with_biases(biased)))
    })
}
