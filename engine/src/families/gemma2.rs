//! Gemma 2 (arXiv:2408.00118): norms around both parts of a layer, a window on every other layer,
//! and scores bent to stay within bounds. mlx-lm overlooks the window; Google's code does not.

use super::Source;
use super::decoder::{Decoder, Defaults, Windows, expect_activation};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(Source { config, .. }: &Source<'_>) -> Result<Architecture, ModelError> {
    let decoder = Decoder::read(config, &Defaults::TIED)?.with_norms_from_one();
    expect_activation(config, &["gelu_pytorch_tanh", "gelu"])?;
    let rope = decoder.rope(config)?;
    let windows =
        Windows::read(config, decoder.num_hidden_layers, |layer| layer.is_multiple_of(2))?;
    let cap = |key: &str, default| {
        Ok::<_, ModelError>(config.optional_number(key, 1e-3..=1e9)?.unwrap_or(default))
    };
    let scale = cap("query_pre_attn_scalar", 144.0)?.sqrt().recip();
    let softcap = cap("attn_logit_softcapping", 50.0)?;
    let mut model = decoder.model(|layer| {
        let mut attention = decoder.attention(layer, &rope).within(windows.of(layer));
        attention.scale = scale;
        attention.softcap = Some(softcap);
        Ok(decoder.sandwich(layer, attention))
    })?;
    model.embedding.scale = Some((decoder.hidden_size as f32).sqrt());
    model.logit_softcap = Some(cap("final_logit_softcapping", 30.0)?);
    Ok(model)
}
