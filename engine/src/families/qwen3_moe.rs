//! Qwen 3 with experts (arXiv:2505.09388): Qwen 3 whose feed-forward part is, in most layers, a
//! mixture of experts, chosen by a softmax over all of them.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::mixture::{Mixture, USUAL_NAMES, USUAL_STACKS, expert_counts};
use super::qwen2;
use crate::architecture::{Architecture, FeedForward, Routing};
use crate::model_dir::ModelError;
use crate::model_dir::limits::{MAX_LAYERS, MAX_WIDTH};

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    build(source, source.config.flag("norm_topk_prob", false)?, false)
}

/// The same in Qwen3-VL: the weights of the chosen add up to one whatever the file says.
pub(super) fn beside_pictures(source: &Source<'_>) -> Result<Architecture, ModelError> {
    build(source, true, true)
}

fn build(
    source: &Source<'_>,
    normalized: bool,
    may_be_turned: bool,
) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    let rope = decoder.rope_of_said_base(config)?;
    let windows = qwen2::windows_from(config, decoder.num_hidden_layers, 0)?;
    let biased = config.flag("attention_bias", false)?;
    // Transformers 5 writes the latter.
    let names = ["num_experts", "num_local_experts"];
    let name = if config.value(names[0]).is_some() { names[0] } else { names[1] };
    let (count, chosen) = expert_counts(config, name, "num_experts_per_tok")?;
    config.agrees(names[1], count, names[0])?;
    let inner = config.count("moe_intermediate_size", 1..=MAX_WIDTH)?;
    let mixture =
        Mixture { count, chosen, inner, stacks: USUAL_STACKS, names: USUAL_NAMES, may_be_turned };
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
