//! GLM-4.5 to 4.7 with experts (arXiv:2508.06471): half of each head is turned, query and key heads may be normed, and from
//! some layer on there are the experts of DeepSeek-V3.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::mixture::{SigmoidMixture, SparseLayers};
use super::rope::Asked;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    build(source, 0.5, 1)
}

/// A model that turns that part of each head and has experts from that layer on, unless the file says otherwise.
pub(super) fn build(
    source: &Source<'_>,
    part: f32,
    first: u32,
) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    let asked = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
    let rope = Asked { partial: true, part, ..asked }.read(config)?;
    let biased = config.flag("attention_bias", false)?;
    let normed = config.flag("use_qk_norm", false)?;
    let sparse = SparseLayers { first, in_steps: false, always: true };
    let experts = SigmoidMixture::read(config, &decoder, sparse)?;
    let mut model = decoder.model(|layer| {
        let mut attention = decoder.attention(layer, &rope).with_biases(biased, false);
        if normed {
            attention = attention.with_head_norms(decoder.head_norms(layer));
        }
        let feed_forward = SigmoidMixture::or_dense(experts.as_ref(), source, &decoder, layer);
        Ok(decoder.layer(layer, attention, feed_forward))
    })?;
    model.extras.extend(decoder.guessing_layers(config)?);
    Ok(model)
}
