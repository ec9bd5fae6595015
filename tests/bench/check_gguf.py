#!/usr/bin/env python3
"""Whether llama.cpp says the same with a file by make_gguf.py as mlx-lm with the checkpoint that it is made of.

    check_gguf.py FOLDER [FAMILY ...]

Makes a random model of each family in FOLDER, in float32 since in fewer bits the likeliest tokens are often close, and
counts how many greedy tokens are the same from the start, of some after each of several prompts; llama.cpp has KV in
float32 for that, too. mlx-lm rounds Gemma's factor of embeddings to bfloat16, so that its tokens differ at last.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from make_gguf import ARCHITECTURES

HERE = Path(__file__).parent
PROMPTS = 4
COUNT = 8


def main():
    folder, *families = sys.argv[1:] or sys.exit(__doc__)
    wrong = 0
    for family in families or ARCHITECTURES:
        model, file = Path(folder) / f"check-{family}", Path(folder) / f"check-{family}.gguf"
        shutil.rmtree(model, ignore_errors=True)
        python("make_model.py", model, "--family", family)
        python("make_gguf.py", model, file)
        same, all_of_them = 0, []
        for seed in range(PROMPTS):
            theirs = tokens("llama_cpp_bench.py", file, seed, "--kv", "f32", "--flash-attention", "off")
            ours = tokens("mlx_lm_bench.py", model, seed)
            same += next((index for index, (a, b) in enumerate(zip(theirs, ours)) if a != b), COUNT)
            all_of_them += ours
        wrong += same < len(all_of_them)
        print(f"{family:<14} {same} of {len(all_of_them)} tokens are the same, of {len(set(all_of_them))} kinds", flush=True)
        shutil.rmtree(model)
        file.unlink()
    sys.exit(wrong > 0)


def tokens(script, model, seed, *options):
    lengths = ["--prompt", 64, "--decode", COUNT - 1, "--repeat", 1]
    said = python(script, model, *lengths, "--seed", seed, *options, "--show-tokens")
    return json.loads(said.splitlines()[-1])["tokens"]


def python(script, *args):
    command = [sys.executable, HERE / script, *args]
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
