//! Gemma 3 (arXiv:2503.19786), the text part: most layers see a window and have positions of their
//! own; every so-many-th sees everything.

use super::Source;
use super::decoder::{Decoder, Defaults, Head};
use super::gemma2::{gemma_activation, softcap};
use super::inside;
use super::rope::{Asked, EVERYWHERE, NEARBY};
use super::windows::Windows;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;
use crate::model_dir::limits::{MAX_LAYERS, MAX_VOCAB};

/// What Google's first models have where a file is silent.
const DEFAULTS: Defaults = Defaults {
    head: Head::Embedding,
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    eps: Some(1e-6),
    vocab: Some(262_208),
    context: Some(131_072),
};

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    build(source, Decoder::read(source, &DEFAULTS)?)
}

/// The language model inside a multimodal one.
pub(super) fn inside_multimodal(source: &Source<'_>) -> Result<Architecture, ModelError> {
    // mlx-lm takes the vocabulary from outside, Hugging Face from inside.
    let vocab = source.config.optional_count("vocab_size", 1..=MAX_VOCAB)?;
    let defaults = Defaults { vocab: vocab.or(DEFAULTS.vocab), ..DEFAULTS };
    inside::text_model(source, &["gemma3_text"], |source| {
        build(source, Decoder::read(source, &defaults)?)
    })
}

fn build(Source { config, .. }: &Source<'_>, decoder: Decoder) -> Result<Architecture, ModelError> {
    let decoder = decoder.with_norms_from_one();
    gemma_activation(config)?;
    let nearby = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
    let nearby = Asked { layers: Some(NEARBY), ..nearby };
    let everywhere = Asked { theta: 1_000_000.0, layers: Some(EVERYWHERE), ..nearby };
    let (nearby, everywhere) = (nearby.read(config)?, everywhere.read(config)?);
    let pattern = config.optional_count("sliding_window_pattern", 1..=MAX_LAYERS)?.unwrap_or(6);
    if config.is_silent("sliding_window") {
        config.doubt_silence("sliding_window");
    }
    let slides = |layer: u32| !(layer + 1).is_multiple_of(pattern);
    let windows = Windows::read(config, decoder.num_hidden_layers, Some(4096), slides)?;
    let attention_cap = softcap(config, "attn_logit_softcapping", None)?;
    let biased = config.flag("attention_bias", false)?;
    let scalar = config.optional_number("query_pre_attn_scalar", 1e-3..=1e9)?.unwrap_or(256.0);
    let mut model = decoder.model(|layer| {
        let rope = if windows.slides(layer) { &nearby } else { &everywhere };
        let mut attention = decoder
            .attention(layer, rope)
            .with_biases(biased, biased)
            .with_head_norms(decoder.head_norms(layer))
            .within(windows.of(layer));
        attention.softcap = attention_cap;
        attention.scale = scalar.sqrt().recip();
        let mut layer = decoder.sandwich(layer, attention);
        layer.clips_sums = true;
        Ok(layer)
    })?;
    model.logit_softcap = softcap(config, "final_logit_softcapping", None)?;
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
