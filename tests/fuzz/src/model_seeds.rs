//! A small sound model of every family, to be broken.
//!
//! Only configurations are written down here. Which tensors belong to them the product says itself:
//! what it misses is added until the model opens.

use std::sync::LazyLock;

use planaria_engine::model_dir::{ModelDir, ModelError};
use serde_json::{Map, Value, json};

use crate::checkpoint::{Entry, FOLDER, write_weights};

/// A model that opens.
pub(crate) struct Seed {
    pub(crate) config: Map<String, Value>,
    pub(crate) tensors: Vec<Entry>,
}

pub(crate) static SEEDS: LazyLock<Vec<Seed>> = LazyLock::new(|| {
    let seeds: Vec<Seed> =
        variants().into_iter().map(|(config, has)| complete(config, has)).collect();
    let has_seed = |name: &&str| {
        let of = |seed: &Seed| seed.config.get("model_type").and_then(Value::as_str) == Some(*name);
        seeds.iter().any(of)
    };
    let missing: Vec<String> =
        families().into_iter().filter(|name| !has_seed(&name.as_str())).collect();
    assert!(missing.is_empty(), "give a configuration for {missing:?}");
    seeds
});

/// Configurations, each with tensors that lead to another way of storing the same model.
fn variants() -> Vec<(Value, Vec<Entry>)> {
    let sizes = |family: &str, more: Value| {
        let mut config = json!({
            "model_type": family, "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 16, "rms_norm_eps": 1e-5, "vocab_size": 32,
            "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let float = |name: &str, shape: &[u64]| Entry::new(name, "F32", shape);
    let layer = "model.layers.0.";
    let yarn = json!({"rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0,
        "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
    }});
    let llama3 = json!({"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }, "tie_word_embeddings": false, "attention_bias": true, "mlp_bias": true});
    let long = json!({"rope_scaling": {
        "type": "longrope", "long_factor": [1, 1, 1, 1, 1, 1, 1, 2], "short_factor": [1],
    }, "original_max_position_embeddings": 32, "partial_rotary_factor": 1.0});
    let quantized = json!({"quantization": {"group_size": 32, "bits": 4, "mode": "affine"}});
    let experts = json!({
        "num_local_experts": 4, "num_experts_per_tok": 2,
        "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16,
    });
    let mut qwen_experts = json!({
        "num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [1], "use_sliding_window": true,
        "rope_theta": 1e6,
    });
    qwen_experts.as_object_mut().unwrap().extend(experts.as_object().unwrap().clone());
    let qwen = json!({"use_sliding_window": true, "sliding_window": 8, "rope_theta": 1e6});
    let qwen_parameters = json!({"rope_parameters": {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 1e6,
    }});
    let mut deepseek = json!({
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "kv_lora_rank": 16,
        "q_lora_rank": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_key_value_heads": 2,
        "routed_scaling_factor": 2.5, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    });
    deepseek.as_object_mut().unwrap().extend(yarn.as_object().unwrap().clone());
    let mut indexed = deepseek.clone();
    for (key, value) in [("index_n_heads", 2), ("index_head_dim", 8), ("index_topk", 4)] {
        indexed[key] = json!(value);
    }
    let mut indexed_glm = indexed.clone();
    indexed_glm["rope_parameters"] = json!({"rope_theta": 1e6, "rope_type": "default"});
    indexed_glm["indexer_types"] = json!(["full", "full"]);
    indexed_glm.as_object_mut().unwrap().remove("rope_scaling");
    let mut glm = json!({
        "partial_rotary_factor": 0.5, "use_qk_norm": true, "attention_bias": true,
        "num_nextn_predict_layers": 1, "rope_theta": 1e6, "mlp_layer_types": ["dense", "sparse"],
    });
    for (key, value) in deepseek.as_object().unwrap() {
        if key.starts_with("n_")
            || key.contains("moe_i")
            || key.contains("top")
            || key.contains("routed")
        {
            glm[key] = value.clone();
        }
    }
    glm["num_experts_per_tok"] = json!(2);
    let minimax = json!({
        "rotary_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "use_qk_norm": true,
        "shared_intermediate_size": 0, "scoring_func": "sigmoid", "attn_type_list": [1, 1],
        "qk_norm_type": "per_layer", "use_routing_bias": true, "rope_theta": 5e6,
    });
    let mut glm_lite = deepseek.clone();
    glm_lite["rope_theta"] = json!(1e6);
    let text = sizes("gemma3_text", json!({"sliding_window": 8, "sliding_window_pattern": 2}));
    let inside = json!({"model_type": "gemma3", "vocab_size": 32, "text_config": text});
    let beside_pictures = |family: &str, text: Value| json!({"model_type": family, "vocab_size": 32, "tie_word_embeddings": true, "text_config": text});
    let of_pictures = json!({"rope_theta": 5e6, "rope_scaling": {
        "rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": true,
    }});
    let mut of_pictures_with_experts = qwen_experts.clone();
    of_pictures_with_experts.as_object_mut().unwrap().remove("layer_types");
    of_pictures_with_experts["use_sliding_window"] = json!(false);
    let turned = |name: &str, shape: &[u64]| {
        float(
            &format!("model.language_model.{}mlp.experts.{name}", &layer["model.".len()..]),
            shape,
        )
    };
    let gemma4 = json!({
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8,
        "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": true,
        "num_key_value_heads": 2, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 30.0, "enable_moe_block": true, "num_experts": 4,
        "top_k_experts": 2, "moe_intermediate_size": 32,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    });
    let mut gemma4_by_layer = gemma4.clone();
    for key in ["global_head_dim", "num_global_key_value_heads", "enable_moe_block"] {
        gemma4_by_layer[key] = Value::Null;
    }
    for key in ["num_experts", "top_k_experts", "moe_intermediate_size"] {
        gemma4_by_layer[key] = Value::Null;
    }
    gemma4_by_layer["per_layer_config"] = json!({"1": {"head_dim": 32, "num_key_value_heads": 1}});
    let step = json!({
        "num_key_value_heads": null, "num_attention_groups": 1, "tie_word_embeddings": false,
        "attention_other_setting": {"num_attention_heads": 4, "num_attention_groups": 1},
        "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8,
        "rope_theta": [5e6, 1e4], "partial_rotary_factors": [0.5, 1.0], "moe_layers_enum": "1",
        "moe_num_experts": 4, "moe_top_k": 2, "moe_intermediate_size": 32, "share_expert_dim": 32,
        "moe_router_scaling_factor": 3.0, "use_head_wise_attn_gate": true,
        "swiglu_limits": [0, 7.0], "swiglu_limits_shared": [null, 16.0],
    });
    let mut dots = glm.clone();
    for key in ["partial_rotary_factor", "use_qk_norm", "num_nextn_predict_layers"] {
        dots[key] = Value::Null;
    }
    dots["norm_topk_prob"] = json!(true);
    dots["sliding_window"] = json!(8);
    dots["max_window_layers"] = json!(1);
    let mut solar = glm.clone();
    solar["mlp_layer_types"] = Value::Null;
    let granite = json!({
        "attention_multiplier": 0.1, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
        "residual_multiplier": 0.2,
    });
    let olmo = json!({
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8,
        "rope_theta": 5e5, "rope_scaling": {
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32,
        },
    });
    let ministral = json!({"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1,
    }});
    let hunyuan = json!({"use_qk_norm": true, "rope_scaling": {
        "type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "mscale": 1.0,
    }});
    let fake = json!({"bytes_per_layer": 1000, "step_micros": 0});
    let kv_b = (0..2)
        .map(|layer| float(&format!("model.layers.{layer}.self_attn.kv_b_proj.weight"), &[64, 16]));
    let blocks = |name: &str, rows: u64| {
        let path = format!("{layer}mlp.experts.{name}");
        [
            Entry::new(&format!("{path}_blocks"), "U8", &[4, rows, 1, 16]),
            Entry::new(&format!("{path}_scales"), "U8", &[4, rows, 1]),
            Entry::new(&format!("{path}_bias"), "BF16", &[4, rows]),
        ]
    };
    let packed = |module: &str, kind: &str, bits: u64| {
        let path = format!("{layer}{module}");
        [
            Entry::new(&format!("{path}.weight"), "U32", &[32, bits]),
            Entry::new(&format!("{path}.scales"), kind, &[32, 1]),
            Entry::new(&format!("{path}.biases"), kind, &[32, 1]),
        ]
    };
    let published = |said: Value, tensors: &[(&str, &str, &[u64])]| {
        let own = tensors.iter().map(|(kind, dtype, shape)| {
            Entry::new(&format!("{layer}self_attn.q_proj.{kind}"), dtype, shape)
        });
        (sizes("llama", json!({"quantization_config": said})), own.collect::<Vec<Entry>>())
    };
    let integers: [(&str, &str, &[u64]); 4] = [
        ("qweight", "I32", &[4, 32]),
        ("qzeros", "I32", &[1, 4]),
        ("scales", "F16", &[1, 32]),
        ("g_idx", "I32", &[32]),
    ];
    let blocks_of_floats: [(&str, &str, &[u64]); 2] =
        [("weight", "F8_E4M3", &[32, 32]), ("weight_scale_inv", "F32", &[2, 1])];
    vec![
        published(
            json!({"quant_method": "awq", "bits": 4, "version": "gemm"}),
            &[("qweight", "I32", &[32, 4]), integers[1], integers[2]],
        ),
        published(
            json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}),
            &integers,
        ),
        published(json!({"quant_method": "fp8", "weight_block_size": [16, 32]}), &blocks_of_floats),
        published(
            json!({"quant_method": "fp8", "weight_block_size": [16, 32], "scale_fmt": "ue8m0"}),
            &blocks_of_floats,
        ),
        published(
            json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {
                "weights": {"type": "int", "num_bits": 4, "group_size": 32, "symmetric": true},
            }}}),
            &[("weight_packed", "I32", &[32, 4]), ("weight_scale", "BF16", &[32, 1])],
        ),
        published(
            json!({"quant_method": "compressed-tensors"}),
            &[("weight", "F8_E4M3", &[32, 32]), ("weight_scale", "BF16", &[32, 1])],
        ),
        published(
            json!({"quant_method": "compressed-tensors"}),
            &[
                ("weight_packed", "U8", &[32, 16]),
                ("weight_scale", "F8_E4M3", &[32, 2]),
                ("weight_global_scale", "F32", &[1]),
            ],
        ),
        published(
            json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
            &[
                ("weight", "U8", &[32, 16]),
                ("weight_scale", "F8_E4M3", &[32, 2]),
                ("weight_scale_2", "F32", &[]),
            ],
        ),
        (sizes("llama", json!({})), Vec::new()),
        (sizes("llama", llama3), Vec::new()),
        (
            sizes("llama", quantized),
            [packed("mlp.up_proj", "F16", 4), packed("mlp.down_proj", "F16", 8)].concat(),
        ),
        // mxfp4 has no biases.
        (sizes("llama", json!({})), packed("mlp.gate_proj", "U8", 4)[..2].to_vec()),
        (sizes("mistral", yarn), Vec::new()),
        (sizes("qwen2", qwen), Vec::new()),
        (sizes("qwen3", qwen_parameters), Vec::new()),
        (sizes("qwen3_moe", qwen_experts.clone()), Vec::new()),
        (
            sizes("qwen3_moe", qwen_experts),
            vec![float(&format!("{layer}mlp.experts.0.gate_proj.weight"), &[32, 32])],
        ),
        (sizes("mixtral", experts.clone()), Vec::new()),
        (
            sizes("mixtral", experts.clone()),
            ["w1", "w2", "w3"]
                .map(|name| {
                    float(&format!("{layer}block_sparse_moe.experts.0.{name}.weight"), &[32, 32])
                })
                .to_vec(),
        ),
        (sizes("phi3", long), Vec::new()),
        (
            sizes("gemma2", json!({"final_logit_softcapping": 30.0, "query_pre_attn_scalar": 16})),
            Vec::new(),
        ),
        (text, Vec::new()),
        (inside, Vec::new()),
        (sizes("gpt_oss", experts.clone()), Vec::new()),
        (sizes("gpt_oss", experts), [blocks("gate_up_proj", 64), blocks("down_proj", 32)].concat()),
        (sizes("deepseek_v3", deepseek.clone()), Vec::new()),
        (sizes("deepseek_v3", deepseek.clone()), kv_b.collect()),
        (sizes("deepseek_v32", indexed), Vec::new()),
        (sizes("glm_moe_dsa", indexed_glm), Vec::new()),
        (sizes("kimi_k2", deepseek.clone()), Vec::new()),
        (sizes("joyai_llm_flash", deepseek.clone()), Vec::new()),
        (beside_pictures("kimi_k25", sizes("kimi_k2", deepseek)), Vec::new()),
        (
            beside_pictures("mistral3", sizes("mistral", json!({"sliding_window": null}))),
            Vec::new(),
        ),
        (beside_pictures("qwen3_vl", sizes("qwen3_vl_text", of_pictures)), Vec::new()),
        (
            beside_pictures(
                "qwen3_vl_moe",
                sizes("qwen3_vl_moe_text", of_pictures_with_experts.clone()),
            ),
            Vec::new(),
        ),
        (
            beside_pictures("qwen3_vl_moe", sizes("qwen3_vl_moe_text", of_pictures_with_experts)),
            vec![
                float("model.language_model.embed_tokens.weight", &[32, 32]),
                turned("gate_up_proj", &[4, 32, 64]),
                turned("down_proj", &[4, 32, 32]),
            ],
        ),
        (sizes("glm4_moe", glm.clone()), Vec::new()),
        (sizes("minimax_m2", minimax.clone()), Vec::new()),
        (sizes("minimax", minimax.clone()), Vec::new()),
        (
            sizes("minimax_m2", minimax),
            vec![float(&format!("{layer}block_sparse_moe.experts.0.w1.weight"), &[32, 32])],
        ),
        (sizes("glm4_moe_lite", glm_lite), Vec::new()),
        (
            sizes(
                "seed_oss",
                json!({"attention_bias": true, "attention_out_bias": true, "mlp_bias": true}),
            ),
            Vec::new(),
        ),
        (sizes("smollm3", json!({"no_rope_layers": [1, 0], "rope_theta": 5e6})), Vec::new()),
        (sizes("ernie4_5", json!({"use_bias": true, "rope_theta": 5e5})), Vec::new()),
        (sizes("gemma4_text", gemma4.clone()), Vec::new()),
        (sizes("gemma4_text", gemma4_by_layer), Vec::new()),
        (
            sizes("gemma4_text", gemma4.clone()),
            vec![
                float(&format!("{layer}experts.gate_up_proj"), &[4, 64, 32]),
                float(&format!("{layer}experts.down_proj"), &[4, 32, 32]),
            ],
        ),
        (beside_pictures("gemma4", sizes("gemma4_text", gemma4)), Vec::new()),
        (sizes("step3p5", step.clone()), Vec::new()),
        (sizes("step3p5", step), vec![float("model.layers.1.moe.gate.weight", &[4, 32])]),
        (sizes("dots1", dots), Vec::new()),
        (sizes("solar_open", solar), Vec::new()),
        (sizes("granite", granite), Vec::new()),
        (sizes("olmo3", olmo), Vec::new()),
        (sizes("ministral3", ministral.clone()), Vec::new()),
        (beside_pictures("mistral3", sizes("ministral3", ministral)), Vec::new()),
        (sizes("hunyuan_v1_dense", hunyuan), Vec::new()),
        (sizes("planaria_fake", fake), Vec::new()),
    ]
}

/// Every family, as the product lists them when it is given another.
fn families() -> Vec<String> {
    FOLDER.write("config.json", br#"{"model_type": "?"}"#);
    write_weights(&FOLDER, "model.safetensors", &[]);
    let refusal = ModelDir::open(FOLDER.path()).unwrap_err().to_string();
    let list = refusal.split_once("supported are ").expect("the list of families").1;
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn complete(config: Value, mut tensors: Vec<Entry>) -> Seed {
    let Value::Object(config) = config else { panic!("{config}") };
    loop {
        FOLDER.write("config.json", Value::Object(config.clone()).to_string().as_bytes());
        write_weights(&FOLDER, "model.safetensors", &tensors);
        match ModelDir::open(FOLDER.path()) {
            Ok(_) => return Seed { config, tensors },
            // Such as "F32 or F16 or BF16 [40, 64]".
            Err(ModelError::MissingTensor { name, expected, .. }) => {
                let (types, shape) = expected.split_once(" [").unwrap();
                let numbers = shape.trim_end_matches(']').split(", ");
                let shape: Vec<u64> = numbers.map(|number| number.parse().unwrap()).collect();
                let dtype = types.split(' ').next().unwrap();
                tensors.push(Entry::new(&name, dtype, &shape));
            }
            Err(other) => panic!("{other}: {}", Value::Object(config)),
        }
    }
}
