#!/usr/bin/env python3
"""Makes a random Llama checkpoint of any size, to measure speed with. It speaks noise.

    make_model.py OUT [--hidden 512] [--layers 12] [--heads 8] [--kv-heads 4] [--vocab 8192]
                      [--dtype float32|float16|bfloat16] [--bits 4|8] [--group-size 64]

The tokenizer beside it knows single bytes only, so that a server can load the directory.
"""

import argparse
import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.utils import quantize_model, save_config, save_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def main():
    args = arguments()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": args.vocab,
        "hidden_size": args.hidden, "intermediate_size": args.intermediate or args.hidden * 8 // 3 // 64 * 64,
        "num_hidden_layers": args.layers, "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads or args.heads, "hidden_act": "silu", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": args.tied, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": args.dtype,
    }
    mx.random.seed(args.seed)
    # MLX draws its usual small random weights; only speed matters here.
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.set_dtype(getattr(mx, args.dtype))
    parameters = sum(w.size for _, w in tree_flatten(model.parameters()))
    if args.bits:
        model, config = quantize_model(model, config, args.group_size, args.bits)
    out = Path(args.out)
    save_model(out, model)
    save_config(config, out / "config.json")
    write_tokenizer(out)
    size = sum(p.stat().st_size for p in out.iterdir())
    print(f"{out}: {parameters / 1e6:.1f} million parameters, {size / 2**20:.1f} MiB")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
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
