"""The models that golden tokens come from: mlx-lm's, with the windows that it leaves out."""

import contextlib
import copy
import json
import math
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models import deepseek_v32, gemma2
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache
from mlx_lm.utils import load_model

from formats import unpacked

# Why golden tokens are not mlx-lm's own, by family.
DIFFERENCES = {
    "mistral": "Every layer sees the last `sliding_window` positions only, as Mistral AI and Hugging Face transformers "
               "define the family; mlx-lm loads it as llama and ignores the window.",
    "gemma2": "Layers with an even index see the last `sliding_window` positions only, as Google and Hugging Face "
              "transformers define the family; mlx-lm lets every layer see all.",
}

# mlx-lm 0.32.2 hands its quantized experts' (absent) nvfp4 tensor scale to mlx, and mlx 0.32.2 does not know the
# argument. Nothing else changes.
gather_qmm = mx.gather_qmm


def gather_qmm_without_scale(*args, global_scale=None, **kwargs):
    assert global_scale is None
    return gather_qmm(*args, **kwargs)


mx.gather_qmm = gather_qmm_without_scale


def load(folder):
    """mlx-lm's model and config, with windows where the family has them.

    Of a folder in the formats of others it gets the numbers that they stand for.
    """
    if plain := unpacked(folder):
        weights, config = plain
        with tempfile.TemporaryDirectory() as temporary:
            mx.save_safetensors(f"{temporary}/model.safetensors", weights)
            (Path(temporary) / "config.json").write_text(json.dumps(config))
            model, config = load_model(Path(temporary))
    else:
        model, config = load_model(folder)
    for block in sparse_blocks(model):
        # Gemma 4's have one configuration in common.
        if hasattr(router_of(block), "config"):
            router_of(block).config = copy.copy(router_of(block).config)
    for layer in getattr(model, "language_model", model).model.layers:
        indexer = getattr(layer, "self_attn", {}).get("indexer")
        # Where types are wide there is no difference.
        if indexer is not None and indexer.k_norm.weight.dtype != mx.float32:
            indexer.__class__ = WideIndexer
    model = with_windows(model, config)
    bits = kv_bits(folder)
    return with_packed_kv(model, bits) if bits else model, config


def kv_bits(folder):
    """What the numbers of KV caches are packed into, by the setting that a case is made with."""
    golden = Path(folder) / "golden.json"
    return json.loads(golden.read_text()).get("kv_bits") if golden.exists() else None


# Numbers of a packed cache that share a scale.
KV_GROUP = 32


def with_packed_kv(model, bits):
    """The model with caches that give back what is left of numbers that were packed, whatever attention looks at them.

    mlx-lm's own packed cache knows neither windows nor compressed keys and values.
    """
    kind = getattr(model, "unpacked_kind", type(model))
    if not bits:
        model.__class__ = kind
        return model

    class Packed(kind):
        unpacked_kind, kv_bits = kind, bits

        def make_cache(self):
            made = kind.make_cache(self) if hasattr(kind, "make_cache") else [KVCache() for _ in self.layers]
            for cache in made:
                cache.__class__ = with_rounded_numbers(type(cache), bits)
            return made

        def __call__(self, inputs, cache=None, **others):
            return super().__call__(inputs, cache=cache or self.make_cache(), **others)

    model.__class__ = Packed
    return model


def with_rounded_numbers(kind, bits):
    class Rounded(kind):
        def update_and_fetch(self, keys, values):
            return super().update_and_fetch(rounded(keys, bits), rounded(values, bits))

    return Rounded


def rounded(x, bits):
    how = {"group_size": KV_GROUP, "bits": bits}
    return mx.dequantize(*mx.quantize(x, **how), **how)


def greedy_by_mlx_lm(folder, ids, count):
    """What mlx-lm says with a packed cache of its own."""
    model, _ = load_model(folder)
    cache = [QuantizedKVCache(KV_GROUP, kv_bits(folder)) for _ in model.layers]
    return [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=count, prompt_cache=cache)]


def with_windows(model, config):
    """Query p sees keys p - window + 1 up to p on the sliding layers of a family."""
    window = config.get("sliding_window")
    if not window or config["model_type"] not in DIFFERENCES:
        return model
    if config["model_type"] == "mistral":
        # mlx-lm's llama knows windows; only its config cannot say that all layers have one.
        model.model.sliding_window, model.model.swa_idx = window, 0
        for layer in model.layers:
            layer.use_sliding = True
    else:
        for layer in model.layers[::2]:
            layer.self_attn.__class__ = WindowedGemma2Attention
            layer.self_attn.window = window
    return model


class WideIndexer(deepseek_v32.Indexer):
    """Weights and scores in 32 bits, and a smaller epsilon, as DeepSeek and Hugging Face transformers have them."""
    bend = staticmethod(lambda scores: mx.maximum(scores, 0))

    def __call__(self, x, qr, mask, cache=None):
        self.k_norm.eps = 1e-6
        scores = index_scores(self, x, qr, self.bend, cache)[:, None]
        if scores.shape[-1] <= self.index_topk:
            return None
        if mask is not None:
            scores = mx.where(mask, scores, -math.inf)
        return mx.argpartition(scores, kth=-self.index_topk, axis=-1)[..., -self.index_topk:]


class WindowedGemma2Attention(gemma2.Attention):
    def __call__(self, x, mask=None, cache=None):
        start = cache.offset if cache is not None else 0
        keys = mx.arange(start + x.shape[1])
        queries = keys[start:, None]
        return super().__call__(x, (keys <= queries) & (keys > queries - self.window), cache)


def as_float32(model, config):
    """The same weights computed in float32 (packed weights stay packed, their scales widen)."""
    other = type(model)(model.args)
    flat = dict(tree_flatten(model.parameters()))
    quantized = {path: module for path, module in model.named_modules() if hasattr(module, "bits")}
    nn.quantize(other, class_predicate=lambda path, _: (
        {"group_size": quantized[path].group_size, "bits": quantized[path].bits, "mode": quantized[path].mode}
        if path in quantized else False))
    other.load_weights([(path, w.astype(mx.float32) if mx.issubdtype(w.dtype, mx.floating) else w)
                        for path, w in flat.items()])
    mx.eval(other.parameters())
    return with_windows(other, config)


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


def logprobs(model, ids, path):
    """The logarithm of the probability of every token of a path."""
    logits = model(mx.array([ids + path[:-1]])).astype(mx.float32)[0, len(ids) - 1:]
    every = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return [round(float(every[i, token]), 4) for i, token in enumerate(path)]


# Experts.

def sparse_blocks(model):
    """Of every layer with experts the block that chooses among them."""
    for layer in getattr(model, "language_model", model).model.layers:
        # Gemma 4's router and experts stand beside the dense part.
        block = layer if "router" in layer else layer.block_sparse_moe if "block_sparse_moe" in layer else layer.mlp
        if "gate" in block or "router" in block:
            yield block


def router_of(block):
    return block["router"] if "router" in block else block["gate"]


def scorer_of(block):
    """What gives the scores that experts are chosen by."""
    router = router_of(block)
    return router["proj"] if "proj" in router else router["gate"] if "gate" in router else router


def chooser_of(block):
    """(module, attribute) that says how many experts are chosen."""
    gate = router_of(block)
    for module in (gate, block, getattr(gate, "config", None)):
        for name in ("top_k", "num_experts_per_tok", "top_k_experts"):
            if hasattr(module, name):
                return module, name
    raise AttributeError("top_k")


def choice_margin(model, ids):
    """The smallest gap between an expert (or group) that was chosen and one that was not.

    Infinite for a model without experts.
    """
    with contextlib.ExitStack() as stack:
        seen = [(block, stack.enter_context(recorded(scorer_of(block)))) for block in sparse_blocks(model)]
        mx.eval(model(mx.array([ids])))
        return min((gap_of(block, x, y) for block, calls in seen for x, y in calls), default=math.inf)


def gap_of(block, x, y):
    router = router_of(block)
    count = getattr(*chooser_of(block))
    if "e_score_correction_bias" in block:
        return gap_at(np.array(mx.sigmoid(y) + block.e_score_correction_bias), count)
    if "router_bias" in router:
        return gap_at(np.array(mx.sigmoid(y) + router.router_bias), count)
    if not hasattr(router, "e_score_correction_bias"):
        return gap_at(np.array(y.astype(mx.float32)), count)
    scores = np.array(mx.sigmoid(x @ router.weight.T) + router.e_score_correction_bias)[0]
    smallest = math.inf
    if router.n_group > 1:
        groups = scores.reshape(len(scores), router.n_group, -1)
        strengths = np.sort(groups, axis=-1)[..., -2:].sum(axis=-1)
        smallest = gap_at(strengths, router.topk_group)
        kept = strengths >= np.sort(strengths, axis=-1)[:, -router.topk_group][:, None]
        scores = np.where(kept[..., None], groups, 0).reshape(scores.shape)
    return min(smallest, gap_at(scores, count))


def index_margin(model, ids):
    """The smallest gap between a position that an indexer chose and one that it did not, as a part of the spread of
    its scores. Infinite for a model without indexers.
    """
    indexers = [layer.self_attn.indexer for layer in getattr(model, "language_model", model).model.layers
                if "indexer" in layer.self_attn]
    if not indexers:
        return math.inf
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(recorded_scores(indexer)) for indexer in indexers]
        mx.eval(model(mx.array([ids])))
    smallest = math.inf
    for indexer, scores in zip(indexers, found):
        for position, row in enumerate(scores[0]):
            seen = row[:position + 1]
            if len(seen) > indexer.index_topk:
                smallest = min(smallest, gap_at(seen, indexer.index_topk) / float(seen.std()))
    return smallest


@contextlib.contextmanager
def recorded_scores(indexer):
    """What an indexer compares, `[positions, positions]`, while the context lasts."""
    kind, found = type(indexer), []

    class Recorded(kind):
        def __call__(self, x, qr, mask, cache=None):
            assert cache is None, "whole prompts only"
            found.append(np.array(index_scores(self, x, qr))[0])
            return super().__call__(x, qr, mask, cache)

    indexer.__class__ = Recorded
    try:
        yield found
    finally:
        indexer.__class__ = kind


def index_scores(indexer, x, qr, bend=WideIndexer.bend, cache=None):
    """`[rows, queries, positions]`, without factors that all have in common."""
    offset = cache.offset if cache is not None else 0
    queries = indexer.wq_b(qr).reshape(*x.shape[:2], indexer.n_heads, indexer.head_dim).swapaxes(1, 2)
    queries = indexer.rope(queries, offset=offset)
    keys = indexer.rope(indexer.k_norm(indexer.wk(x))[:, None], offset=offset)
    if cache is not None:
        keys, _ = cache.update_and_fetch(keys, keys)
    scores = bend(queries.astype(mx.float32) @ keys.astype(mx.float32).swapaxes(-1, -2))
    weights = indexer.weights_proj(x.astype(mx.float32))
    return (scores * weights.swapaxes(-1, -2)[..., None]).sum(axis=1)


def gap_at(values, count):
    """The smallest gap between place `count` and the next in any row."""
    if count >= values.shape[-1]:
        return math.inf
    ordered = np.sort(values, axis=-1)
    return float((ordered[..., -count] - ordered[..., -count - 1]).min())


@contextlib.contextmanager
def recorded(module):
    """What goes into a module and what comes out, while the context lasts."""
    kind, calls = type(module), []

    class Recorded(kind):
        def __call__(self, x):
            y = super().__call__(x)
            calls.append((x, y))
            return y

    module.__class__ = Recorded
    try:
        yield calls
    finally:
        module.__class__ = kind
