#!/usr/bin/env python3
"""Makes a random checkpoint, to measure speed and memory with. It speaks noise.

    make_model.py OUT [--hidden 512] [--layers 12] [--heads 8] [--kv-heads 4] [--vocab 8192]
                      [--dtype float32|float16|bfloat16] [--bits 4|8] [--group-size 64]
    make_model.py OUT --family glm4_moe [--large] [--dtype ...] [--bits ...]

Without a family it is a Llama of any size; with one it has that family's shape in FAMILIES below, or in LARGE, to
measure memory with. `read.json` beside it says how many bytes of weights a decoded token reads: all but the embedding, of experts those that are chosen.

The tokenizer beside it knows single bytes only, so that a server can load the directory.
"""

import argparse
import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import _get_classes, quantize_model, save_config, save_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}")


# Some 100 to 200 million parameters each, in the proportions of what is published.
COMMON = {"vocab_size": 8192, "max_position_embeddings": 8192, "hidden_act": "silu", "rms_norm_eps": 1e-5,
          "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False, "bos_token_id": 0, "eos_token_id": 1,
          "tie_word_embeddings": False, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
          "num_key_value_heads": 4, "intermediate_size": 2048}
EXPERTS = {"n_routed_experts": 16, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
           "moe_intermediate_size": 384, "first_k_dense_replace": 1, "norm_topk_prob": True,
           "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
LATENT = {"num_key_value_heads": 12, "q_lora_rank": 384, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
          "qk_rope_head_dim": 32, "v_head_dim": 64, "moe_layer_freq": 1}
FAMILIES = {
    "llama": {},
    "gemma3_text": {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 512, "sliding_window_pattern": 6,
                    "rope_local_base_freq": 10000.0, "hidden_activation": "gelu_pytorch_tanh",
                    "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    "glm4_moe": EXPERTS | {"head_dim": 64, "partial_rotary_factor": 0.5, "attention_bias": True, "use_qk_norm": True,
                           "rope_scaling": None},
    "glm4_moe_lite": EXPERTS | LATENT | {"partial_rotary_factor": 1.0},
    "kimi_k2": EXPERTS | LATENT,
    "minimax_m2": {"head_dim": 64, "rotary_dim": 32, "intermediate_size": 384, "num_local_experts": 16,
                   "num_experts_per_tok": 2, "shared_intermediate_size": 0, "scoring_func": "sigmoid",
                   "use_qk_norm": True, "qk_norm_type": "per_layer", "use_routing_bias": True},
    "seed_oss": {"head_dim": 64, "attention_bias": True, "attention_out_bias": False,
                 "rope_scaling": {"rope_type": "default"}},
    "smollm3": {"no_rope_layer_interval": 4},
}
# More than a gigabyte of weights in bfloat16 and KV of eight contexts, with little to compute for a token.
WIDE = {"hidden_size": 1024, "num_attention_heads": 16, "head_dim": 64, "intermediate_size": 2816}
LARGE = {
    "llama": WIDE | {"num_hidden_layers": 24, "num_key_value_heads": 8},
    "gemma3_text": WIDE | {"num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128,
                           "query_pre_attn_scalar": 128, "intermediate_size": 8192},
    "kimi_k2": WIDE | {"num_hidden_layers": 16, "num_key_value_heads": 16, "n_routed_experts": 32,
                       "moe_intermediate_size": 512},
}


def main():
    args = arguments()
    if args.family:
        large = LARGE[args.family] if args.large else {}
        config = COMMON | FAMILIES[args.family] | large | {"model_type": args.family}
    else:
        config = COMMON | {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": args.vocab,
            "hidden_size": args.hidden, "intermediate_size": args.intermediate or args.hidden * 8 // 3 // 64 * 64,
            "num_hidden_layers": args.layers, "num_attention_heads": args.heads,
            "num_key_value_heads": args.kv_heads or args.heads, "tie_word_embeddings": args.tied}
    config["torch_dtype"] = args.dtype
    mx.random.seed(args.seed)
    # MLX draws its usual small random weights.
    kind, kind_args = _get_classes(config)
    model = kind(kind_args.from_dict(json.loads(json.dumps(config))))
    if args.family and args.family.startswith("gemma"):
        # Its head is the embedding where the file has none, whatever the configuration says.
        model.tie_word_embeddings = True
        model.pop("lm_head")
    model.update(tree_map_with_path(drawn, model.parameters()))
    model.set_dtype(getattr(mx, args.dtype))
    parameters = sum(w.size for _, w in tree_flatten(model.parameters()))
    if args.bits:
        model, config = quantize_model(model, config, args.group_size, args.bits)
    out = Path(args.out)
    save_model(out, model)
    save_config(config, out / "config.json")
    write_tokenizer(out)
    (out / "read.json").write_text(json.dumps({"bytes": bytes_read(model, config)}) + "\n")
    size = sum(p.stat().st_size for p in out.iterdir())
    print(f"{out}: {parameters / 1e6:.1f} million parameters, {size / 2**20:.1f} MiB")


def drawn(path, weight):
    """What MLX makes equal drawn as well: with equal scores the same experts are chosen for every token, which is
    faster than it should be, and equal norms hide that two of them are mixed up."""
    if path.endswith("mlp.gate.weight"):
        return mx.random.normal(weight.shape, scale=weight.shape[-1] ** -0.5)
    if path.endswith(("norm.weight", ".e_score_correction_bias")):
        return weight + mx.random.uniform(-0.1, 0.1, weight.shape)
    return weight


def bytes_read(model, config):
    """Bytes of weights that a decoded token reads."""
    count = config.get("n_routed_experts") or config.get("num_local_experts") or 1
    share = config.get("num_experts_per_tok", 1) / count
    read = 0
    for path, weight in tree_flatten(model.parameters()):
        is_table = "embed_tokens" in path and not config["tie_word_embeddings"]
        read += 0 if is_table else weight.nbytes * (share if "switch_mlp" in path else 1)
    return round(read)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--family", choices=FAMILIES, help="a shape of FAMILIES; sizes below are not used then")
    parser.add_argument("--large", action="store_true", help="the family's shape in LARGE")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, help="default: 8/3 of the hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, help="default: as many as heads")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--tied", action="store_true", help="one matrix for embedding and head")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--bits", type=int, choices=[2, 3, 4, 5, 6, 8], help="quantize (affine)")
    parser.add_argument("--group-size", type=int, default=64, choices=[32, 64, 128])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.large and args.family not in LARGE:
        parser.error(f"--large is there for {', '.join(LARGE)}")
    if args.vocab < 256 + len(SPECIAL):
        parser.error(f"--vocab must be at least {256 + len(SPECIAL)}: all bytes and the special tokens")
    return args


def write_tokenizer(out):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(SPECIAL + alphabet)}, []))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1], "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE}, indent=2) + "\n")


if __name__ == "__main__":
    main()
