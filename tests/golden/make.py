#!/usr/bin/env python3
"""Makes the golden files: tiny Llama checkpoints and what mlx-lm says with them.

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
- the tokens do not depend on how the prompt is cut: whole, in chunks of seven
  and one by one give the same;
- they depend on everything that can be got wrong: RoPE, its scaling, every bias
  and norm, the order of the layers, the KV cache. Each of these is broken on
  purpose, and most of the prompts must notice.

golden.json: `texts` (the prompts as text), `prompts` (their ids, which is what
the shipped tokenizer gives), `tokens` (greedy, end of sequence ignored; no
special token is among them), `completions` (the tokens as text), versions.
"""

import argparse
import contextlib
import filecmp
import json
import math
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# One thread adds up in one order, so a second run gives the same files.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.generate import generate_step
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

HERE = Path(__file__).resolve().parent
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
MERGES = ["Ġ t", "h e", "i n", "e r", "a n", "Ġ a", "o n", "Ġt he", "in g", "Ġ s"]
VOCAB = len(SPECIAL) + 256 + len(MERGES)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}")

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 48,
    "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5}

# Prompt lengths. The long one crosses several chunks and, with its answer, grows any KV
# cache that grows in steps of up to 128.
LENGTHS = [1, 2, 7, 17, 40, 150]


def steps_for(length, case):
    """How many tokens to ask for: fewer where clear paths are rare."""
    if "dtype" not in case:
        return 26
    return 10 if length == 1 else 20


# Every case: what differs from BASE, how it is stored, how it is quantized.
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
}
# A logit is about 3 here. In float32 the noise is less than a thousandth of the first of these.
LOWEST_MARGIN = {"float32": 0.15, "float16": 0.2, "bfloat16": 0.4}
SEEDS_PER_CASE = 1000


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
    """A checkpoint whose greedy paths are clear, in `out`, with its golden.json."""
    case = CASES[name]
    tokenizer = make_tokenizer()
    index = list(CASES).index(name)
    for attempt in range(100):
        shutil.rmtree(out, ignore_errors=True)
        write_checkpoint(case, SEEDS_PER_CASE * (index + 1) + attempt, out)
        write_tokenizer(tokenizer, out)
        model, _ = load_model(out)
        found = []
        for length in LENGTHS:
            found.append(find_prompt(model, tokenizer, length, case, index))
            if not found[-1]:
                print(f"{name}: attempt {attempt}: no clear path for a prompt of {length}", flush=True)
                break
        else:
            break
    else:
        raise SystemExit(f"{name}: no model with clear greedy paths")

    texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids, _, _ in found]
    prompts = [ids for ids, _, _ in found]
    tokens = [greedy(model, ids, steps_for(len(ids), case)) for ids in prompts]
    for text, ids, path in zip(texts, prompts, tokens):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, "the tokenizer must give the prompt back"
        for chunk in (7, 1):
            assert greedy(model, ids, len(path), chunk) == path, f"{name}: chunks of {chunk} change the tokens"
    noticed = prove_sensitive(out, prompts, tokens)
    golden = {
        "texts": texts,
        "prompts": prompts,
        "tokens": tokens,
        "completions": [tokenizer.decode(path, skip_special_tokens=True) for path in tokens],
        "mlx_lm": version("mlx-lm"),
        "mlx": version("mlx"),
        "min_margin": round(min(margin for _, margin, _ in found), 3),
        "noise": float(f"{max(noise for _, _, noise in found):.1e}"),
    }
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
          f"prompts of {len(prompts)} that notice: {noticed}", flush=True)


# The checkpoint.

def write_checkpoint(case, seed, out):
    config = BASE | case["config"]
    dtype = case.get("dtype", "float32")
    config["torch_dtype"] = dtype
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.update(random_parameters(model, seed, "dtype" in case))
    model.set_dtype(getattr(mx, dtype))
    if quantize := case.get("quantize"):
        overrides = case.get("overrides", {})
        with contextlib.redirect_stdout(sys.stderr):
            model, config = quantize_model(
                model, config, **quantize,
                quant_predicate=lambda path, _: overrides.get(path, True))
        for path, value in overrides.items():
            config["quantization"][path] = value
    out.mkdir(parents=True, exist_ok=True)
    mx.eval(model.parameters())
    if files := case.get("files"):
        save_in_files(model, files, out)
    else:
        save_model(out, model)
    save_config(config, out / "config.json")


def random_parameters(model, seed, low_precision):
    """Weights with which the next token depends strongly on all that came before.

    Queries and keys are large, so attention chooses; what a layer adds is as large as
    what it got, so the last token alone does not decide; norms and biases differ from
    one and zero, so leaving one out shows. All of that also magnifies rounding, so
    there is less of it in low precision. Few tokens have a strong row in the head:
    with fewer rivals the gap between the best two is wider.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    attention, entry = (1.1, 6.0) if low_precision else (1.8, 3.0)
    tied = not hasattr(model, "lm_head")
    gains = {"q_proj": attention, "k_proj": attention, "v_proj": 1.0, "o_proj": 1.0, "gate_proj": 1.0,
             "up_proj": 1.0, "down_proj": 1.4, "embed_tokens": entry, "lm_head": entry}

    def draw(path, old):
        kind = path.split(".")[-2]
        if path == "model.norm.weight":
            # Signs keep a tied head from always preferring the token that it just got.
            return rng.uniform(0.5, 1.5, old.shape) * rng.choice([-1.0, 1.0], old.shape)
        if "norm" in kind:
            return rng.uniform(0.5, 1.5, old.shape)
        if path.endswith(".bias"):
            return rng.normal(0, 0.5, old.shape)
        values = rng.normal(0, gains[kind] / math.sqrt(old.shape[-1]), old.shape)
        if kind == ("embed_tokens" if tied else "lm_head"):
            strong = rng.choice(np.arange(len(SPECIAL), VOCAB), 32, replace=False)
            values[np.setdiff1d(np.arange(len(values)), strong)] *= 0.4
        return values

    return tree_unflatten([(path, mx.array(draw(path, old).astype(np.float32)))
                           for path, old in tree_flatten(model.parameters())])


def save_in_files(model, count, out):
    """Several files with an index, as hubs split large models; cuts fall inside layers."""
    weights = list(tree_flatten(model.parameters()))
    each = math.ceil(len(weights) / count)
    where = {}
    for i in range(count):
        part = dict(weights[i * each:(i + 1) * each])
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        mx.save_safetensors(str(out / name), part, {"format": "mlx"})
        where |= {path: name for path in part}
    index = {"metadata": {"total_size": sum(w.nbytes for _, w in weights)}, "weight_map": dict(sorted(where.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


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


# Greedy paths.

def greedy(model, ids, count, chunk=2048):
    """What mlx-lm's own generator says, with the prompt read in chunks."""
    steps = generate_step(mx.array(ids), model, max_tokens=count, prefill_step_size=chunk)
    return [int(token) for token, _ in steps]


def greedy_rows(model, prompts, count):
    """Greedy tokens and all logits for rows of equal length at once: for the search only."""
    cache = make_prompt_cache(model)
    logits = model(mx.array(prompts), cache=cache)[:, -1].astype(mx.float32)
    tokens, scores = [], []
    for _ in range(count):
        best = mx.argmax(logits, axis=-1)
        mx.eval(best, logits)
        tokens.append(np.array(best))
        scores.append(np.array(logits))
        logits = model(best[:, None], cache=cache)[:, -1].astype(mx.float32)
    return np.stack(tokens, 1), np.stack(scores, 1)


def find_prompt(model, tokenizer, length, case, index):
    """(ids, margin, noise) of a prompt with a clear and lively path, or None.

    The search itself is in float32, which is fast; the path that counts is mlx-lm's.
    """
    exact = as_float32(model) if "dtype" in case else None
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
            if margin >= max(low, case.get("safety", 2) * noise):
                return ids, margin, noise
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


def margin_and_noise(model, exact, ids, path):
    """The smallest gap of a path, and how far a gap moves when it is computed in another way.

    For a low precision the other way is float32; for float32 it is one token at a time.
    """
    whole = mx.array([ids + path[:-1]])
    one = model(whole).astype(mx.float32)
    if exact:
        other = exact(whole)
    else:
        cache = make_prompt_cache(model)
        other = mx.concatenate([model(whole[:, i:i + 1], cache=cache) for i in range(whole.shape[1])], axis=1)
    one, other = np.array(one[0, len(ids) - 1:]), np.array(other[0, len(ids) - 1:])
    steps = np.arange(len(path))
    order = np.argsort(-one, axis=-1)
    best, rivals = order[:, 0], order[:, 1:4]
    gaps = one[steps, best][:, None] - one[steps[:, None], rivals]
    moved = other[steps, best][:, None] - other[steps[:, None], rivals]
    return float(gaps.min()), float(np.abs(gaps - moved).max())


def as_float32(model):
    """The same weights computed in float32 (packed weights stay packed, their scales widen)."""
    args = model.args
    other = llama.Model(args)
    flat = dict(tree_flatten(model.parameters()))
    quantized = {path: module for path, module in model.named_modules() if hasattr(module, "bits")}
    nn.quantize(other, class_predicate=lambda path, _: (
        {"group_size": quantized[path].group_size, "bits": quantized[path].bits} if path in quantized else False))
    other.load_weights([(path, w.astype(mx.float32) if mx.issubdtype(w.dtype, mx.floating) else w)
                        for path, w in flat.items()])
    mx.eval(other.parameters())
    return other


# The proof that the golden tokens would notice a mistake.

def prove_sensitive(out, prompts, tokens):
    """Breaks one thing at a time; most prompts must give other tokens. Returns how many did."""
    noticed = {}
    for mistake, break_it in MISTAKES.items():
        model, config = load_model(out)
        if break_it(model, config) is False:
            continue
        changed = sum(greedy(model, ids, len(path)) != path for ids, path in zip(prompts, tokens))
        noticed[mistake] = changed
        assert changed >= len(prompts) - 1, f"{out.name}: {mistake} is noticed by {changed} prompts only"
    return noticed


def no_rope(model, _):
    for layer in model.layers:
        layer.self_attn.rope = lambda x, offset=0: x


def rope_not_scaled(model, config):
    if not config.get("rope_scaling"):
        return False
    attention = model.layers[0].self_attn
    plain = nn.RoPE(attention.head_dim, traditional=False, base=config["rope_theta"])
    for layer in model.layers:
        layer.self_attn.rope = plain


def rope_of_pairs(model, config):
    plain = nn.RoPE(model.layers[0].self_attn.head_dim, traditional=True, base=config["rope_theta"])
    for layer in model.layers:
        layer.self_attn.rope = plain


def rope_stuck(model, _):
    """Positions stop at five, as if the answer's offset did not grow."""
    for layer in model.layers:
        rope = layer.self_attn.rope
        layer.self_attn.rope = lambda x, offset=0, rope=rope: rope(x, offset=min(offset, 5))


def heads_mixed(model, config):
    """Query heads meet the wrong key heads."""
    if config["num_key_value_heads"] in (1, config["num_attention_heads"]):
        return False
    for layer in model.layers:
        for name in ("k_proj", "v_proj"):
            module = getattr(layer.self_attn, name)
            heads = layer.self_attn.n_kv_heads
            module.update(tree_map(lambda w: mx.concatenate(mx.split(w, heads)[::-1]), module.parameters()))


def layers_swapped(model, _):
    model.model.layers[1], model.model.layers[2] = model.model.layers[2], model.model.layers[1]


def flat(ending, value):
    def break_it(model, _):
        found = [(p, w) for p, w in tree_flatten(model.parameters()) if p.endswith(ending)]
        if not found:
            return False
        model.load_weights([(p, mx.full(w.shape, value, w.dtype)) for p, w in found], strict=False)
    return break_it


def epsilon(model, _):
    for _, module in model.named_modules():
        if isinstance(module, nn.RMSNorm):
            module.eps = 0.3


MISTAKES = {
    "no RoPE": no_rope,
    "RoPE not scaled": rope_not_scaled,
    "RoPE of pairs": rope_of_pairs,
    "offset stands still": rope_stuck,
    "heads mixed": heads_mixed,
    "layers swapped": layers_swapped,
    "no input norm": flat("input_layernorm.weight", 1.0),
    "no second norm": flat("post_attention_layernorm.weight", 1.0),
    "no last norm": flat("model.norm.weight", 1.0),
    "no q bias": flat("q_proj.bias", 0.0),
    "no v bias": flat("v_proj.bias", 0.0),
    "no o bias": flat("o_proj.bias", 0.0),
    "no gate bias": flat("gate_proj.bias", 0.0),
    "no up bias": flat("up_proj.bias", 0.0),
    "no down bias": flat("down_proj.bias", 0.0),
    "epsilon ignored": epsilon,
}

if __name__ == "__main__":
    main()
