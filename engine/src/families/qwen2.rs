//! Qwen 2 and 2.5 (arXiv:2407.10671): a Llama with biases on queries, keys and values.

use super::Source;
use super::decoder::{Decoder, Defaults, Windows, expect_activation};
use super::rope;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;

pub(super) fn architecture(Source { config, .. }: &Source<'_>) -> Result<Architecture, ModelError> {
    let decoder = Decoder::read(config, &Defaults::TIED)?;
    expect_activation(config, &["silu"])?;
    let context = decoder.max_position_embeddings;
    let rope = rope::read(config, decoder.head_dim, context, 1_000_000.0)?;
    let windows = windows(config, decoder.num_hidden_layers)?;
    decoder.model(|layer| {
        let attention = decoder.attention(layer, &rope).with_biases(true, false);
        Ok(decoder.layer(layer, attention.within(windows.of(layer)), decoder.gated(layer)))
    })
}

/// Qwen's windows: off unless asked for, and then in the layers from `max_window_layers` on.
pub(super) fn windows(config: &Section<'_>, layers: u32) -> Result<Windows, ModelError> {
    let on = config.flag("use_sliding_window", false)?;
    let first = config.optional_count("max_window_layers", 0..=u32::MAX)?.unwrap_or(0);
    Windows::read(config, layers, |layer| on && layer >= first)
}
