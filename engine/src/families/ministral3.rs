//! Ministral 3: a Llama whose queries grow with their position, beyond the context that the model was trained with first.

use super::Source;
use super::decoder::{Decoder, Defaults, Head, expect_silu};
use super::rope::Asked;
use super::windows::Windows;
use crate::architecture::{Architecture, QueryGrowth};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::MAX_CONTEXT;

const GROWTH: &str = "llama_4_scaling_beta";

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults { head: Head::OwnIfThere, ..Defaults::NONE })?;
    expect_silu(config)?;
    config.doubt_silence("num_key_value_heads");
    config.doubt_silence("head_dim");
    let asked = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
    let others = &[GROWTH, "max_position_embeddings"];
    let rope = Asked { theta_is_doubtful: true, others, ..asked }.read(config)?;
    let growth = growth(config, decoder.max_position_embeddings)?;
    // transformers has every layer see a window if there is one, mlx-lm those of a list.
    let windows = Windows::read(config, decoder.num_hidden_layers, None, |_| true)?;
    if (0..decoder.num_hidden_layers).any(|layer| windows.of(layer).is_some()) {
        let problem = "is not null; models with windows are not known";
        return Err(config.problem("sliding_window", problem));
    }
    decoder.model(|layer| {
        let mut attention = decoder.attention(layer, &rope);
        attention.growth = Some(growth);
        Ok(decoder.layer(layer, attention, decoder.gated(layer)))
    })
}

/// As `rope_parameters` says it.
fn growth(config: &Section<'_>, max_context: u32) -> Result<QueryGrowth, ModelError> {
    const PLACE: &str = "rope_parameters";
    let said = config.section(PLACE)?.ok_or_else(|| config.problem(PLACE, "is missing"))?;
    said.agrees("max_position_embeddings", max_context, "max_position_embeddings")?;
    let context = said.count("original_max_position_embeddings", 1..=MAX_CONTEXT)?;
    Ok(QueryGrowth { rate: said.number(GROWTH, 0.0..=1e3)?, context })
}
