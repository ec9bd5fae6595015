#!/usr/bin/env python3
"""How fast mlx-lm is with a model: the number that Planaria's own stands beside.

    mlx_lm_bench.py MODEL [--prompt 256] [--decode 64] [--repeat 5]

One sequence, greedy, mlx-lm's default KV cache and prefill step. Prints one line of
JSON; speeds are medians in tokens per second, after one run to warm up.

Prefill is counted as mlx-lm counts it: from the start until the first token is there.
Decode is the time between the first token and the last one.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step, generation_stream
from mlx_lm.utils import load_model


def main():
    args = arguments()
    model, config = load_model(Path(args.model))
    rng = np.random.Generator(np.random.PCG64(args.seed))
    prompt = mx.array(rng.integers(0, config["vocab_size"], args.prompt).astype(np.int32))
    run(model, prompt, args.decode)
    runs = [run(model, prompt, args.decode) for _ in range(args.repeat)]
    prefill, decode, _ = zip(*runs)
    print(json.dumps({
        "tool": "mlx-lm", "mlx_lm": version("mlx-lm"), "mlx": version("mlx"), "model": Path(args.model).name,
        "device": str(mx.default_device()), "threads": threads(), "prompt_tokens": args.prompt,
        "decode_tokens": args.decode, "repetitions": args.repeat,
        "prefill_tokens_per_second": round(statistics.median(prefill), 2),
        "decode_tokens_per_second": round(statistics.median(decode), 2),
        "prefill_min": round(min(prefill), 2), "prefill_max": round(max(prefill), 2),
        "decode_min": round(min(decode), 2), "decode_max": round(max(decode), 2),
    } | ({"tokens": runs[-1][2]} if args.show_tokens else {})))


def run(model, prompt, count):
    """(prefill, decode) in tokens per second of one generation, and its tokens."""
    started = time.perf_counter()
    steps = generate_step(prompt, model, max_tokens=count + 1)
    tokens = [int(next(steps)[0])]
    first = time.perf_counter()
    tokens += [int(token) for token, _ in steps]
    done = time.perf_counter()
    # mlx-lm computes one token ahead; do not let that one run into the next measurement.
    mx.synchronize(generation_stream)
    return prompt.size / (first - started), count / (done - first), tokens


def threads():
    """What BLAS may use; on macOS with Metal it says how many cores there are."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if value := os.environ.get(name):
            return int(value)
    return len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=64, help="tokens to generate after the first")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show-tokens", action="store_true", help="add the tokens of the last run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
