//! gpt-oss (arXiv:2508.10925): attention that may look at nothing (sinks), a window on every other
//! layer, and experts with biases and a clamped gate.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::mixture::expert_counts;
use super::rope::Asked;
use super::windows::Windows;
use crate::architecture::{
    Activation, Architecture, Experts, FeedForward, Routing, Sinks, Stack, Stored,
};
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults { head_dim: Some(64), ..Defaults::NONE })?;
    expect_silu(config)?;
    let asked = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
    let rope = Asked { theta: 150_000.0, ..asked }.read(config)?;
    let slides = |layer: u32| layer.is_multiple_of(2);
    let windows = Windows::read(config, decoder.num_hidden_layers, Some(128), slides)?;
    let biased = config.flag("attention_bias", true)?;
    let limit = config.optional_number("swiglu_limit", 1e-3..=1e9)?.unwrap_or(7.0);
    if config.optional_number("swiglu_alpha", 0.0..=1e3)?.is_some_and(|alpha| alpha != 1.702) {
        return Err(config.problem("swiglu_alpha", "is not supported; expected 1.702"));
    }
    let (count, chosen) = expert_counts(config, "num_local_experts", "num_experts_per_tok")?;
    config.agrees("experts_per_token", chosen, "num_experts_per_tok")?;
    decoder.model(|layer| {
        let path = decoder.path(layer);
        let mut attention =
            decoder.attention(layer, &rope).with_biases(biased, biased).within(windows.of(layer));
        let name = format!("{path}.self_attn.sinks");
        attention.sinks = Some(Sinks { name, first: 0, of: attention.heads });
        let [gate, up, down] = experts(source, &decoder, &format!("{path}.mlp.experts"), count);
        let router =
            decoder.linear(&format!("{path}.mlp.router"), count, decoder.hidden_size, true);
        let experts = Experts {
            router,
            routes_wide: false,
            routing: Routing::ChooseThenSoftmax { scales: None },
            chosen,
            gate,
            up,
            down,
            activation: Activation::ClampedSwish { limit },
            shared: None,
        };
        Ok(decoder.layer(layer, attention, FeedForward::Experts(Box::new(experts))))
    })
}

/// Gate, up and down: apart as MLX has them, or in OpenAI's blocks, where the rows of gate and up
/// take turns.
fn experts(source: &Source<'_>, decoder: &Decoder, path: &str, count: u32) -> [Stack; 3] {
    let (hidden, inner) = (decoder.hidden_size, decoder.intermediate_size);
    let stack = |name: &str, rows, columns, blocks: &str, first, step| {
        let mut each = decoder.linear(&format!("{path}.{name}"), rows, columns, true);
        let module = format!("{path}.{blocks}");
        if (source.has)(&format!("{module}_blocks")) {
            each.stored = Stored::Blocks { module, first, step };
        }
        Stack { count, each }
    };
    [
        stack("gate_proj", inner, hidden, "gate_up_proj", 0, 2),
        stack("up_proj", inner, hidden, "gate_up_proj", 1, 2),
        stack("down_proj", hidden, inner, "down_proj", 0, 1),
    ]
}
