#!/usr/bin/env python3
"""Makes the golden files: tiny checkpoints and what mlx-lm says with them.

Each directory beside this script is a model in the usual layout with random
weights, and a `golden.json`: prompts and the greedy tokens that mlx-lm's own
loader, model and generator give for them. Planaria must give the same.

    python3 -m venv /tmp/venv
    /tmp/venv/bin/pip install -r tests/golden/requirements.txt
    /tmp/venv/bin/python tests/golden/make.py            write all anew
    /tmp/venv/bin/python tests/golden/make.py --check    compare, write nothing
    /tmp/venv/bin/python tests/golden/make.py NAME...    only these

Random models are a hard test only if they are chosen well. So for every case
- no step of a greedy path is a near tie: the smallest gap between the best and
  the second logit is far above the rounding noise of the case's dtype
  (`min_margin`), and for a low precision float32 gives the same path (`noise` is
  how much a gap between rivals differs from float32, or between ways to cut);
- nor is the choice of an expert (`min_choice_margin`) or of a position to look at (`min_index_margin`);
- the tokens do not depend on how the prompt is cut: whole, in chunks of seven
  and one by one give the same;
- they depend on everything that can be got wrong: RoPE, its scaling, every bias
  and norm, the order of the layers, the KV cache, windows, sinks, the choice and
  the weights of experts. Each of these is broken on purpose, and most of the
  prompts must notice.

cases.py says which cases there are, checkpoint.py, layouts.py and formats.py write them,
reference.py has the models that answer, mistakes.py breaks them.

golden.json: `texts` (the prompts as text), `prompts` (their ids, which is what
the shipped tokenizer gives), `tokens` (greedy, end of sequence ignored; no
special token is among them), `completions` (the tokens as text), versions.
`kv_bits`, where it is there, is the setting with which they are given.
`differs_from_mlx_lm`, where it is there, says why the tokens are not mlx-lm's own.
`logprobs`, where a family caps its logits or divides them (which changes no greedy token), are the
logarithms of the probabilities of `tokens`.
"""

import argparse
import filecmp
import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# One thread adds up in one order, so a second run gives the same files.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from mlx_lm.utils import load_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from cases import (BASE, CASES, LENGTHS, LOWEST_CHOICE_MARGIN, LOWEST_INDEX_MARGIN, LOWEST_MARGIN, MERGES, SEEDS_PER_CASE, SPECIAL, VOCAB,
                   steps_for)
from checkpoint import write_checkpoint
from mistakes import count_noticed
from reference import (DIFFERENCES, as_float32, choice_margin, greedy, greedy_by_mlx_lm, greedy_rows, index_margin, kv_bits,
                       load, logprobs, margin_and_noise)

HERE = Path(__file__).resolve().parent
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is there, write nothing")
    parser.add_argument("names", nargs="*", help="cases (default: all)")
    args = parser.parse_args()
    differences = []
    for name in args.names or CASES:
        with tempfile.TemporaryDirectory() as temporary:
            made = Path(temporary) / name
            make_case(name, made)
            there = HERE / name
            if args.check:
                differences += compare(made, there)
                continue
            shutil.rmtree(there, ignore_errors=True)
            shutil.copytree(made, there)
    for difference in differences:
        print(f"differs: {difference}")
    sys.exit(1 if differences else 0)


def compare(made, there):
    names = {p.name for p in made.iterdir()} | {p.name for p in there.iterdir()} if there.is_dir() else {"(missing)"}
    _, different, absent = filecmp.cmpfiles(made, there, sorted(names), shallow=False)
    return [f"{there.name}/{name}" for name in different + absent]


def make_case(name, out):
    """A checkpoint whose greedy paths are clear and notice mistakes, in `out`, with its golden.json."""
    case = CASES[name]
    tokenizer = make_tokenizer()
    index = case.get("index", list(CASES).index(name))
    for attempt in range(100):
        shutil.rmtree(out, ignore_errors=True)
        write_checkpoint(case, SEEDS_PER_CASE * (index + 1) + attempt, out)
        if bits := case.get("kv_bits"):
            (out / "golden.json").write_text(json.dumps({"kv_bits": bits}))
        write_tokenizer(tokenizer, out)
        model, config = load(out)
        found = []
        for length in LENGTHS:
            found.append(find_prompt(model, config, tokenizer, length, case, index))
            if not found[-1]:
                print(f"{name}: attempt {attempt}: no clear path for a prompt of {length}", flush=True)
                break
        else:
            prompts = [ids for ids, _, _, _ in found]
            tokens = [greedy(model, ids, steps_for(len(ids), case)) for ids in prompts]
            noticed, missed = count_noticed(out, prompts, tokens)
            if not missed and is_mlx_lms(out, case, prompts, tokens):
                break
            print(f"{name}: attempt {attempt}: too few notice {missed}: {noticed}", flush=True)
    else:
        raise SystemExit(f"{name}: no model with clear greedy paths")

    texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in prompts]
    for text, ids, path in zip(texts, prompts, tokens):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, "the tokenizer must give the prompt back"
        for chunk in (7, 1):
            assert greedy(model, ids, len(path), chunk) == path, f"{name}: chunks of {chunk} change the tokens"
    golden = {
        "texts": texts,
        "prompts": prompts,
        "tokens": tokens,
        "completions": [tokenizer.decode(path, skip_special_tokens=True) for path in tokens],
        "mlx_lm": version("mlx-lm"),
        "mlx": version("mlx"),
        "min_margin": round(min(margin for _, margin, _, _ in found), 3),
        "noise": float(f"{max(noise for _, _, noise, _ in found):.1e}"),
    }
    choice = min(choice for _, _, _, choice in found)
    if choice < float("inf"):
        golden["min_choice_margin"] = float(f"{choice:.1e}")
    if (index_choice := min(index_margin(model, ids + path) for ids, path in zip(prompts, tokens))) < float("inf"):
        golden["min_index_margin"] = float(f"{index_choice:.1e}")
    inner = getattr(model, "language_model", model)
    if getattr(inner, "final_logit_softcapping", None) or hasattr(inner, "logits_scaling"):
        golden["logprobs"] = [logprobs(model, ids, path) for ids, path in zip(prompts, tokens)]
    if bits := kv_bits(out):
        golden["kv_bits"] = bits
    if reason := DIFFERENCES.get(config["model_type"]):
        check_difference(out, config["sliding_window"], prompts, tokens)
        golden["differs_from_mlx_lm"] = reason
    # One prompt in a line, so that a difference can be read.
    lines = []
    for key, value in golden.items():
        if isinstance(value, list):
            value = "[\n    " + ",\n    ".join(json.dumps(item) for item in value) + "\n  ]"
        else:
            value = json.dumps(value)
        lines.append(f'  "{key}": {value}')
    (out / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    size = sum(p.stat().st_size for p in out.iterdir()) / 1024
    print(f"{name}: {size:.0f} KiB, attempt {attempt}, margin {golden['min_margin']}, noise {golden['noise']}, "
          f"choice {choice:.1e}, prompts of {len(prompts)} that notice: {noticed}", flush=True)


def is_mlx_lms(out, case, prompts, tokens):
    """Whether mlx-lm's own packed cache gives the same tokens, where it has one."""
    if not kv_bits(out) or case.get("family", "llama") != "llama":
        return True
    return all(greedy_by_mlx_lm(out, ids, len(path)) == path for ids, path in zip(prompts, tokens))


def check_difference(out, window, prompts, tokens):
    """mlx-lm itself gives other tokens where the window matters, and the same where it cannot."""
    model, _ = load_model(out)
    same = [greedy(model, ids, len(path)) == path for ids, path in zip(prompts, tokens)]
    # The last token of an answer is not read.
    within = [len(ids) + len(path) - 1 <= window for ids, path in zip(prompts, tokens)]
    assert any(within) and all(s for s, w in zip(same, within) if w), f"{out.name}: the window changes short prompts"
    assert not all(same), f"{out.name}: the window changes nothing"


# The tokenizer: all bytes, a few merges, a few special tokens.

def make_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    vocab = {token: i for i, token in enumerate(SPECIAL + alphabet + ["".join(merge) for merge in merges])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def write_tokenizer(tokenizer, out):
    (out / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": BASE["max_position_embeddings"],
        "bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[0],
        "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE}, indent=2) + "\n")


# The search for clear greedy paths.

def find_prompt(model, config, tokenizer, length, case, index):
    """(ids, margin, noise, margin of the experts' choice) of a prompt with a clear and lively path, or None.

    The search itself is in float32, which is fast; the path that counts is mlx-lm's.
    """
    exact = as_float32(model, config) if "dtype" in case else None
    low = LOWEST_MARGIN[case.get("dtype", "float32")]
    count = steps_for(length, case)
    rng = np.random.Generator(np.random.PCG64(77 * length + index))
    for _ in range(1 if length == 1 else 8):
        candidates = random_prompts(tokenizer, length, rng)
        tokens, scores = greedy_rows(exact or model, candidates, count)
        ordered = np.sort(scores, axis=-1)
        margins = (ordered[..., -1] - ordered[..., -2]).min(axis=-1)
        good = [row for row in np.argsort(-margins) if margins[row] >= low and fit_for_use(tokens[row].tolist())]
        # The liveliest first: the margin only has to be large enough.
        good.sort(key=lambda row: -len(set(tokens[row].tolist())))
        for row in good[:16]:
            ids, path = candidates[row], tokens[row].tolist()
            if greedy(model, ids, count) != path:
                continue
            margin, noise = margin_and_noise(model, exact, ids, path)
            if margin < max(low, case.get("safety", 2) * noise):
                continue
            choice = choice_margin(model, ids + path)
            if choice >= LOWEST_CHOICE_MARGIN and index_margin(model, ids + path) >= LOWEST_INDEX_MARGIN:
                return ids, margin, noise, choice
    return None


def random_prompts(tokenizer, length, rng):
    """Prompts of so many tokens that the tokenizer gives back from their text."""
    if length == 1:
        found = [[i] for i in range(len(SPECIAL), VOCAB)]
    else:
        letters = list("etaoinshrdlucmfwyp ,.")
        found = [tokenizer.encode("".join(rng.choice(letters, length * 3)), add_special_tokens=False).ids[:length]
                 for _ in range(384)]
    return [ids for ids in found if tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False).ids == ids]


def fit_for_use(path):
    """No special token, and neither few tokens nor a short loop: such a path would hide mistakes."""
    loops = any(path[-8:] == path[-8 - period:-period] for period in range(1, 9))
    lively = len(set(path)) >= len(path) // 3 and not loops
    return lively and min(path) >= len(SPECIAL) and max(path) < VOCAB


if __name__ == "__main__":
    main()
