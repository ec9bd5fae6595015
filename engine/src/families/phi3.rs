//! Phi 3 and 4 (arXiv:2404.14219): queries, keys and values lie in one matrix, gate and value in
//! another; positions turn a part of each head.

use super::Source;
use super::decoder::{Decoder, Defaults, Windows, expect_activation};
use super::rope;
use crate::architecture::{Architecture, FeedForward, Linear, Stored};
use crate::model_dir::ModelError;

pub(super) fn architecture(Source { config, .. }: &Source<'_>) -> Result<Architecture, ModelError> {
    let decoder = Decoder::read(config, &Defaults::UNTIED)?;
    expect_activation(config, &["silu"])?;
    let turned = config.optional_number("partial_rotary_factor", 1e-3..=1.0)?.unwrap_or(1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a head's width, rounded down as in mlx-lm"
    )]
    let dims = (decoder.head_dim as f32 * turned) as u32;
    let context = decoder.max_position_embeddings;
    let rope = rope::read(config, dims, context, rope::DEFAULT_THETA)?;
    let windows = Windows::read(config, decoder.num_hidden_layers, |_| true)?;
    decoder.model(|layer| {
        let path = decoder.path(layer);
        let mut attention = decoder.attention(layer, &rope).within(windows.of(layer));
        let parts = [&mut attention.query, &mut attention.key, &mut attention.value];
        lie_in(&format!("{path}.self_attn.qkv_proj"), parts);
        let mut feed_forward = decoder.gated(layer);
        if let FeedForward::Gated(gated) = &mut feed_forward {
            lie_in(&format!("{path}.mlp.gate_up_proj"), [&mut gated.gate, &mut gated.up]);
        }
        Ok(decoder.layer(layer, attention, feed_forward))
    })
}

/// Has the rows of `parts` lie one after the other in the matrix of `module`.
fn lie_in<const N: usize>(module: &str, parts: [&mut Linear; N]) {
    let of = parts.iter().map(|part| part.rows).sum();
    let mut first = 0;
    for part in parts {
        part.stored = Stored::Rows { module: module.to_owned(), first, of };
        first += part.rows;
    }
}
