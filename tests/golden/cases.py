"""Which golden cases there are: what each model looks like, how it is stored and quantized.

A case is: `family` (a key of FAMILIES; llama without), `config` (what differs from the
family's), and where they are wanted `dtype` (float32 without), `quantize` and
`overrides` (for mlx-lm's quantize_model), `only` (a part of the names of what is
quantized), `layout` (a key of layouts.LAYOUTS; MLX's own names without), `files` (how
many), `format` (a key of formats.FORMATS and its arguments; needs a layout), `index` (what
decides its seeds, in place of its position), `kv_bits` (the setting of Planaria), `safety` (how many times the noise a margin must be), `gains` (how large a kind
of random parameter is, see checkpoint.py).
"""

SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
MERGES = ["Ġ t", "h e", "i n", "e r", "a n", "Ġ a", "o n", "Ġt he", "in g", "Ġ s"]
VOCAB = len(SPECIAL) + 256 + len(MERGES)

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 48,
    "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5}

# What every other family starts from: small, for float32 must stay far below 200 KiB.
SMALL = {key: BASE[key] for key in (
    "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
    "rms_norm_eps", "rope_theta", "tie_word_embeddings", "bos_token_id", "eos_token_id", "torch_dtype")}
SMALL |= {"hidden_size": 32, "intermediate_size": 16, "hidden_act": "silu"}

GEMMA = SMALL | {"hidden_size": 24, "head_dim": 8, "query_pre_attn_scalar": 16,
                 "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6}
GEMMA3_TEXT = GEMMA | {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
    "sliding_window": 32, "sliding_window_pattern": 3, "num_hidden_layers": 5,
    "rope_theta": 100000.0, "rope_local_base_freq": 1000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}

FAMILIES = {
    "llama": BASE,
    "mistral": SMALL | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 32,
                        "hidden_size": 24, "head_dim": 12},
    "qwen2": SMALL | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1000000.0,
                      "sliding_window": 32, "use_sliding_window": False, "max_window_layers": 2},
    "qwen3": SMALL | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rope_theta": 1000000.0,
                      "hidden_size": 24, "head_dim": 12, "attention_bias": False},
    "qwen3_moe": SMALL | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
                          "hidden_size": 24, "head_dim": 10, "rope_theta": 1000000.0,
                          "attention_bias": False, "num_experts": 5,
                          "num_experts_per_tok": 2, "moe_intermediate_size": 6, "decoder_sparse_step": 1,
                          "mlp_only_layers": [], "norm_topk_prob": True},
    "gemma2": GEMMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "sliding_window": 28,
                       "attn_logit_softcapping": 6.0, "final_logit_softcapping": 20.0},
    "gemma3_text": GEMMA3_TEXT,
    "gemma3": {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vocab_size": VOCAB,
               "bos_token_id": 1, "eos_token_id": [2, 0], "torch_dtype": "float32",
               "text_config": GEMMA3_TEXT | {"num_hidden_layers": 4, "sliding_window_pattern": 2,
                                             "sliding_window": 20},
               "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 8, "num_hidden_layers": 1}},
    "phi3": SMALL | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "tie_word_embeddings": False,
                     "sliding_window": None, "original_max_position_embeddings": 512},
    "mixtral": SMALL | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "rope_theta": 1000000.0,
                        "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 8,
                        "sliding_window": None},
    # The yarn numbers put the ends of the ramp on whole dimensions: mlx-lm ignores
    # `truncate`, others do not, and here it makes no difference.
    "gpt_oss": SMALL | {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss",
                        "head_dim": 8, "hidden_size": 24, "tie_word_embeddings": False, "attention_bias": True,
                        "num_local_experts": 4,
                        "num_experts_per_tok": 2, "intermediate_size": 8, "sliding_window": 20,
                        "rope_theta": 151700, "initial_context_length": 124, "swiglu_limit": 7.0,
                        "layer_types": ["sliding_attention", "full_attention"] * 2,
                        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                                         "original_max_position_embeddings": 124, "truncate": False}},
    "deepseek_v3": SMALL | {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "tie_word_embeddings": False,
        "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 16, "kv_lora_rank": 14,
        "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 9,
        "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
        "n_shared_experts": 1, "moe_intermediate_size": 4, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "attention_bias": False, "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "yarn", "factor": 8.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "original_max_position_embeddings": 64}},
}
FAMILIES |= {
    "glm4_moe": SMALL | {
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "tie_word_embeddings": False,
        "hidden_size": 24, "head_dim": 12, "partial_rotary_factor": 0.5, "attention_bias": True, "use_qk_norm": True,
        "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
        "moe_intermediate_size": 6, "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "rope_scaling": None},
    # An epsilon that shows where it is not that of the norms within attention.
    "glm4_moe_lite": {key: value for key, value in FAMILIES["deepseek_v3"].items() if key != "rope_scaling"} | {
        "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "hidden_size": 20,
        "rms_norm_eps": 0.1, "rope_theta": 1000000.0, "partial_rotary_factor": 1.0, "n_group": 1, "topk_group": 1,
        "n_routed_experts": 6, "routed_scaling_factor": 1.8},
    # Names as hubs have them; the number of shared experts' inner width is only looked at by mlx-lm.
    "minimax_m2": SMALL | {
        "architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2", "tie_word_embeddings": False,
        "hidden_size": 24, "intermediate_size": 6, "head_dim": 10, "rotary_dim": 4, "rope_theta": 5000000.0,
        "rms_norm_eps": 1e-6, "num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 0,
        "scoring_func": "sigmoid", "use_qk_norm": True, "qk_norm_type": "per_layer", "use_routing_bias": True,
        "attn_type_list": [1, 1, 1, 1], "use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1},
}


def beside_pictures(name, kind, config, vision):
    """A language model inside one that sees pictures."""
    return {"architectures": [name], "model_type": kind, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
            "tie_word_embeddings": config["tie_word_embeddings"], "text_config": config,
            "vision_config": {"hidden_size": 8} | vision}


MROPE = {"rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 2, 1]}}
FAMILIES |= {
    "kimi_k25": beside_pictures("KimiK25ForConditionalGeneration", "kimi_k25", FAMILIES["deepseek_v3"] | {
        "model_type": "kimi_k2", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
        "rms_norm_eps": 1e-5}, {"num_hidden_layers": 1}),
    "qwen3_vl": beside_pictures("Qwen3VLForConditionalGeneration", "qwen3_vl", FAMILIES["qwen3"] | MROPE | {
        "model_type": "qwen3_vl_text", "head_dim": 10, "tie_word_embeddings": False},
        {"model_type": "qwen3_vl", "depth": 1}),
    "qwen3_vl_moe": beside_pictures(
        "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", FAMILIES["qwen3_moe"] | MROPE | {
            "model_type": "qwen3_vl_moe_text", "tie_word_embeddings": False, "num_experts": 4},
        {"model_type": "qwen3_vl_moe", "depth": 1}),
    "mistral3": beside_pictures("Mistral3ForConditionalGeneration", "mistral3", FAMILIES["mistral"] | {
        "sliding_window": None, "tie_word_embeddings": False, "hidden_size": 20, "rope_theta": 1000000000.0},
        {"model_type": "pixtral", "num_hidden_layers": 1}),
}
FAMILIES |= {
    "seed_oss": SMALL | {"architectures": ["SeedOssForCausalLM"], "model_type": "seed_oss", "hidden_size": 24,
                         "head_dim": 10, "tie_word_embeddings": False, "attention_bias": True,
                         "attention_out_bias": False, "mlp_bias": False, "rope_theta": 10000000.0,
                         "rope_scaling": {"rope_type": "default"}, "attention_dropout": 0.1, "residual_dropout": 0.1},
    "smollm3": SMALL | {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "hidden_size": 24,
                        "num_hidden_layers": 5, "rope_theta": 5000000.0, "no_rope_layers": [1, 1, 0, 1, 0],
                        "no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": None,
                        "layer_types": ["full_attention"] * 5, "attention_bias": False, "mlp_bias": False},
    "ernie4_5": SMALL | {"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "hidden_size": 24,
                         "head_dim": 10, "use_bias": False, "rope_theta": 500000.0},
}
GEMMA4_TEXT = {key: value for key, value in GEMMA.items() if key not in ("query_pre_attn_scalar", "rope_theta")} | {
    "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "num_hidden_layers": 5,
    "layer_types": ["full_attention"] + ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 20,
    "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision", "final_logit_softcapping": 20.0,
    "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 6,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 100000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}}}
# The last layers look at keys and values of layers two and three, not of the first two.
GEMMA4_SHARED = {
    "enable_moe_block": False, "num_experts": None, "top_k_experts": None, "moe_intermediate_size": None,
    "attention_k_eq_v": False, "num_global_key_value_heads": None, "num_key_value_heads": 1, "num_hidden_layers": 7,
    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"] * 2 + ["full_attention"],
    "num_kv_shared_layers": 3, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": VOCAB}
FAMILIES |= {
    "gemma4_text": GEMMA4_TEXT,
    "gemma4": beside_pictures("Gemma4ForConditionalGeneration", "gemma4", GEMMA4_TEXT, {
        "model_type": "gemma4_vision", "num_hidden_layers": 1}) | {"vocab_size": VOCAB, "audio_config": None},
}
FAMILIES |= {
    # Lists go on for a layer that guesses at tokens after the next one.
    "step3p5": {key: value for key, value in SMALL.items() if key != "num_key_value_heads"} | {
        "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", "hidden_size": 24, "head_dim": 8,
        "tie_word_embeddings": False, "num_attention_groups": 2, "attention_other_setting": {
            "attention_type": "sliding_attention", "num_attention_heads": 6, "num_attention_groups": 2, "head_dim": 8},
        "num_nextn_predict_layers": 1, "sliding_window": 20,
        "layer_types": ["full_attention"] + ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
        "rope_theta": [5000.0, 300.0, 300.0, 5000.0, 300.0], "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5, 1.0],
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64}, "yarn_only_types": ["full_attention"],
        "use_head_wise_attn_gate": True, "moe_layers_enum": "1,2,3,4", "moe_num_experts": 5, "moe_top_k": 2,
        "moe_intermediate_size": 6, "share_expert_dim": 6, "moe_router_scaling_factor": 3.0,
        "moe_router_activation": "sigmoid", "use_moe_router_bias": True, "need_fp32_gate": True,
        "norm_expert_weight": True, "swiglu_limits": [0.0, 0.0, 0.4, 0.5, 0.0],
        "swiglu_limits_shared": [0.5, 0.0, 0.3, 0.0, 0.0]},
}
FAMILIES |= {
    "dots1": SMALL | {
        "architectures": ["Dots1ForCausalLM"], "model_type": "dots1", "tie_word_embeddings": False, "hidden_size": 24,
        "head_dim": 10, "attention_bias": False, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 1,
        "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 6, "first_k_dense_replace": 1,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "noaux_tc", "sliding_window": None,
        "max_window_layers": 4},
    "solar_open": FAMILIES["glm4_moe"] | {
        "architectures": ["SolarOpenForCausalLM"], "model_type": "solar_open", "head_dim": 10, "attention_bias": False,
        "use_qk_norm": False, "partial_rotary_factor": 1.0, "first_k_dense_replace": 0},
    "granite": SMALL | {
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_bias": False, "mlp_bias": False,
        "attention_multiplier": 0.2, "embedding_multiplier": 1.5, "logits_scaling": 0.75, "residual_multiplier": 0.6},
    # Both of layers one and two see everything: they change places. transformers 5 forgets any other base in layers that slide.
    "olmo3": SMALL | {
        "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "tie_word_embeddings": False, "hidden_size": 24,
        "attention_bias": False, "sliding_window": 20, "rope_theta": 500000.0,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0,
                         "original_max_position_embeddings": 64}},
    "ministral3": {key: value for key, value in SMALL.items() if key != "rope_theta"} | {
        "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "hidden_size": 24, "head_dim": 10,
        "sliding_window": None, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 20, "llama_4_scaling_beta": 0.5}},
    "hunyuan_v1_dense": SMALL | {
        "architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense", "hidden_size": 24, "head_dim": 10,
        "attention_bias": False, "use_qk_norm": True, "rope_theta": 100.0, "rope_scaling": {
            "type": "dynamic", "alpha": 50.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
            "mscale_all_dim": 1.0}},
}

# Fewer positions are looked at than longer prompts have, by so many heads that no query's weights are all negative.
FAMILIES |= {
    "deepseek_v32": FAMILIES["deepseek_v3"] | {
        "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "num_hidden_layers": 3,
        "index_n_heads": 10, "index_head_dim": 12, "index_topk": 14},
    "glm_moe_dsa": {key: value for key, value in FAMILIES["glm4_moe_lite"].items()
                    if key != "partial_rotary_factor"} | {
        "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "num_hidden_layers": 3,
        "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "indexer_rope_interleave": True,
        "index_n_heads": 12, "index_head_dim": 10, "index_topk": 13},
}

# Models for quantization: widths that groups divide.
PACKED = SMALL | {"intermediate_size": 32}
PACKED_MOE = {"hidden_size": 64, "moe_intermediate_size": 32, "num_experts": 4, "num_hidden_layers": 3, "head_dim": 8}
PACKED_MLA = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "n_routed_experts": 4,
              "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "num_attention_heads": 2,
              "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
              "v_head_dim": 32}

# Prompt lengths. The long one crosses several chunks and, with its answer, grows any KV
# cache that grows in steps of up to 128. Two are longer than any sliding window here.
LENGTHS = [1, 2, 7, 17, 40, 150]


def steps_for(length, case):
    """How many tokens to ask for: fewer where clear paths are rare."""
    if "dtype" not in case:
        return 26
    return 10 if length == 1 else 20


# Append only: the index of a case decides its seeds.
CASES = {
    "f32-tied": {"config": {}},
    "f32-untied-biases": {"config": {"tie_word_embeddings": False, "num_key_value_heads": 1, "attention_bias": True,
                                     "mlp_bias": True, "eos_token_id": [2, 0]}},
    "bf16-untied": {"config": WIDE | {"tie_word_embeddings": False, "num_hidden_layers": 4, "rope_theta": 500000.0,
                                      "vocab_size": 288}, "dtype": "bfloat16"},
    "f16-tied": {"config": WIDE | {"num_hidden_layers": 4, "intermediate_size": 96}, "dtype": "float16"},
    # MLX's CPU backend adds up quantized products in the dtype itself, so bf16 is far from float32 here.
    "q4-bf16-untied": {"config": WIDE | {"tie_word_embeddings": False, "num_hidden_layers": 4}, "dtype": "bfloat16",
                       "quantize": {"group_size": 64, "bits": 4}, "safety": 0.6},
    "q4-f32-untied": {"config": WIDE | {"tie_word_embeddings": False}, "quantize": {"group_size": 64, "bits": 4}},
    "q8-f32-tied": {"config": WIDE, "quantize": {"group_size": 32, "bits": 8}},
    "q-mixed-tied": {"config": WIDE | {"num_hidden_layers": 6}, "quantize": {"group_size": 32, "bits": 4}, "overrides": {
        "model.embed_tokens": {"group_size": 64, "bits": 8},
        "model.layers.0.mlp.down_proj": {"group_size": 64, "bits": 6},
        "model.layers.1.self_attn.q_proj": False,
        "model.layers.3.self_attn.v_proj": {"group_size": 32, "bits": 3},
        "model.layers.4.mlp.up_proj": False,
    }},
    "rope-llama3": {"config": {"rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}},
    "rope-linear": {"config": {"rope_scaling": {
        "type": "linear", "factor": 4.0}}},
    "head-dim": {"config": {"head_dim": 20}},
    "sharded-bf16": {"config": WIDE | {"num_hidden_layers": 6, "intermediate_size": 64}, "dtype": "bfloat16",
                     "files": 3},

    "qwen2-tied": {"family": "qwen2", "config": {}},
    "qwen2-untied": {"family": "qwen2", "config": {"tie_word_embeddings": False, "hidden_size": 24,
                                                   "num_attention_heads": 2, "num_key_value_heads": 1}},
    "qwen3": {"family": "qwen3", "config": {}},
    "mistral-window": {"family": "mistral", "config": {}},
    "gemma2": {"family": "gemma2", "config": {}},
    "gemma3-text": {"family": "gemma3_text", "config": {}},
    "phi3": {"family": "phi3", "config": {}},
    "phi3-longrope": {"family": "phi3", "config": {
        "tie_word_embeddings": True, "num_attention_heads": 2, "num_key_value_heads": 1, "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 64, "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.3, 1.5, 2.0],
            "long_factor": [1.1, 1.6, 2.5, 4.0, 6.0, 8.0]}}},
    "mixtral-hf": {"family": "mixtral", "config": {}, "layout": "mixtral-hf"},
    "mixtral-mlx": {"family": "mixtral", "config": {"hidden_size": 24, "num_local_experts": 3,
                                                    "num_attention_heads": 2, "num_key_value_heads": 1}},
    "qwen3-moe-mlx": {"family": "qwen3_moe", "config": {}},
    "qwen3-moe-hf-mixed": {"family": "qwen3_moe", "layout": "experts-apart", "config": {
        "norm_topk_prob": False, "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        "intermediate_size": 12, "head_dim": 8}, "gains": {"gate": 1.5}},
    "gpt-oss-mlx": {"family": "gpt_oss", "config": {}},
    "gpt-oss-mxfp4-hf": {"family": "gpt_oss", "layout": "gpt-oss-hf", "config": {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
                         "quantize": {"group_size": 32, "bits": 4, "mode": "mxfp4"}, "only": "mlp.experts"},
    "deepseek-v3-mlx": {"family": "deepseek_v3", "config": {}},
    "deepseek-v3-hf": {"family": "deepseek_v3", "layout": "deepseek-hf", "config": {
        "q_lora_rank": None, "n_shared_experts": 2, "rope_scaling": FAMILIES["deepseek_v3"]["rope_scaling"] | {
            "factor": 40.0, "mscale_all_dim": 0.5}}},
    "q2-f32": {"config": PACKED, "quantize": {"group_size": 32, "bits": 2}},
    "q3-f32": {"config": PACKED | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3},
               "quantize": {"group_size": 64, "bits": 3}},
    "q5-f32": {"family": "qwen3", "config": PACKED | {"head_dim": 16}, "quantize": {"group_size": 32, "bits": 5}},
    "q6-f32": {"config": PACKED, "quantize": {"group_size": 32, "bits": 6}},
    "mxfp4-f32": {"config": PACKED | {"tie_word_embeddings": False, "intermediate_size": 64}, "quantize": {
        "group_size": 32, "bits": 4, "mode": "mxfp4"}},
    "nvfp4-f32": {"family": "qwen3", "config": PACKED | {"head_dim": 16}, "quantize": {
        "group_size": 16, "bits": 4, "mode": "nvfp4"}},
    "mxfp8-f32": {"config": PACKED | {"intermediate_size": 64}, "quantize": {
        "group_size": 32, "bits": 8, "mode": "mxfp8"}},
    # The router stays at 8 bits in groups of 64: mlx-lm's own choice for the family.
    "q4-moe-f32": {"family": "qwen3_moe", "config": PACKED_MOE, "quantize": {"group_size": 32, "bits": 4}},
    "mxfp4-mixed-f32": {"config": PACKED | {"intermediate_size": 64}, "quantize": {
        "group_size": 32, "bits": 4, "mode": "mxfp4"}, "overrides": {
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
        "model.layers.0.self_attn.v_proj": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
        "model.layers.1.mlp.down_proj": {"group_size": 32, "bits": 6, "mode": "affine"},
        "model.layers.2.self_attn.q_proj": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
        # Without a mode it is affine, whatever the default is.
        "model.layers.2.mlp.up_proj": {"group_size": 32, "bits": 4},
        "model.layers.3.mlp.gate_proj": False,
    }},
    "q4-deepseek-v3-f32": {"family": "deepseek_v3", "config": PACKED_MLA, "quantize": {"group_size": 32, "bits": 4}},
    "gemma3-multimodal": {"family": "gemma3", "config": {}, "layout": "gemma3-towers"},
    "rope-yarn": {"config": SMALL | {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_scaling": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}}},
    "glm4-moe-mlx": {"family": "glm4_moe", "config": {}},
    "glm4-moe-hf": {"family": "glm4_moe", "layout": "experts-apart", "config": {
        "attention_bias": False, "use_qk_norm": False, "head_dim": 16, "partial_rotary_factor": 0.25, "n_group": 3,
        "topk_group": 2, "first_k_dense_replace": 2, "n_shared_experts": 2, "num_key_value_heads": 1}},
    "kimi-k2-hf": {"family": "deepseek_v3", "layout": "deepseek-hf", "config": {
        "model_type": "kimi_k2", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
        "rope_theta": 50000.0, "rms_norm_eps": 1e-5, "rope_scaling": FAMILIES["deepseek_v3"]["rope_scaling"] | {
            "factor": 32.0, "beta_fast": 1.0}}},
    "glm4-moe-lite-mlx": {"family": "glm4_moe_lite", "config": {}},
    "glm4-moe-lite-hf": {"family": "glm4_moe_lite", "layout": "deepseek-hf", "config": {
        "num_attention_heads": 2, "num_key_value_heads": 2, "n_group": 3, "topk_group": 2, "attention_bias": True}},
    "minimax-m2-mlx": {"family": "minimax_m2", "config": {}},
    "minimax-m2-hf": {"family": "minimax_m2", "layout": "mixtral-hf", "config": {
        "head_dim": 12, "rotary_dim": 4, "hidden_size": 20, "num_local_experts": 5, "num_experts_per_tok": 3, "num_key_value_heads": 1}},
    # mlx computes plain experts in float32 only on CPUs, so no case shows that the router is not rounded to bfloat16.
    "q4-minimax-m2-f32": {"family": "minimax_m2", "config": {
        "hidden_size": 64, "intermediate_size": 32, "head_dim": 16, "rotary_dim": 8, "num_hidden_layers": 3,
        "num_local_experts": 4, "attn_type_list": [1, 1, 1]}, "quantize": {"group_size": 32, "bits": 4}},
    "kimi-k25-mlx": {"family": "kimi_k25", "config": {}, "layout": "eyes"},
    "kimi-k25-hf": {"family": "kimi_k25", "layout": "kimi-k25-hf", "config": {}},
    "qwen3-vl-mlx": {"family": "qwen3_vl", "config": {}, "layout": "eyes"},
    "qwen3-vl-hf": {"family": "qwen3_vl", "layout": "qwen3-vl-hf", "config": {}},
    "qwen3-vl-moe-mlx": {"family": "qwen3_vl_moe", "config": {}, "layout": "eyes"},
    "qwen3-vl-moe-hf": {"family": "qwen3_vl_moe", "layout": "qwen3-vl-moe-hf", "config": {}},
    "mistral3-mlx": {"family": "mistral3", "config": {}, "layout": "eyes"},
    "mistral3-hf": {"family": "mistral3", "layout": "mistral3-hf", "config": {}},
    "seed-oss": {"family": "seed_oss", "config": {}},
    "seed-oss-biases": {"family": "seed_oss", "config": {
        "attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "num_key_value_heads": 1}},
    "smollm3": {"family": "smollm3", "config": {}},
    "smollm3-interval": {"family": "smollm3", "config": {
        "no_rope_layers": None, "no_rope_layer_interval": 2, "layer_types": None,
        "attention_bias": True, "num_key_value_heads": 1}},
    "ernie4-5": {"family": "ernie4_5", "config": {}},
    "ernie4-5-biases": {"family": "ernie4_5", "config": {"use_bias": True, "tie_word_embeddings": False,
                                                         "num_key_value_heads": 1}},
    "gemma4-text": {"family": "gemma4_text", "config": {}},
    "gemma4-mlx": {"family": "gemma4", "layout": "eyes", "config": {"text_config": GEMMA4_TEXT | {
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"] * 2, "sliding_window": 28,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4, "top_k_experts": 3}}},
    "gemma4-hf": {"family": "gemma4", "layout": "gemma4-hf", "config": {"text_config": GEMMA4_TEXT | {
        "enable_moe_block": False, "num_experts": None, "top_k_experts": None, "moe_intermediate_size": None,
        "num_key_value_heads": 4, "head_dim": 6, "global_head_dim": 12, "num_global_key_value_heads": 2,
        "rope_parameters": GEMMA4_TEXT["rope_parameters"] | {"full_attention": {
            "rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 300.0, "factor": 2.0}}}}},
    "q4-gemma4-f32": {"family": "gemma4_text", "config": {
        "hidden_size": 64, "intermediate_size": 32, "moe_intermediate_size": 32, "head_dim": 16, "global_head_dim": 32,
        "num_experts": 4, "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "quantize": {"group_size": 32, "bits": 4}},
    "step3p5-mlx": {"family": "step3p5", "config": {}},
    "step3p5-hf": {"family": "step3p5", "layout": "step3p5-hf", "config": {
        "num_attention_groups": 1, "attention_other_setting": {
            "attention_type": "sliding_attention", "num_attention_heads": 6, "num_attention_groups": 1, "head_dim": 8},
        "num_nextn_predict_layers": 0, "layer_types": ["full_attention"] + ["sliding_attention"] * 2 + ["full_attention"],
        "rope_theta": 1000.0, "partial_rotary_factors": None, "rope_scaling": None, "yarn_only_types": None,
        "moe_layers_enum": "0,1,2", "moe_num_experts": 4, "moe_router_scaling_factor": 1.5,
        "swiglu_limits": [0.5, 0.0, 0.0, 0.0], "swiglu_limits_shared": [0.0, None, 0.0, 0.4]}},
    "dots1-mlx": {"family": "dots1", "config": {}},
    "dots1-hf": {"family": "dots1", "layout": "dots1-hf", "config": {
        "num_key_value_heads": 1, "n_group": 3, "topk_group": 2, "n_shared_experts": 2, "first_k_dense_replace": 2}},
    "solar-open-mlx": {"family": "solar_open", "config": {}},
    "solar-open-hf": {"family": "solar_open", "layout": "experts-apart", "config": {
        "num_key_value_heads": 1, "n_routed_experts": 5, "head_dim": 12}},
    "granite": {"family": "granite", "config": {}},
    "granite-biases": {"family": "granite", "config": {
        "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1,
        "embedding_multiplier": 2.0, "residual_multiplier": 0.75, "attention_multiplier": 0.25}},
    "olmo3": {"family": "olmo3", "config": {}},
    "olmo3-tied": {"family": "olmo3", "config": {
        "tie_word_embeddings": True, "head_dim": 8, "attention_bias": True, "num_key_value_heads": 4,
        "rope_scaling": None}},
    "ministral3": {"family": "ministral3", "config": {}},
    "ministral3-mlx": {"family": "mistral3", "layout": "eyes", "config": {"text_config": FAMILIES["ministral3"] | {
        "tie_word_embeddings": False, "num_key_value_heads": 1}}},
    "ministral3-hf": {"family": "mistral3", "layout": "mistral3-hf", "config": {
        "tie_word_embeddings": True, "text_config": FAMILIES["ministral3"] | {"head_dim": 12}}},
    "hunyuan-v1-dense": {"family": "hunyuan_v1_dense", "config": {}},
    "hunyuan-v1-dense-biases": {"family": "hunyuan_v1_dense", "config": {
        "tie_word_embeddings": False, "attention_bias": True, "rope_theta": 1000.0, "rope_scaling": None, "head_dim": 12}},
    "gemma4-experts-hf": {"family": "gemma4", "layout": "gemma4-experts-hf", "config": {"text_config": GEMMA4_TEXT | {
        "num_experts": 4, "sliding_window": 24}}},
    # Layers that remember more of a token than others.
    "gemma4-uneven": {"family": "gemma4_text", "config": {
        "enable_moe_block": False, "num_experts": None, "top_k_experts": None, "moe_intermediate_size": None,
        "num_key_value_heads": 4, "head_dim": 6, "global_head_dim": 16, "num_global_key_value_heads": 2}},
}
# Formats of others than MLX. Blocks that do not divide a matrix, and rows that do not fill their groups' last word.
MOE_APART = {"family": "qwen3_moe", "layout": "experts-apart"}
CASES |= {name: case | {"index": 400 + index} for index, (name, case) in enumerate({
    "fp8-blocks": MOE_APART | {"config": {"head_dim": 12, "moe_intermediate_size": 10}, "format": ["fp8", 8, 20]},
    "fp8-powers-mla": {"family": "deepseek_v3", "layout": "deepseek-hf", "config": PACKED_MLA,
                       "format": ["fp8", 16, 32, True]},
    "fp8-rows": {"layout": "as-it-is", "config": SMALL, "format": ["fp8-rows"]},
    "int4-compressed": {"family": "kimi_k25", "layout": "kimi-k25-hf", "format": ["int4", 32], "only": ".experts.",
                        "config": {"text_config": FAMILIES["kimi_k25"]["text_config"] | {
                            key: value for key, value in PACKED_MLA.items() if "group" not in key}}},
    "awq": {"layout": "as-it-is", "config": PACKED | {"tie_word_embeddings": False}, "format": ["awq", 32]},
    "awq-moe": MOE_APART | {"config": PACKED_MOE, "format": ["awq", 32]},
    "gptq": MOE_APART | {"config": PACKED_MOE, "format": ["gptq", 32, 4, False]},
    "gptq8-v2": {"layout": "as-it-is", "config": PACKED, "format": ["gptq", 32, 8, True]},
    "nvfp4-modelopt": MOE_APART | {"config": PACKED_MOE, "format": ["nvfp4", False]},
    "nvfp4-compressed": {"family": "qwen3", "layout": "as-it-is", "config": PACKED | {"head_dim": 16},
                         "format": ["nvfp4", True]},
    # Latent attention turns a matrix, which no packed one can be.
    "awq-mla": {"family": "deepseek_v3", "layout": "deepseek-hf", "config": PACKED_MLA, "format": ["awq", 32]},
    "int4-mla": {"family": "deepseek_v3", "layout": "deepseek-hf", "config": PACKED_MLA, "format": ["int4", 32]},
}.items())}
# Heads that groups of a packed cache divide.
CASES |= {name: case | {"index": 460 + index} for index, (name, case) in enumerate({
    "kv8-q4": {"config": WIDE | {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1}, "dtype": "bfloat16", "kv_bits": 8,
               "quantize": {"group_size": 64, "bits": 4}, "safety": 0.6},
    "kv4": {"config": {"head_dim": 32, "hidden_size": 32}, "kv_bits": 4},
    "kv8-windows": {"family": "gemma3_text", "config": {"head_dim": 32}, "kv_bits": 8},
    "kv4-windows-sinks": {"family": "gpt_oss", "config": {"head_dim": 32}, "kv_bits": 4},
    "kv4-mla": {"family": "deepseek_v3", "config": {"kv_lora_rank": 32, "qk_rope_head_dim": 32}, "kv_bits": 4},
}.items())}
# Layers that hand on more than hidden states.
CASES |= {name: case | {"index": 480 + index} for index, (name, case) in enumerate({
    "gemma4-e2b": {"family": "gemma4_text", "config": GEMMA4_SHARED},
    "gemma4-e2b-hf": {"family": "gemma4", "layout": "gemma4-shared-hf", "config": {"text_config": GEMMA4_TEXT | GEMMA4_SHARED | {
        "hidden_size_per_layer_input": 8, "num_hidden_layers": 6, "num_key_value_heads": 2, "use_double_wide_mlp": False,
        "layer_types": ["sliding_attention", "full_attention"] * 3, "num_kv_shared_layers": 2}}},
    "q4-gemma4-e2b-f32": {"family": "gemma4_text", "config": GEMMA4_SHARED | {
        "hidden_size": 64, "intermediate_size": 32, "head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 32,
        "num_hidden_layers": 5, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention"] + ["sliding_attention", "full_attention"] * 2}, "quantize": {"group_size": 32, "bits": 4}},
}.items())}
# Positions that are chosen.
CASES |= {name: case | {"index": 500 + index} for index, (name, case) in enumerate({
    "deepseek-v32-mlx": {"family": "deepseek_v32", "config": {}},
    "deepseek-v32-hf": {"family": "deepseek_v32", "layout": "deepseek-hf", "config": {
        "index_n_heads": 16, "index_head_dim": 8, "index_topk": 16, "attention_bias": True, "num_attention_heads": 2,
        "num_key_value_heads": 2}},
    "q4-deepseek-v32-f32": {"family": "deepseek_v32", "config": PACKED_MLA | {"index_head_dim": 32},
                            "quantize": {"group_size": 32, "bits": 4}},
    "fp8-deepseek-v32": {"family": "deepseek_v32", "layout": "deepseek-hf", "config": PACKED_MLA | {
        "index_head_dim": 24}, "format": ["fp8", 16, 32]},
    "glm-moe-dsa-mlx": {"family": "glm_moe_dsa", "config": {}},
    "glm-moe-dsa-hf": {"family": "glm_moe_dsa", "layout": "deepseek-hf", "config": {
        "indexer_rope_interleave": False, "index_topk": 20, "num_attention_heads": 4, "num_key_value_heads": 4}},
}.items())}
# A logit is about 3 here. In float32 the noise is less than a thousandth of the first of these.
LOWEST_MARGIN = {"float32": 0.15, "float16": 0.2, "bfloat16": 0.4}
# Between the last expert chosen and the first not chosen, in what the router compares; float32 only.
LOWEST_CHOICE_MARGIN = 5e-4
# Between the last position that an indexer chooses and the first that it does not, as a part of the spread of its scores.
LOWEST_INDEX_MARGIN = 2e-5
SEEDS_PER_CASE = 1000


def config_of(case):
    """The config.json of a case, before it is quantized."""
    return FAMILIES[case.get("family", "llama")] | case["config"]


def are_norms_from_one(family):
    """Whether weights of norms are stored as their distance from one."""
    return family.startswith(("gemma2", "gemma3"))


def text_part(config):
    """Where a config says what the language model looks like."""
    return config.get("text_config", config)
