#!/usr/bin/env python3
"""Makes of a checkpoint by make_model.py the file that llama.cpp reads, to measure speed with.

    make_gguf.py MODEL_DIR OUT.gguf

Float32 becomes F32, bfloat16 BF16, and 4-bit affine Q4_0: dequantized and quantized anew, embedding
and head too, so that both sides read as many bits for a weight (4.5, and 5 where scales are float32).
Norms are F32. The file has no tokenizer: llama.cpp then takes token ids only.
"""

import argparse
import json
import os
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    if config["model_type"] != "llama":
        parser.error(f"only Llama's architecture is known here, not {config['model_type']}")
    kind, file_type = packing(config, parser)
    # A file that is there is whole.
    unfinished = args.out.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, "llama")
    describe(writer, config, file_type)
    for name, array in tensors(args.model, config):
        # llama.cpp wants vectors in F32 whatever the matrices are.
        own = kind if array.ndim > 1 else gguf.GGMLQuantizationType.F32
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
    heads = config["num_attention_heads"]
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_tokenizer_model("none")


def tensors(model, config):
    """Each tensor in float32, by its name in GGUF."""
    stored = {}
    for file in sorted(model.glob("*.safetensors")):
        stored.update(mx.load(str(file)))
    for name, weight in stored.items():
        module, _, role = name.rpartition(".")
        if role != "weight":
            continue
        if (scales := stored.get(f"{module}.scales")) is not None:
            quantization = config["quantization"]
            weight = mx.dequantize(
                weight, scales, stored[f"{module}.biases"], quantization["group_size"], quantization["bits"])
        array = np.array(weight.astype(mx.float32))
        if module.endswith(".q_proj"):
            array = interleaved(array, config["num_attention_heads"])
        if module.endswith(".k_proj"):
            array = interleaved(array, config["num_key_value_heads"])
        yield renamed(module), array


def interleaved(array, heads):
    """llama.cpp turns neighbours of a head together, where Hugging Face's order has its two halves."""
    return array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def renamed(module):
    if module in NAMES:
        return f"{NAMES[module]}.weight"
    _, _, layer, module = module.split(".", 3)
    return f"blk.{layer}.{NAMES[module]}.weight"


if __name__ == "__main__":
    main()
