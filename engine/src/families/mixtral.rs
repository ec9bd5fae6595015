//! Mixtral (arXiv:2401.04088): a Mistral whose feed-forward part is a mixture of experts, the best
//! of which are weighed against each other.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::mixture::{Mixture, USUAL_STACKS, expert_counts};
use super::rope::Asked;
use super::windows::Windows;
use crate::architecture::{Architecture, FeedForward, Routing};
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    let asked = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
    let rope = Asked { theta: 1_000_000.0, ..asked }.read(config)?;
    let windows = Windows::read(config, decoder.num_hidden_layers, None, |_| true)?;
    let (count, chosen) = expert_counts(config, "num_local_experts", "num_experts_per_tok")?;
    let (inner, names) = (decoder.intermediate_size, ["w1", "w3", "w2"]);
    let mixture =
        Mixture { count, chosen, inner, stacks: USUAL_STACKS, names, may_be_turned: false };
    decoder.model(|layer| {
        let path = format!("{}.block_sparse_moe", decoder.path(layer));
        let experts =
            mixture.experts(source, &decoder, &path, Routing::ChooseThenSoftmax { scales: None });
        let attention = decoder.attention(layer, &rope).within(windows.of(layer));
        Ok(decoder.layer(layer, attention, FeedForward::Experts(Box::new(experts))))
    })
}
