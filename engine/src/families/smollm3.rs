//! `SmolLM3`: a Llama of which every fourth layer does not know positions.

use super::Source;
use super::decoder::{Decoder, Defaults, Head, expect_silu};
use super::windows::Windows;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::MAX_LAYERS;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults { head: Head::Embedding, ..Defaults::NONE })?;
    expect_silu(config)?;
    let rope = decoder.rope_of_said_base(config)?;
    let turns = turning_layers(config, decoder.num_hidden_layers)?;
    let windows = Windows::read(config, decoder.num_hidden_layers, None, |_| false)?;
    let attention_bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    decoder.model(|layer| {
        let mut attention = decoder
            .attention(layer, &rope)
            .with_biases(attention_bias, attention_bias)
            .within(windows.of(layer));
        attention.rope.take_if(|_| !turns.get(layer as usize).copied().unwrap_or(true));
        Ok(decoder.layer(layer, attention, decoder.gated(layer).with_biases(mlp_bias)))
    })
}

/// The layers that know positions: those with a 1 in `no_rope_layers`, or all but every so-many-th.
fn turning_layers(config: &Section<'_>, layers: u32) -> Result<Vec<bool>, ModelError> {
    const LIST: &str = "no_rope_layers";
    let interval = config.optional_count("no_rope_layer_interval", 1..=MAX_LAYERS)?.unwrap_or(4);
    if config.value(LIST).is_none() {
        return Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    }
    let listed = config.counts(LIST)?;
    if listed.len() != layers as usize {
        let problem = format!("has {} entries for {layers} layers", listed.len());
        return Err(config.problem(LIST, problem));
    }
    Ok(listed.into_iter().map(|knows| knows != 0).collect())
}
