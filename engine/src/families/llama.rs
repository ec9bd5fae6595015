//! Llama (arXiv:2302.13971, arXiv:2407.21783), and the many models that call themselves so.

use super::Source;
use super::decoder::{Decoder, Defaults, Head, expect_silu};
use super::windows::Windows;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    with_windows(source, None, |_| false)
}

/// The same with a window on those layers, where the file gives one or is silent and the authors
/// have a `default`.
pub(super) fn with_windows(
    source: &Source<'_>,
    default: Option<u32>,
    slides: impl Fn(u32) -> bool,
) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults { head: Head::OwnIfThere, ..Defaults::NONE })?;
    expect_silu(config)?;
    let rope = decoder.rope(config)?;
    let windows = Windows::read(config, decoder.num_hidden_layers, default, slides)?;
    let attention_bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    decoder.model(|layer| {
        let attention = decoder
            .attention(layer, &rope)
            .with_biases(attention_bias, attention_bias)
            .within(windows.of(layer));
        Ok(decoder.layer(layer, attention, decoder.gated(layer).with_biases(mlp_bias)))
    })
}
