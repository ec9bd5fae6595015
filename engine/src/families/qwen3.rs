//! Qwen 3 (arXiv:2505.09388): every query and key head is normed before it is turned.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::qwen2;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    let rope = decoder.rope_of_said_base(config)?;
    let windows = qwen2::windows(config, decoder.num_hidden_layers)?;
    let biased = config.flag("attention_bias", false)?;
    decoder.model(|layer| {
        let attention = decoder
            .attention(layer, &rope)
            .with_biases(biased, biased)
            .with_head_norms(decoder.head_norms(layer))
            .within(windows.of(layer));
        Ok(decoder.layer(layer, attention, decoder.gated(layer)))
    })
}
