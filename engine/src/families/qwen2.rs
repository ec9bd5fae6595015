//! Qwen 2 and 2.5 (arXiv:2407.10671): a Llama with biases on queries, keys and values.

use super::Source;
use super::decoder::{Decoder, Defaults, Head, expect_silu};
use super::windows::Windows;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults { head: Head::OwnIfThere, ..Defaults::NONE })?;
    expect_silu(config)?;
    let rope = decoder.rope_of_said_base(config)?;
    let windows = windows(config, decoder.num_hidden_layers)?;
    decoder.model(|layer| {
        let attention = decoder.attention(layer, &rope).with_biases(true, false);
        Ok(decoder.layer(layer, attention.within(windows.of(layer)), decoder.gated(layer)))
    })
}

/// Qwen's windows: off unless asked for, and then in the layers from `max_window_layers` on.
pub(super) fn windows(config: &Section<'_>, layers: u32) -> Result<Windows, ModelError> {
    let first = config.optional_count("max_window_layers", 0..=u32::MAX)?.unwrap_or(0);
    windows_from(config, layers, first)
}

/// The same in the layers from `first` on.
pub(super) fn windows_from(
    config: &Section<'_>,
    layers: u32,
    first: u32,
) -> Result<Windows, ModelError> {
    const ON: &str = "use_sliding_window";
    let on = config.flag(ON, false)?;
    let windows = Windows::read(config, layers, Some(4096), |layer| on && layer >= first)?;
    if !on && (0..layers).any(|layer| windows.slides(layer)) {
        return Err(config.problem(ON, "is false, but `layer_types` has layers that slide"));
    }
    Ok(windows)
}
