"""Writes a checkpoint with random weights in the layout that a case wants."""

import contextlib
import json
import math
import sys

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes, quantize_model, save_config, save_model

from cases import SPECIAL, VOCAB, are_norms_from_one, config_of
from formats import packed, write_safetensors
from layouts import LAYOUTS


def write_checkpoint(case, seed, out):
    config = config_of(case)
    dtype = case.get("dtype", "float32")
    config["torch_dtype"] = dtype
    kind, args = _get_classes(config)
    # Configs hold dicts that models change.
    model = kind(args.from_dict(json.loads(json.dumps(config))))
    if config["model_type"].startswith("gemma3"):
        # Its head is tied where the file has none, whatever the config says.
        text = getattr(model, "language_model", model)
        text.tie_word_embeddings = True
        text.pop("lm_head")
    model.update(random_parameters(model, seed, case))
    model.set_dtype(getattr(mx, dtype))
    if quantize := case.get("quantize"):
        overrides, only = case.get("overrides", {}), case.get("only", "")
        usual = getattr(model, "quant_predicate", lambda path, _: True)
        with contextlib.redirect_stdout(sys.stderr):
            model, config = quantize_model(
                model, config, **quantize,
                quant_predicate=lambda path, module: only in path and overrides.get(path, usual(path, module)))
        for path, value in overrides.items():
            config["quantization"][path] = value
    out.mkdir(parents=True, exist_ok=True)
    mx.eval(model.parameters())
    if layout := case.get("layout"):
        weights, config = LAYOUTS[layout](dict(tree_flatten(model.parameters())), config)
        if how := case.get("format"):
            tensors, config = packed(weights, config, how, case.get("only", ""))
            write_safetensors(tensors, out / "model.safetensors")
        else:
            save_in_files(weights, case.get("files", 1), out)
    elif files := case.get("files"):
        save_in_files(dict(tree_flatten(model.parameters())), files, out)
    else:
        save_model(out, model)
    save_config(config, out / "config.json")


def random_parameters(model, seed, case):
    """Weights with which the next token depends strongly on all that came before.

    Queries and keys are large, so attention chooses; what a layer adds is as large as
    what it got, so the last token alone does not decide; norms and biases differ from
    one and zero, so leaving one out shows. All of that also magnifies rounding, so
    there is less of it in low precision. Few tokens have a strong row in the head:
    with fewer rivals the gap between the best two is wider. Routers are strong enough
    that their choice is clear, and weak enough that every chosen expert counts.
    """
    config = config_of(case)
    family = config["model_type"]
    gemma, from_one = family.startswith("gemma"), are_norms_from_one(family)
    rng = np.random.Generator(np.random.PCG64(seed))
    attention, entry = (1.1, 6.0) if "dtype" in case else (1.8, 3.0)
    tied = not any(path.endswith("lm_head.weight") for path, _ in tree_flatten(model.parameters()))
    gains = {"q_proj": attention, "k_proj": attention, "v_proj": 1.0, "o_proj": 1.0, "gate_proj": 1.0,
             "up_proj": 1.0, "down_proj": 1.4, "embed_tokens": entry, "lm_head": entry,
             # Fused, routers, and the parts of latent attention.
             "qkv_proj": 1.0, "gate_up_proj": 1.0, "gate": 2.0, "router": 2.0, "proj": 2.0, "g_proj": 2.0, "q_a_proj": 1.0, "q_b_proj": attention,
             "kv_a_proj_with_mqa": attention, "embed_q": attention, "unembed_out": 1.4,
             # Of inputs of layers.
             "embed_tokens_per_layer": 2.0, "per_layer_model_projection": 1.0, "per_layer_input_gate": 1.0,
             "per_layer_projection": 1.0,
             # Of an indexer; only the order of its scores counts.
             "wq_b": 1.0, "wk": 1.0, "weights_proj": 1.0}
    # The clipped gates of gpt_oss must reach the limit of 7.
    gains |= {"gpt_oss": {"gate_proj": 4.0, "up_proj": 4.0, "down_proj": 0.2}}.get(family, {})
    gains |= case.get("gains", {})

    def draw(path, old):
        *_, kind, name = path.split(".")
        if name == "sinks":
            # As large as the sum of what the keys of a short prompt get.
            return rng.uniform(1.0, 6.0, old.shape)
        if name in ("e_score_correction_bias", "router_bias"):
            return rng.uniform(0.0, 0.6, old.shape)
        if path.endswith("model.norm.weight"):
            # Signs keep a tied head from always preferring the token that it just got.
            return rng.uniform(0.5, 1.5, old.shape) * rng.choice([-1.0, 1.0], old.shape) - from_one
        if "norm" in kind and name != "bias":
            gain = 1.0
            if kind in ("q_norm", "k_norm", "query_layernorm", "key_layernorm"):
                # Gemma 4 has no other scale of scores.
                gain = 1.0 if family.startswith("gemma4") else attention
            elif (gemma or family == "olmo3") and kind in ("post_attention_layernorm", "post_feedforward_layernorm",
                                                          "post_per_layer_input_norm"):
                # What a layer adds, beside embeddings of three.
                gain = 2.0
            return rng.uniform(0.5, 1.5, old.shape) * gain - from_one
        if name in ("layer_scalar", "scale", "per_expert_scale"):
            return rng.uniform(0.5, 1.5, old.shape)
        if name == "bias":
            return rng.normal(0, 1.0 if kind == "router" else 0.5, old.shape)
        # Latent keys come out of the transposed matrix.
        width = old.shape[-2] if kind == "embed_q" else old.shape[-1]
        values = rng.normal(0, gains[kind] / math.sqrt(width), old.shape)
        if kind == "qkv_proj":
            head_dim = config["hidden_size"] // config["num_attention_heads"]
            values[:(config["num_attention_heads"] + config["num_key_value_heads"]) * head_dim] *= attention
        if kind == ("embed_tokens" if tied else "lm_head"):
            strong = rng.choice(np.arange(len(SPECIAL), VOCAB), 32, replace=False)
            values[np.setdiff1d(np.arange(len(values)), strong)] *= 0.4
        return values

    return tree_unflatten([(path, mx.array(draw(path, old).astype(np.float32)))
                           for path, old in tree_flatten(model.parameters())])


def save_in_files(weights, count, out):
    """Several files with an index, as hubs split large models; cuts fall inside layers."""
    named = list(weights.items())
    each = math.ceil(len(named) / count)
    where = {}
    for i in range(count):
        part = dict(named[i * each:(i + 1) * each])
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        mx.save_safetensors(str(out / name), part, {"format": "mlx"})
        where |= {path: name for path in part}
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())},
             "weight_map": dict(sorted(where.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
