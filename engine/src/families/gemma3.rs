//! Gemma 3 (arXiv:2503.19786), the text part: most layers see a window and have positions of their
//! own; every so-many-th sees everything.

use super::Source;
use super::decoder::{Decoder, Defaults, Windows, expect_activation};
use super::rope;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;
use crate::model_dir::limits::{MAX_LAYERS, MAX_VOCAB};

/// What Google's first models have where a file is silent.
const DEFAULTS: Defaults = Defaults {
    tied: true,
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    eps: Some(1e-6),
    vocab: Some(262_208),
    context: Some(131_072),
};

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    build(source, Decoder::read(&source.config, &DEFAULTS)?)
}

/// The language model inside a multimodal one; the rest of its files is left alone.
pub(super) fn inside_multimodal(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = source
        .config
        .section("text_config")?
        .ok_or_else(|| source.config.problem("text_config", "is missing"))?;
    // mlx-lm takes the vocabulary from outside, Hugging Face from inside.
    let vocab = source.config.optional_count("vocab_size", 1..=MAX_VOCAB)?;
    let defaults = Defaults { vocab: vocab.or(DEFAULTS.vocab), ..DEFAULTS };
    let decoder = Decoder::read(&config, &defaults)?.below("language_model");
    build(&Source { config, has: source.has }, decoder)
}

fn build(
    Source { config, has }: &Source<'_>,
    decoder: Decoder,
) -> Result<Architecture, ModelError> {
    let mut decoder = decoder.with_norms_from_one();
    expect_activation(config, &["gelu_pytorch_tanh"])?;
    decoder.tie_word_embeddings = !has(&format!("{}.weight", decoder.head_module()));
    let context = decoder.max_position_embeddings;
    let everywhere = rope::read(config, decoder.head_dim, context, 1_000_000.0)?;
    let theta = rope::theta(config, "rope_local_base_freq", rope::DEFAULT_THETA)?;
    let nearby = rope::plain(config, decoder.head_dim, theta)?;
    let pattern = config.optional_count("sliding_window_pattern", 1..=MAX_LAYERS)?.unwrap_or(6);
    let windows = Windows::read(config, decoder.num_hidden_layers, |layer| {
        !(layer + 1).is_multiple_of(pattern)
    })?;
    let scalar = config.optional_number("query_pre_attn_scalar", 1e-3..=1e9)?.unwrap_or(256.0);
    let mut model = decoder.model(|layer| {
        let window = windows.of(layer);
        let rope = if window.is_some() { &nearby } else { &everywhere };
        let mut attention = decoder
            .attention(layer, rope)
            .with_head_norms(decoder.head_norms(layer))
            .within(window);
        attention.scale = scalar.sqrt().recip();
        let mut layer = decoder.sandwich(layer, attention);
        layer.clips_sums = true;
        Ok(layer)
    })?;
    // Rounded as in training, whatever the type that it is computed in.
    model.embedding.scale = Some(rounded_to_bf16((decoder.hidden_size as f32).sqrt()));
    Ok(model)
}

/// The nearest number with the upper half of the bits only; of two equally near, the even one.
const fn rounded_to_bf16(number: f32) -> f32 {
    let bits = number.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::rounded_to_bf16;

    #[test]
    fn roots_of_widths_as_google_rounds_them() {
        assert_eq!(rounded_to_bf16(2560_f32.sqrt()), 50.5);
        assert_eq!(rounded_to_bf16(1152_f32.sqrt()), 34.0);
        assert_eq!(rounded_to_bf16(2.0), 2.0);
    }
}
