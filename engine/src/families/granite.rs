//! Granite 3 and 4 without experts or recurrent layers: a Llama whose embeddings, scores of attention, results of parts and scores
//! of tokens are multiplied.

use super::Source;
use super::decoder::{Decoder, Defaults, Head, expect_silu};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults { head: Head::OwnIfThere, ..Defaults::NONE })?;
    expect_silu(config)?;
    let rope = decoder.rope(config)?;
    let attention_bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    // mlx-lm asks for all of them.
    let multiplier = |key: &str| config.number(key, 1e-6..=1e6);
    let scale = multiplier("attention_multiplier")?;
    let residual = multiplier("residual_multiplier")?;
    let mut model = decoder.model(|layer| {
        let mut attention =
            decoder.attention(layer, &rope).with_biases(attention_bias, attention_bias);
        attention.scale = scale;
        let feed_forward = decoder.gated(layer).with_biases(mlp_bias);
        let mut layer = decoder.layer(layer, attention, feed_forward);
        layer.residual = Some(residual);
        Ok(layer)
    })?;
    model.embedding.scale = Some(multiplier("embedding_multiplier")?);
    model.logit_divisor = Some(multiplier("logits_scaling")?);
    Ok(model)
}
