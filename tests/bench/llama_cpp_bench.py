#!/usr/bin/env python3
"""How fast llama.cpp is with a model: a number that Planaria's own stands beside.

    llama_cpp_bench.py MODEL.gguf [--prompt 256] [--decode 64] [--repeat 5] [--threads N]
                       [--flash-attention on|off] [--sequences N] [--kv f16|f32]

One sequence, greedy, KV in f16, which is llama.cpp's default. Prints one line of JSON; speeds are
medians in tokens per second, after one run to warm up, and mean what they do in mlx_lm_bench.py:
prefill lasts from the start until the first token is there (the prompt goes in as one batch, and
only its last token gets logits), decode from the first token to the last one.

With N sequences, each with a prompt of its own, prompts are read one after the other, and then each
step takes a token of every sequence as one batch. `tokens_per_second` is what all of them get, prompts
included: as many clients of a server that ask at the same moment see.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def quiet(_level, _text, _data):
    """Says nothing of what llama.cpp says about each tensor."""


def main():
    args = arguments()
    if not args.verbose:
        llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    model, context, vocab = load(args)
    rng = np.random.Generator(np.random.PCG64(args.seed))
    prompts = [rng.integers(0, vocab, args.prompt).astype(np.int32) for _ in range(args.sequences)]
    run(context, vocab, prompts, args.decode)
    runs = [run(context, vocab, prompts, args.decode) for _ in range(args.repeat)]
    prefill, decode, together, _ = zip(*runs)
    print(json.dumps({
        "tool": "llama.cpp", "llama_cpp_python": version("llama-cpp-python"), "model": Path(args.model).name,
        "device": llama_cpp.llama_print_system_info().decode().strip(), "threads": args.threads,
        "flash_attention": args.flash_attention, "prompt_tokens": args.prompt, "decode_tokens": args.decode,
        "sequences": args.sequences, "repetitions": args.repeat, "weight_bytes": llama_cpp.llama_model_size(model),
        "prefill_tokens_per_second": round(statistics.median(prefill), 2),
        "decode_tokens_per_second": round(statistics.median(decode), 2),
        "tokens_per_second": round(statistics.median(together), 2),
        "prefill_min": round(min(prefill), 2), "prefill_max": round(max(prefill), 2),
        "decode_min": round(min(decode), 2), "decode_max": round(max(decode), 2),
    } | ({"tokens": runs[-1][3][0]} if args.show_tokens else {})))


def load(args):
    """The model, a context, and the number of token ids."""
    model = llama_cpp.llama_model_load_from_file(
        os.fsencode(args.model), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp could not load {args.model}")
    params = llama_cpp.llama_context_default_params()
    # It gives each sequence an equal part, of whole pieces of 256.
    params.n_ctx = args.sequences * -(-(args.prompt + args.decode + 1) // 256) * 256
    params.n_seq_max = args.sequences
    params.n_batch = params.n_ubatch = max(args.prompt, args.sequences)
    params.n_threads = params.n_threads_batch = args.threads
    params.type_k = params.type_v = {"f16": llama_cpp.GGML_TYPE_F16, "f32": llama_cpp.GGML_TYPE_F32}[args.kv]
    params.flash_attn_type = {
        "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }[args.flash_attention]
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise SystemExit(f"llama.cpp could not make a context for {args.model}")
    return model, context, llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))


def run(context, vocab, prompts, count):
    """(prefill, decode, both) in tokens per second of one generation, and the tokens of each sequence."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
    started = time.perf_counter()
    answers = [step(context, vocab, prompt, 0, [own]) for own, prompt in enumerate(prompts)]
    first = time.perf_counter()
    for position in range(prompts[0].size, prompts[0].size + count):
        ids = np.array([answer[-1] for answer in answers], np.int32)
        for answer, token in zip(answers, step(context, vocab, ids, position, range(len(prompts)))):
            answer.append(token)
    done = time.perf_counter()
    read, said = sum(prompt.size for prompt in prompts), len(prompts) * count
    both = (said + len(prompts)) / (done - started)
    return read / (first - started), said / (done - first), both, answers


def step(context, vocab, ids, position, sequences):
    """Takes these token ids in, as one batch, and gives the likeliest next one of each sequence: a prompt of
    one sequence, or a token at the same position of each."""
    alone = len(sequences) == 1
    batch = llama_cpp.llama_batch_init(ids.size, 0, 1)
    batch.n_tokens = ids.size
    for index, token in enumerate(ids):
        batch.token[index] = token
        batch.pos[index] = position + index if alone else position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequences[0] if alone else sequences[index]
        batch.logits[index] = not alone or index == ids.size - 1
    status = llama_cpp.llama_decode(context, batch)
    if status != 0:
        raise SystemExit(f"llama_decode gave {status}")
    wanted = [-1] if alone else range(len(sequences))
    rows = (llama_cpp.llama_get_logits_ith(context, index) for index in wanted)
    tokens = [int(np.ctypeslib.as_array(row, (vocab,)).argmax()) for row in rows]
    llama_cpp.llama_batch_free(batch)
    return tokens


def cores():
    return len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file, as make_gguf.py makes it")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=64, help="tokens to generate after the first")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores(), help="default: one for each core")
    parser.add_argument("--sequences", type=int, default=1, help="how many are decoded together")
    parser.add_argument("--flash-attention", choices=["on", "off"], default="on")
    parser.add_argument("--kv", choices=["f16", "f32"], default="f16", help="what keys and values are kept in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="let llama.cpp say what it does")
    parser.add_argument("--show-tokens", action="store_true", help="add the tokens of the last run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
