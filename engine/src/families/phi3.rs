//! Phi 3 and 4 (arXiv:2404.14219): queries, keys and values lie in one matrix, gate and value in
//! another; positions turn a part of each head.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::rope::Asked;
use super::windows::Windows;
use crate::architecture::{Architecture, FeedForward, Linear, Stored};
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    let asked = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
    let rope = Asked { partial: true, ..asked }.read(config)?;
    let windows = Windows::read(config, decoder.num_hidden_layers, None, |_| true)?;
    decoder.model(|layer| {
        let path = decoder.path(layer);
        let mut attention = decoder.attention(layer, &rope).within(windows.of(layer));
        let inward = [&mut attention.query, &mut attention.key].into_iter();
        lie_in(&format!("{path}.self_attn.qkv_proj"), inward.chain(&mut attention.value).collect());
        let mut feed_forward = decoder.gated(layer);
        if let FeedForward::Gated(gated) = &mut feed_forward {
            lie_in(&format!("{path}.mlp.gate_up_proj"), vec![&mut gated.gate, &mut gated.up]);
        }
        Ok(decoder.layer(layer, attention, feed_forward))
    })
}

/// Has the rows of `parts` lie one after the other in the matrix of `module`.
fn lie_in(module: &str, parts: Vec<&mut Linear>) {
    let of = parts.iter().map(|part| part.rows).sum();
    let mut first = 0;
    for part in parts {
        part.stored = Stored::Rows { module: module.to_owned(), first, of };
        first += part.rows;
    }
}
