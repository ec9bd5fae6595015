//! Seed-OSS: a Llama whose attention may have biases on what it takes in and, apart from them, on what it gives out.

use super::Source;
use super::decoder::{Decoder, Defaults, Head, expect_silu};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults { head: Head::OwnIfThere, ..Defaults::NONE })?;
    expect_silu(config)?;
    let rope = decoder.rope(config)?;
    // mlx-lm takes none for granted, transformers does.
    config.doubt_silence("attention_bias");
    let inward = config.flag("attention_bias", true)?;
    let outward = config.flag("attention_out_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    // Both ask for it: it is not the hidden size divided among the heads.
    config.doubt_silence("head_dim");
    decoder.model(|layer| {
        let attention = decoder.attention(layer, &rope).with_biases(inward, outward);
        Ok(decoder.layer(layer, attention, decoder.gated(layer).with_biases(mlp_bias)))
    })
}
