//! `OLMo` 3: norms stand behind both parts of a layer alone, all heads are normed together, and most layers see a window. Positions
//! are stretched in layers that see everything only.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::rope::{Asked, EVERYWHERE, NEARBY, THETA};
use super::windows::Windows;
use crate::architecture::{Architecture, Rope};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    config.doubt_silence("sliding_window");
    let slides = |layer: u32| !(layer + 1).is_multiple_of(4);
    let windows = Windows::read(config, decoder.num_hidden_layers, Some(4096), slides)?;
    let (nearby, everywhere) = positions(config, &decoder)?;
    let biased = config.flag("attention_bias", false)?;
    decoder.model(|layer| {
        let rope = if windows.slides(layer) { &nearby } else { &everywhere };
        let attention = decoder
            .attention(layer, rope)
            .with_biases(biased, biased)
            .with_head_norms(decoder.joint_norms(layer))
            .within(windows.of(layer));
        let path = decoder.path(layer);
        let norm = |name: &str| Some(decoder.norm(&format!("{path}.{name}"), decoder.hidden_size));
        let mut whole = decoder.layer(layer, attention, decoder.gated(layer));
        (whole.before_attention, whole.before_feed_forward) = (None, None);
        whole.after_attention = norm("post_attention_layernorm");
        whole.after_feed_forward = norm("post_feedforward_layernorm");
        Ok(whole)
    })
}

/// Those of layers that see a window, and of the others: with an object for each, as transformers 5 writes them, or one base and
/// `rope_scaling`. (Of the latter, transformers 5 takes the base for layers that see everything alone, and 500,000 for the others;
/// its former versions and mlx-lm do not. That is the base of all published models.)
fn positions(config: &Section<'_>, decoder: &Decoder) -> Result<(Rope, Rope), ModelError> {
    let asked = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
    let asked = Asked { theta: 500_000.0, theta_is_doubtful: true, ..asked };
    if config.value("rope_parameters").is_some() {
        let of = |layers| Asked { layers: Some(layers), ..asked }.read(config);
        return Ok((of(NEARBY)?, of(EVERYWHERE)?));
    }
    let everywhere = asked.read(config)?;
    let theta = config.optional_number("rope_theta", THETA)?;
    Ok((asked.of(config, theta.unwrap_or(asked.theta), 1.0, None)?, everywhere))
}
