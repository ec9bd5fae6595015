//! dots.llm1 (arXiv:2506.05767): query and key heads are normed, and from some layer on there are the experts of DeepSeek-V3.
//! The last layers may see a window, as transformers has it; mlx-lm overlooks that.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::mixture::{SigmoidMixture, SparseLayers};
use super::windows::Windows;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    let rope = decoder.rope(config)?;
    config.doubt_silence("norm_topk_prob");
    if config.is_silent("sliding_window") {
        config.doubt_silence("sliding_window");
    }
    let first = config.optional_count("max_window_layers", 0..=u32::MAX)?.unwrap_or(62);
    let windows = Windows::read(config, decoder.num_hidden_layers, None, |layer| layer >= first)?;
    let biased = config.flag("attention_bias", false)?;
    let sparse = SparseLayers { first: 0, in_steps: false, always: true };
    let experts = SigmoidMixture::read(config, &decoder, sparse)?;
    let experts = experts.map(|experts| experts.in_stacks("experts"));
    decoder.model(|layer| {
        let attention = decoder
            .attention(layer, &rope)
            .with_biases(biased, biased)
            .with_head_norms(decoder.head_norms(layer))
            .within(windows.of(layer));
        let feed_forward = SigmoidMixture::or_dense(experts.as_ref(), source, &decoder, layer);
        Ok(decoder.layer(layer, attention, feed_forward))
    })
}
