//! Qwen 3 with experts (arXiv:2505.09388): Qwen 3 whose feed-forward part is, in most layers, a
//! mixture of experts, chosen by a softmax over all of them.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_activation};
use super::mixture::{Mixture, USUAL_NAMES, expert_counts};
use super::qwen2;
use crate::architecture::{Architecture, FeedForward, Routing};
use crate::model_dir::ModelError;
use crate::model_dir::limits::{MAX_LAYERS, MAX_WIDTH};

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(config, &Defaults::UNTIED)?;
    expect_activation(config, &["silu"])?;
    let rope = decoder.rope(config)?;
    let windows = qwen2::windows(config, decoder.num_hidden_layers)?;
    let biased = config.flag("attention_bias", false)?;
    let (count, chosen) = expert_counts(config, "num_experts", "num_experts_per_tok")?;
    let inner = config.count("moe_intermediate_size", 1..=MAX_WIDTH)?;
    let mixture = Mixture { count, chosen, inner, names: USUAL_NAMES };
    let normalized = config.flag("norm_topk_prob", false)?;
    let step = config.optional_count("decoder_sparse_step", 1..=MAX_LAYERS)?.unwrap_or(1);
    let dense = config.counts("mlp_only_layers")?;
    decoder.model(|layer| {
        let attention = decoder
            .attention(layer, &rope)
            .with_biases(biased, biased)
            .with_head_norms(decoder.head_norms(layer))
            .within(windows.of(layer));
        let is_sparse = !dense.contains(&layer) && (layer + 1).is_multiple_of(step);
        let feed_forward = if is_sparse {
            let path = format!("{}.mlp", decoder.path(layer));
            let routing = Routing::SoftmaxThenChoose { normalized };
            FeedForward::Experts(Box::new(mixture.experts(source, &decoder, &path, routing)))
        } else {
            decoder.gated(layer)
        };
        Ok(decoder.layer(layer, attention, feed_forward))
    })
}
