//! What a configuration says that no family asked for.
//!
//! A family claims a key by reading it. What is left over is harmless, or changes numbers and is
//! refused unless it says "none", or is not known here at all: then nobody can tell, and whoever
//! keeps the folder is warned by name. Refusing those as well would refuse half of all published
//! folders, whose authors and tools write down what they please.

use serde_json::Value;

use crate::model_dir::ModelError;
use crate::model_dir::json::{Section, brief};

/// The keys of `config` that nobody asked for and that are not known, as messages name them.
///
/// # Errors
/// When one of them is known to change numbers and does not say "none", or one that was asked for is
/// silent where that can mean two things.
pub(crate) fn unknown(config: &Section<'_>) -> Result<Vec<String>, ModelError> {
    config.expect_no_doubts()?;
    let mut unknown = Vec::new();
    for (key, value) in config.never_asked() {
        if let Some((_, idle)) = CHANGE_NUMBERS.iter().find(|(name, _)| *name == key) {
            if !idle.says_none(value) {
                let problem = format!(
                    "is {}, which changes what the model computes and is not supported for this \
                     `model_type`",
                    brief(value)
                );
                return Err(config.problem(key, problem));
            }
        } else if !is_harmless(key) && !is_off(value) {
            unknown.push(config.path_of(key));
        }
    }
    Ok(unknown)
}

/// Which value of a key that changes numbers changes none.
#[derive(Debug, Clone, Copy)]
enum Idle {
    /// `false`, 0, an empty list or object.
    Off,
    /// One, as of a factor; or off.
    One,
    /// `true`.
    True,
}

impl Idle {
    fn says_none(self, value: &Value) -> bool {
        match self {
            Self::Off => is_off(value),
            Self::One => value.as_f64() == Some(1.0) || value == &Value::Bool(false),
            Self::True => value == &Value::Bool(true),
        }
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Keys by which some family or variant computes otherwise, sorted. A family that supports one reads
/// it, and then it does not come here.
const CHANGE_NUMBERS: &[(&str, Idle)] = &[
    ("add_cross_attention", Idle::Off),
    ("alibi", Idle::Off),
    ("attention_bias", Idle::Off),
    ("attention_chunk_size", Idle::Off),
    ("attention_k_eq_v", Idle::Off),
    ("attention_multiplier", Idle::Off),
    ("attention_other_setting", Idle::Off),
    ("attention_out_bias", Idle::Off),
    ("attn_logit_softcapping", Idle::Off),
    ("attn_temperature_tuning", Idle::Off),
    ("clip_qkv", Idle::Off),
    ("compression_config", Idle::Off),
    ("embedding_multiplier", Idle::One),
    ("enable_moe_block", Idle::Off),
    ("final_logit_softcapping", Idle::Off),
    ("first_k_dense_replace", Idle::Off),
    // Phi 4 mini writes both, of attention that other Phis have.
    ("full_attn_mod", Idle::One),
    ("global_head_dim", Idle::Off),
    ("hidden_size_per_layer_input", Idle::Off),
    ("index_topk", Idle::Off),
    ("index_topk_freq", Idle::One),
    ("index_topk_pattern", Idle::Off),
    ("indexer_types", Idle::Off),
    ("interleaved_sliding_window", Idle::Off),
    ("interpolate_factor", Idle::One),
    ("is_causal", Idle::True),
    ("is_encoder_decoder", Idle::Off),
    ("kv_lora_rank", Idle::Off),
    ("layer_types", Idle::Off),
    ("lm_head_bias", Idle::Off),
    ("logit_cap", Idle::Off),
    ("logit_scale", Idle::One),
    ("logit_softcapping", Idle::Off),
    ("logits_scaling", Idle::One),
    ("logits_soft_cap", Idle::Off),
    ("mlp_bias", Idle::Off),
    ("mlp_layer_types", Idle::Off),
    // mlx-lm runs the program in it instead.
    ("model_file", Idle::Off),
    ("moe_layer_freq", Idle::One),
    ("moe_layers_enum", Idle::Off),
    ("moe_num_experts", Idle::Off),
    ("mrope_section", Idle::Off),
    ("n_routed_experts", Idle::Off),
    ("n_shared_experts", Idle::Off),
    ("no_rope_layer_interval", Idle::Off),
    ("no_rope_layers", Idle::Off),
    ("num_attention_groups", Idle::Off),
    ("num_experts", Idle::Off),
    ("num_experts_per_tok", Idle::Off),
    ("num_global_key_value_heads", Idle::Off),
    ("num_kv_shared_layers", Idle::Off),
    ("num_local_experts", Idle::Off),
    ("parallel_attn", Idle::Off),
    ("partial_rotary_factor", Idle::One),
    ("partial_rotary_factors", Idle::Off),
    ("per_layer_config", Idle::Off),
    ("qk_layernorm", Idle::Off),
    ("qk_norm", Idle::Off),
    ("qkv_bias", Idle::Off),
    ("query_pre_attn_scalar", Idle::Off),
    ("residual_multiplier", Idle::One),
    ("rope_interleave", Idle::Off),
    ("rope_interleaved", Idle::Off),
    ("rope_local_base_freq", Idle::Off),
    ("rotary_dim", Idle::Off),
    ("rotary_pct", Idle::One),
    ("routed_scaling_factor", Idle::One),
    ("scale_depth", Idle::Off),
    ("scale_emb", Idle::One),
    ("shared_expert_intermediate_size", Idle::Off),
    ("sliding_window_pattern", Idle::Off),
    ("swiglu_alpha", Idle::Off),
    ("swiglu_limit", Idle::Off),
    ("swiglu_limits", Idle::Off),
    ("swiglu_limits_shared", Idle::Off),
    ("use_alibi", Idle::Off),
    ("use_bias", Idle::Off),
    ("use_bidirectional_attention", Idle::Off),
    ("use_dynamic_ntk", Idle::Off),
    ("use_head_wise_attn_gate", Idle::Off),
    ("use_logn_attn", Idle::Off),
    ("use_mrope", Idle::Off),
    ("use_parallel_residual", Idle::Off),
    ("use_qk_norm", Idle::Off),
    ("use_qkv_bias", Idle::Off),
    ("use_sliding_window", Idle::Off),
    ("yarn_only_types", Idle::Off),
];

/// Whether a key is about something else than what the model computes from tokens.
fn is_harmless(key: &str) -> bool {
    let ends = |end: &&str| key.ends_with(end);
    key.starts_with('_') || HARMLESS_ENDS.iter().any(ends) || HARMLESS.contains(&key)
}

const HARMLESS_ENDS: &[&str] =
    &["_coef", "_drop", "_dropout", "_pdrop", "_token", "_token_id", "_token_index", "_version"];

/// Training, tools, other modalities, and what follows from keys that are read; sorted.
const HARMLESS: &[&str] = &[
    "architectures",
    "attn_implementation",
    "audio_config",
    "auto_map",
    "aux_loss_alpha",
    "cache_implementation",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "early_stopping",
    "ep_size",
    "expert_router_load_balancing_loss",
    "finetuning_task",
    "gradient_checkpointing",
    "head_dim",
    "id2label",
    "ignore_index",
    // Of layers that guess at tokens after the next one.
    "index_share_for_mtp_iteration",
    "initial_context_length",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "keep_in_fp32",
    "label2id",
    "length_penalty",
    // Of positions that are not stretched; and Qwen's, of windows that are off.
    "max_length",
    "max_model_len",
    "max_seq_len",
    "max_sequence_length",
    "max_window_layers",
    "mm_tokens_per_image",
    "model_max_length",
    "model_type",
    "mtp_layer_types",
    "mtp_mlp_layer_types",
    // Of layers that guess at tokens after the next one, as MiniMax calls them.
    "mtp_transformer_layers",
    "multimodal_projector_bias",
    "num_beam_groups",
    "num_beams",
    "num_mtp_modules",
    "num_return_sequences",
    "original_max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "projection_hidden_size",
    "projection_layer_norm_eps",
    "projector_hidden_act",
    "quantization",
    "quantization_config",
    "repetition_penalty",
    "return_dict",
    "rope_traditional",
    "router_jitter_noise",
    "seq_aux",
    "spatial_merge_size",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_weights",
    "typical_p",
    "unsloth_fixed",
    "use_cache",
    "use_flash_attn",
    "use_mtp",
    "use_unified_vision_chunk",
    "video_placeholder",
    "vision_config",
    "vision_feature_layer",
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Map, json};

    use super::*;

    fn unknown_in(value: Value) -> Result<Vec<String>, String> {
        let Value::Object(map) = value else { panic!("{value}") };
        let map: Map<String, Value> = map;
        let root = Section::root(Path::new("config.json"), &map);
        let _: Option<&Value> = root.value("read");
        unknown(&root).map_err(|error| error.to_string())
    }

    #[test]
    fn the_lists_are_in_order_and_apart() {
        let names = || CHANGE_NUMBERS.iter().map(|(name, _)| *name);
        assert!(names().is_sorted());
        assert!(HARMLESS.is_sorted());
        assert!(names().all(|name| !is_harmless(name)));
    }

    #[test]
    fn what_is_read_off_or_about_something_else_is_passed_over() {
        let config = json!({
            "read": {"anything": 1}, "nothing": null, "no": false, "zero": 0, "_private": 1,
            "hidden_dropout": 0.1, "pad_token_id": 7, "transformers_version": "5.24.0",
            "clip_qkv": null, "use_qk_norm": false, "logits_scaling": 1.0, "is_causal": true,
        });
        assert_eq!(unknown_in(config), Ok(vec![]));
    }

    #[test]
    fn what_changes_numbers_is_refused_and_what_is_unheard_of_is_named() {
        assert_eq!(
            unknown_in(json!({"clip_qkv": 8.0})).unwrap_err(),
            "config.json: `clip_qkv` is 8.0, which changes what the model computes and is not \
             supported for this `model_type`"
        );
        assert!(unknown_in(json!({"residual_multiplier": 0.22})).is_err());
        assert!(unknown_in(json!({"is_causal": false})).is_err());
        assert_eq!(unknown_in(json!({"flux_capacitor": 1.21})), Ok(vec!["flux_capacitor".into()]));
    }
}
