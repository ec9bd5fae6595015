//! `MiniMax` M2: a part of each head is turned, all query heads are normed together and all key heads too, and every layer has
//! experts that are judged by a sigmoid. The router computes in 32 bits.

use super::Source;
use super::decoder::{Decoder, Defaults, expect_activation, expect_silu};
use super::mixture::{Mixture, USUAL_STACKS, expert_counts};
use super::rope::Asked;
use crate::architecture::{Architecture, FeedForward, Rope, Routing};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    let config = &source.config;
    let decoder = Decoder::read(source, &Defaults::NONE)?;
    expect_silu(config)?;
    expect_activation(config, "scoring_func", &["sigmoid"])?;
    expect_activation(config, "qk_norm_type", &["per_layer"])?;
    for (key, expected) in [("use_routing_bias", true), ("use_qk_norm", true)] {
        if config.flag(key, expected)? != expected {
            return Err(config.problem(key, "is false; models without it are not known"));
        }
    }
    if config.counts("attn_type_list")?.iter().any(|kind| *kind != 1) {
        return Err(config.problem("attn_type_list", "names another kind of attention than 1"));
    }
    // Of an expert that every token passes: M2 has none.
    config.optional_count("shared_intermediate_size", 0..=0)?;
    let rope = rope(config, &decoder)?;
    let (count, chosen) = expert_counts(config, "num_local_experts", "num_experts_per_tok")?;
    let mixture = Mixture {
        count,
        chosen,
        inner: decoder.intermediate_size,
        stacks: USUAL_STACKS,
        names: ["w1", "w3", "w2"],
        may_be_turned: false,
    };
    decoder.model(|layer| {
        let path = format!("{}.block_sparse_moe", decoder.path(layer));
        let routing = Routing::Sigmoid {
            correction: format!("{path}.e_score_correction_bias"),
            groups: 1,
            chosen_groups: 1,
            normalized: true,
            scale: 1.0,
        };
        let mut experts = mixture.experts(source, &decoder, &path, routing);
        experts.routes_wide = true;
        let attention = decoder.attention(layer, &rope).with_head_norms(decoder.joint_norms(layer));
        Ok(decoder.layer(layer, attention, FeedForward::Experts(Box::new(experts))))
    })
}

/// `MiniMax` says how many numbers of a head are turned, transformers which part of it.
fn rope(config: &Section<'_>, decoder: &Decoder) -> Result<Rope, ModelError> {
    const KEY: &str = "rotary_dim";
    let turned = config.optional_count(KEY, 2..=decoder.head_dim)?;
    let part = turned.map_or(1.0, |turned| turned as f32 / decoder.head_dim as f32);
    let asked = Asked::usual(decoder.head_dim, decoder.max_position_embeddings);
    let rope = Asked { theta: 5_000_000.0, partial: true, part, ..asked }.read(config)?;
    match turned.filter(|turned| *turned != rope.dims) {
        None => Ok(rope),
        Some(turned) => {
            let problem =
                format!("is {turned}, but `partial_rotary_factor` makes it {}", rope.dims);
            Err(config.problem(KEY, problem))
        }
    }
}
