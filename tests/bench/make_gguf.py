#!/usr/bin/env python3
"""Makes of a checkpoint by make_model.py the file that llama.cpp reads, to measure speed with.

    make_gguf.py MODEL_DIR OUT.gguf

Float32 becomes F32, bfloat16 BF16, and 4-bit affine Q4_0: dequantized and quantized anew, embedding
and head too, so that both sides read as many bits for a weight (4.5, and 5 where scales are float32).
Vectors, and what chooses experts, are F32. The file has no tokenizer: llama.cpp then takes token ids only.
check_gguf.py says whether llama.cpp understands the file as mlx-lm does the checkpoint.
"""

import argparse
import json
import os
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA, "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
    "glm4_moe_lite": gguf.MODEL_ARCH.DEEPSEEK2, "kimi_k2": gguf.MODEL_ARCH.DEEPSEEK2,
    "minimax_m2": gguf.MODEL_ARCH.MINIMAXM2, "seed_oss": gguf.MODEL_ARCH.SEED_OSS,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
}
# Where mlx-lm's names are not those of Hugging Face, which `gguf` knows.
RENAMED = [("block_sparse_moe.e_score", "mlp.gate.e_score"), ("block_sparse_moe", "mlp"), ("switch_mlp", "experts"),
           ("embed_q", "k_b_proj"), ("unembed_out", "v_b_proj"), ("e_score_correction_bias", "e_score_correction.bias")]
# Of these llama.cpp turns neighbours of a head together, where Hugging Face's order has its two halves.
INTERLEAVED = ("llama", "smollm3")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    if (architecture := ARCHITECTURES.get(config["model_type"])) is None:
        parser.error(f"only {', '.join(ARCHITECTURES)} are known here, not {config['model_type']}")
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        parser.error(f"positions are not scaled here: {scaling}")
    kind, file_type = packing(config, parser)
    # A file that is there is whole.
    unfinished = args.out.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, gguf.MODEL_ARCH_NAMES[architecture])
    describe(writer, config, file_type)
    for name, array in tensors(args.model, config, architecture):
        # llama.cpp wants these in F32 whatever the matrices are.
        small = array.ndim == 1 or "ffn_gate_inp" in name
        own = gguf.GGMLQuantizationType.F32 if small else kind
        writer.add_tensor(name, gguf.quants.quantize(array, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, args.out)
    print(f"{args.out}: {kind.name}, {args.out.stat().st_size / 2**20:.1f} MiB")


def packing(config, parser):
    """What GGUF calls the type of the matrices, and a file of them."""
    types, files = gguf.GGMLQuantizationType, gguf.LlamaFileType
    if quantization := config.get("quantization"):
        if quantization["bits"] != 4 or quantization.get("mode", "affine") != "affine":
            parser.error(f"only 4-bit affine has a counterpart here, not {quantization}")
        return types.Q4_0, files.MOSTLY_Q4_0
    dense = {"float32": (types.F32, files.ALL_F32), "bfloat16": (types.BF16, files.MOSTLY_BF16)}
    if config["torch_dtype"] not in dense:
        parser.error(f"only {' and '.join(dense)} are known here, not {config['torch_dtype']}")
    return dense[config["torch_dtype"]]


def describe(writer, config, file_type):
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_tokenizer_model("none")
    describe_attention(writer, config)
    if "num_experts_per_tok" in config:
        describe_experts(writer, config)


def describe_attention(writer, config):
    heads = config["num_attention_heads"]
    writer.add_head_count(heads)
    if rank := config.get("kv_lora_rank"):
        turned = config["qk_rope_head_dim"]
        # All heads share one key and one value: what is compressed.
        writer.add_head_count_kv(1)
        writer.add_key_length(rank + turned)
        writer.add_value_length(rank)
        writer.add_key_length_mla(config["qk_nope_head_dim"] + turned)
        writer.add_value_length_mla(config["v_head_dim"])
        writer.add_q_lora_rank(config["q_lora_rank"])
        writer.add_kv_lora_rank(rank)
    else:
        each = config.get("head_dim") or config["hidden_size"] // heads
        turned = config.get("rotary_dim") or int(each * config.get("partial_rotary_factor", 1))
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(each)
        writer.add_value_length(each)
    writer.add_rope_dimension_count(turned)
    if pattern := config.get("sliding_window_pattern"):
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern(pattern)
        writer.add_rope_freq_base_swa(config["rope_local_base_freq"])


def describe_experts(writer, config):
    functions = {"sigmoid": gguf.ExpertGatingFuncType.SIGMOID, "softmax": gguf.ExpertGatingFuncType.SOFTMAX}
    writer.add_expert_count(config.get("n_routed_experts") or config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config.get("moe_intermediate_size") or config["intermediate_size"])
    writer.add_expert_gating_func(functions[config["scoring_func"]])
    writer.add_expert_shared_count(config.get("n_shared_experts", 0))
    writer.add_leading_dense_block_count(config.get("first_k_dense_replace", 0))
    writer.add_expert_weights_norm(config.get("norm_topk_prob", True))
    writer.add_expert_weights_scale(config.get("routed_scaling_factor", 1.0))


def tensors(model, config, architecture):
    """Each tensor in float32, by its name in GGUF."""
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    stored = {}
    for file in sorted(model.glob("*.safetensors")):
        stored.update(mx.load(str(file)))
    for name, weight in stored.items():
        module, _, role = name.rpartition(".")
        if role in ("scales", "biases"):
            continue
        if (scales := stored.get(f"{module}.scales")) is not None and role == "weight":
            # A module may be packed otherwise than the others.
            packed = config["quantization"].get(module, config["quantization"])
            weight = mx.dequantize(
                weight, scales, stored[f"{module}.biases"], packed["group_size"], packed["bits"])
        array = np.array(weight.astype(mx.float32))
        if config["model_type"].startswith("gemma") and module.endswith("norm"):
            # Its norms are stored as what they are more than one.
            array = array + np.float32(1)
        if config["model_type"] in INTERLEAVED and module.endswith((".q_proj", ".k_proj")):
            heads = "num_attention_heads" if module.endswith(".q_proj") else "num_key_value_heads"
            array = interleaved(array, config[heads])
        yield renamed(name, names), array


def interleaved(array, heads):
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def renamed(name, names):
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    if (known := names.get_name(name, (".weight", ".bias"))) is None:
        raise SystemExit(f"GGUF has no name for {name}")
    return known


if __name__ == "__main__":
    main()
