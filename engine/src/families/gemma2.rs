//! Gemma 2 (arXiv:2408.00118): norms around both parts of a layer, a window on every other layer,
//! and scores bent to stay within bounds. mlx-lm overlooks the window; Google's code does not.

use super::Source;
use super::decoder::{Decoder, Defaults, Head, expect_activation};
use super::windows::Windows;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let defaults = Defaults { head: Head::Embedding, ..Defaults::NONE };
    let decoder = Decoder::read(source, &defaults)?.with_norms_from_one();
    gemma_activation(config)?;
    let rope = decoder.rope(config)?;
    let slides = |layer: u32| layer.is_multiple_of(2);
    let windows = Windows::read(config, decoder.num_hidden_layers, Some(4096), slides)?;
    const SCALE: &str = "query_pre_attn_scalar";
    config.doubt_silence(SCALE);
    let scale = config.optional_number(SCALE, 1e-3..=1e9)?.unwrap_or(256.0).sqrt().recip();
    let softcap = softcap(config, "attn_logit_softcapping", Some(50.0))?;
    let biased = config.flag("attention_bias", false)?;
    let mut model = decoder.model(|layer| {
        let mut attention =
            decoder.attention(layer, &rope).with_biases(biased, biased).within(windows.of(layer));
        attention.scale = scale;
        attention.softcap = softcap;
        Ok(decoder.sandwich(layer, attention))
    })?;
    model.embedding.scale = Some((decoder.hidden_size as f32).sqrt());
    model.logit_softcap = self::softcap(config, "final_logit_softcapping", Some(30.0))?;
    Ok(model)
}

/// The bound of scores under `key`. `null` is none, silence the authors' default.
pub(super) fn softcap(
    config: &Section<'_>,
    key: &str,
    default: Option<f32>,
) -> Result<Option<f32>, ModelError> {
    let cap = config.optional_number(key, 1e-3..=1e9)?;
    Ok(if config.is_silent(key) { default } else { cap })
}

/// The activation goes by `hidden_activation`. In `hidden_act` older files say `gelu` and mean the
/// same approximation.
pub(super) fn gemma_activation(config: &Section<'_>) -> Result<(), ModelError> {
    const TANH: &str = "gelu_pytorch_tanh";
    expect_activation(config, "hidden_activation", &[TANH])?;
    expect_activation(config, "hidden_act", &[TANH, "gelu"])
}
