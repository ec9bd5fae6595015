//! `HunYuan` without experts: query and key heads are normed after they are turned, and the base of positions is stretched by a
//! fixed `alpha`.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_silu};
use super::rope::Asked;
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    let asked = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
    let rope = Asked { by_alpha: true, ..asked }.read(config)?;
    let biased = config.flag("attention_bias", false)?;
    // transformers has norms whatever this says.
    const NORMED: &str = "use_qk_norm";
    if !config.flag(NORMED, true)? {
        return Err(config.problem(NORMED, "is false; models without it are not known"));
    }
    decoder.model(|layer| {
        let path = format!("{}.self_attn", decoder.path(layer));
        let norm = |name: &str| Some(decoder.norm(&format!("{path}.{name}"), decoder.head_dim));
        let mut attention = decoder
            .attention(layer, &rope)
            .with_biases(biased, biased)
            .with_head_norms([norm("query_layernorm"), norm("key_layernorm")]);
        attention.norms_turned = true;
        Ok(decoder.layer(layer, attention, decoder.gated(layer)))
    })
}
