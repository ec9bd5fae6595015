"""The proof that the golden tokens would notice a mistake.

One thing at a time is broken in a model that is otherwise right; most prompts must then
give other tokens. A mistake that a short prompt cannot notice asks for the long ones only.
"""

import copy
import math

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.activations import SwigluOAI
from mlx_lm.models.gemma4_text import Router as Gemma4Router
from mlx_lm.models.minimax import MiniMaxSparseMoeBlock
from mlx_lm.models.rope_utils import ProportionalRoPE, initialize_rope
from mlx_lm.models.smollm3 import NoPE
from mlx_lm.models.step3p5 import ClampedSwiGLU, Step3p5MLP, Step3p5MoEGate
from mlx_lm.models.switch_layers import SwiGLU

from cases import are_norms_from_one, text_part
from reference import (WideIndexer, chooser_of, greedy, load, router_of, sparse_blocks,
                       with_packed_kv)


def count_noticed(folder, prompts, tokens):
    """How many prompts notice each mistake, and the mistakes that too few notice."""
    noticed, missed = {}, []
    for mistake, break_it in MISTAKES.items():
        model, config = load(folder)
        broken = break_it(model, config)
        if broken is False:
            continue
        concerned = list(zip(prompts, tokens))
        if mistake in WINDOW_MISTAKES:
            concerned = [(ids, path) for ids, path in concerned if len(ids) > window_of(config)]
        if mistake in LONG_ONLY:
            concerned = [(ids, path) for ids, path in concerned if len(ids) > 30]
        needed = 1 if mistake in SUBTLE else max(1, len(concerned) - 1)
        changed = sum(greedy(broken or model, ids, len(path)) != path for ids, path in concerned)
        noticed[mistake] = changed
        if changed < needed:
            missed.append(mistake)
    return noticed, missed


def body_of(model):
    return getattr(model, "language_model", model).model


def window_of(config):
    return text_part(config).get("sliding_window")


# Positions.

def dims_of(rope):
    return rope.dim if hasattr(rope, "dim") else rope.dims


def plain_rope(attention, config, traditional, layer):
    is_sliding = getattr(attention, "is_sliding", False)
    if config["model_type"] == "gemma4_text":
        base = config["rope_parameters"][attention.layer_type]["rope_theta"]
    else:
        base = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        if isinstance(base, list):
            base = base[layer]
        elif is_sliding and "rope_local_base_freq" in config:
            base = config["rope_local_base_freq"]
    return nn.RoPE(dims_of(attention.rope), traditional=traditional, base=base)


def rope_everywhere(model, config):
    """Positions in the layers too that are not to know them."""
    ropes = [layer.self_attn.rope for layer in model.layers if not isinstance(layer.self_attn.rope, NoPE)]
    if len(ropes) == len(model.layers):
        return False
    for layer in model.layers:
        layer.self_attn.rope = ropes[0]


def rope_in_other_layers(model, config):
    ropes = [layer.self_attn.rope for layer in model.layers]
    if not any(isinstance(rope, NoPE) for rope in ropes):
        return False
    for layer, rope in zip(model.layers, ropes[1:] + ropes[:1]):
        layer.self_attn.rope = rope


def is_pairwise(rope):
    return getattr(rope, "traditional", False)


def no_rope(model, _):
    for layer in model.layers:
        layer.self_attn.rope = lambda x, offset=0: x


def rope_not_scaled(model, config):
    config = text_part(config)
    scaling = config.get("rope_scaling") or config.get("rope_parameters", {})
    if "factor" not in scaling or scaling.get("rope_type") == "default":
        return False
    for i, layer in enumerate(model.layers):
        layer.self_attn.rope = plain_rope(layer.self_attn, config, is_pairwise(layer.self_attn.rope), i)


def rope_of_pairs(model, config):
    """Neighbours are turned together where halves are to be, and the other way round."""
    for i, layer in enumerate(model.layers):
        if isinstance(layer.self_attn.rope, NoPE):
            continue
        traditional = not is_pairwise(layer.self_attn.rope)
        layer.self_attn.rope = plain_rope(layer.self_attn, text_part(config), traditional, i)


def rope_stuck(model, _):
    """Positions stop at five, as if the answer's offset did not grow."""
    for layer in model.layers:
        rope = layer.self_attn.rope
        layer.self_attn.rope = lambda x, offset=0, rope=rope: rope(x, offset=min(offset, 5))


def rope_without_mscale(model, _):
    name = "mscale" if hasattr(model.layers[0].self_attn.rope, "mscale") else "_scale"
    for layer in model.layers:
        if getattr(layer.self_attn.rope, name, 1.0) == 1.0:
            return False
        setattr(layer.self_attn.rope, name, 1.0)


def rope_frequencies_plain(model, config):
    """The scale of yarn and longrope without their frequencies."""
    for layer in model.layers:
        rope = layer.self_attn.rope
        if not hasattr(rope, "mscale") and not hasattr(rope, "_scale"):
            return False
        said = text_part(config)
        rope._freqs = (said.get("rope_theta") or said["rope_parameters"]["rope_theta"]) ** (mx.arange(0, dims_of(rope), 2) / dims_of(rope))


def rope_short_factors(model, config):
    scaling = text_part(config).get("rope_scaling") or {}
    if "short_factor" not in scaling:
        return False
    for layer in model.layers:
        rope = layer.self_attn.rope
        rope._freqs = rope._freqs * mx.array(scaling["short_factor"]) / mx.array(scaling["long_factor"])


def rope_all_dims(model, config):
    if config.get("partial_rotary_factor", 1.0) == 1.0 and not config.get("rotary_dim"):
        return False
    for layer in model.layers:
        rope = layer.self_attn.rope
        layer.self_attn.rope = lambda x, offset=0, rope=rope: mx.concatenate(
            [rope(x, offset=offset)[..., :dims_of(rope)],
             nn.RoPE(x.shape[-1], base=config["rope_theta"])(x, offset=offset)[..., dims_of(rope):]], axis=-1)


def rope_mscale_on_all_dims(model, config):
    if config.get("partial_rotary_factor", 1.0) == 1.0:
        return False
    for layer in model.layers:
        rope = layer.self_attn.rope
        if not hasattr(rope, "_scale"):
            return False
        layer.self_attn.rope = lambda x, offset=0, rope=rope: mx.concatenate(
            [rope(x, offset=offset)[..., :rope.dim], x[..., rope.dim:] * rope._scale], axis=-1)


def rope_global_everywhere(model, config):
    config = text_part(config)
    if config["model_type"] == "gemma4_text":
        base = config["rope_parameters"]["full_attention"]["rope_theta"]
        for layer in model.layers:
            if layer.self_attn.is_sliding:
                layer.self_attn.rope = nn.RoPE(layer.self_attn.head_dim, base=base)
        return
    if isinstance(config.get("rope_theta"), list):
        for layer in model.layers:
            if layer.self_attn.is_sliding:
                layer.self_attn.rope = nn.RoPE(dims_of(layer.self_attn.rope), base=config["rope_theta"][0])
        return
    if "rope_local_base_freq" not in config:
        return False
    ropes = [layer.self_attn.rope for layer in model.layers if not layer.self_attn.is_sliding]
    for layer in model.layers:
        layer.self_attn.rope = ropes[0]


def rope_of_whole_heads(model, config):
    if not config.get("partial_rotary_factors"):
        return False
    for layer, base in zip(model.layers, config["rope_theta"]):
        layer.self_attn.rope = nn.RoPE(layer.self_attn.head_dim, base=base)


def rope_scaled_everywhere(model, config):
    if not config.get("rope_scaling") or not (config["model_type"] == "olmo3" or config.get("yarn_only_types")):
        return False
    bases = config["rope_theta"]
    for i, layer in enumerate(model.layers):
        attention, base = layer.self_attn, bases[i] if isinstance(bases, list) else bases
        attention.rope = initialize_rope(dims_of(attention.rope), base, False, config["rope_scaling"], 512)


def norms_before_rope(model, _):
    for attention in (layer.self_attn for layer in model.layers):
        if "query_layernorm" not in attention:
            return False
        norms = [attention.query_layernorm, attention.key_layernorm]
        attention.rope = lambda x, offset=0, rope=attention.rope, norms=norms, heads=attention.n_heads: rope(
            norms[x.shape[1] != heads](x), offset=offset)
        attention.query_layernorm = attention.key_layernorm = lambda x: x


def rope_proportional_otherwise(dims_of_part):
    """All pairs are turned, or those of a part of the head as if it were the whole."""
    def break_it(model, config):
        config = text_part(config)
        found = [layer.self_attn for layer in model.layers if isinstance(layer.self_attn.rope, ProportionalRoPE)]
        for attention in found:
            said = config["rope_parameters"]["full_attention"]
            dims = dims_of_part(attention.head_dim, said["partial_rotary_factor"])
            attention.rope = nn.RoPE(dims, base=said["rope_theta"], scale=1 / said.get("factor", 1.0))
        return None if found else False
    return break_it


# Attention.

def heads_mixed(model, config):
    """Query heads meet the wrong key heads."""
    config = text_part(config)
    heads = config.get("num_key_value_heads") or config["num_attention_groups"]
    if heads in (1, config["num_attention_heads"]):
        return False

    def turned(weights):
        return mx.concatenate(mx.split(weights, heads)[::-1])

    for layer in model.layers:
        if "qkv_proj" in layer.self_attn:
            module = layer.self_attn.qkv_proj
            queries, each = config["num_attention_heads"], layer.self_attn.head_dim
            ends = [each * queries, each * (queries + heads)]
            module.update(tree_map(lambda w: mx.concatenate(
                [part if i == 0 else turned(part) for i, part in enumerate(mx.split(w, ends))]), module.parameters()))
            continue
        for name in ("k_proj", "v_proj"):
            if name in layer.self_attn:
                module = layer.self_attn[name]
                module.update(tree_map(turned, module.parameters()))


def latent_heads_mixed(model, _):
    for layer in model.layers:
        if "embed_q" not in layer.self_attn:
            return False
        module = layer.self_attn.embed_q
        module.update(tree_map(lambda w: w[::-1], module.parameters()))


def scale_of_head_dim(model, config):
    """The usual scale where the family has its own."""
    for layer in model.layers:
        attention = layer.self_attn
        usual = getattr(attention, "q_head_dim", None) or text_part(config).get("head_dim")
        usual = usual or getattr(attention, "head_dim", None)
        if not hasattr(attention, "scale") or not usual or math.isclose(attention.scale, usual ** -0.5):
            return False
        attention.scale = usual ** -0.5


def no_head_norm(name):
    def break_it(model, _):
        for layer in model.layers:
            if name not in layer.self_attn:
                return False
            setattr(layer.self_attn, name, lambda x: x)
    return break_it


def head_norms_apart(name, heads):
    """Every head by itself where all are to be normed together."""
    def break_it(model, config):
        for layer in model.layers:
            norm = layer.self_attn.get(name)
            sizes = [text_part(config).get(key) for key in ("head_dim", "global_head_dim")]
            if norm is None or norm.weight.size in sizes:
                return False
            setattr(layer.self_attn, name, lambda x, norm=norm: mx.fast.rms_norm(
                x.reshape(*x.shape[:-1], config[heads], -1), None, norm.eps).reshape(x.shape) * norm.weight)
    return break_it


def values_of_normed_keys(model, _):
    found = [layer.self_attn for layer in model.layers if getattr(layer.self_attn, "use_k_eq_v", False)]
    for attention in found:
        attention.v_norm = lambda x, key=attention.k_norm, value=attention.v_norm: value(key(x))
    return None if found else False


def no_softcap(model, _):
    for layer in model.layers:
        if not hasattr(layer.self_attn, "attn_logit_softcapping"):
            return False
        layer.self_attn.attn_logit_softcapping = 1e6


# Others may name a window and not use it.
WINDOWED = ("step3p5", "olmo3", "mistral", "gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "gpt_oss")


def other_window(change):
    """`change` makes of a window the one to use instead; None is none."""
    def break_it(model, config):
        if not window_of(config) or config["model_type"] not in WINDOWED:
            return False
        window = change(window_of(config)) or 1 << 20
        body = body_of(model)
        if config["model_type"] == "gemma2":
            for layer in model.layers[::2]:
                layer.self_attn.window = window
        elif config["model_type"] == "mistral":
            body.sliding_window = window
        else:
            # The caches are made from the arguments.
            getattr(model, "language_model", model).args.sliding_window = window
            body.window_size = body.sliding_window = window
    return break_it


def window_on_other_layers(model, config):
    if config["model_type"] == "gemma2":
        attentions = [layer.self_attn for layer in model.layers]
        for one, two in zip(attentions[::2], attentions[1::2]):
            two.window = one.window
            one.__class__, two.__class__ = two.__class__, one.__class__
    elif config["model_type"] == "gpt_oss":
        body = model.model
        body.layer_types = body.layer_types[::-1]
        body.swa_idx, body.ga_idx = body.ga_idx, body.swa_idx
    else:
        return False


def sinks_ignored(model, _):
    for layer in model.layers:
        if "sinks" not in layer.self_attn:
            return False
        layer.self_attn.sinks = mx.full(layer.self_attn.sinks.shape, -1e4)


# Indexers.

def of_indexers(break_it):
    """Breaks every indexer; does not apply where there is none."""
    def break_all(model, _):
        found = [layer.self_attn.indexer for layer in body_of(model).layers if "indexer" in layer.self_attn]
        for indexer in found:
            break_it(indexer)
        return None if found else False
    return break_all


def index_count(change):
    def break_it(indexer):
        indexer.index_topk = change(indexer.index_topk)
    return of_indexers(break_it)


def index_not_turned(indexer):
    indexer.rope = lambda x, offset=0: x


def index_turned_otherwise(indexer):
    """Neighbours together where halves are to be, and the other way round."""
    indexer.rope = copy.copy(indexer.rope)
    indexer.rope.traditional = not indexer.rope.traditional


def index_turned_at_the_end(indexer):
    """The last numbers of a head in place of the first."""
    indexer.rope = lambda x, offset=0, rope=indexer.rope: rope(x[..., ::-1], offset=offset)[..., ::-1]


def index_heads_alike(indexer):
    indexer.weights_proj = lambda x: mx.ones((*x.shape[:-1], indexer.n_heads))


def index_not_bent(indexer):
    indexer.__class__ = StraightIndexer


class StraightIndexer(WideIndexer):
    """Products below zero count."""
    bend = staticmethod(lambda scores: scores)


# Layers.

def layers_swapped(model, _):
    layers = body_of(model).layers
    one, two = 1, 2
    if getattr(body_of(model), "hidden_size_per_layer_input", 0):
        # Of one kind: others look at what they remember.
        one, two = [i for i, layer in enumerate(layers) if layer.layer_type == layers[0].layer_type][:2]
    layers[one], layers[two] = layers[two], layers[one]


def flat(ending, value):
    """Parameters without their own values; where norms are stored from one, one is a zero."""
    def break_it(model, config):
        found = [(p, w) for p, w in tree_flatten(model.parameters()) if p.endswith(ending)]
        if not found:
            return False
        from_one = "norm" in ending and are_norms_from_one(config["model_type"])
        model.load_weights([(p, mx.full(w.shape, value - from_one, w.dtype)) for p, w in found], strict=False)
    return break_it


def norms_without_one(model, config):
    if not are_norms_from_one(config["model_type"]):
        return False
    model.load_weights([(p, w - 1) for p, w in tree_flatten(model.parameters()) if "norm" in p], strict=False)


def embeddings_not_scaled(model, config):
    if not config["model_type"].startswith("gemma"):
        return False
    if config["model_type"].startswith("gemma4"):
        body_of(model).embed_scale = 1.0
    else:
        body_of(model).args.hidden_size = 1


def multiplier(of, name):
    def break_it(model, _):
        found = [module for module in of(model) if hasattr(module, name)]
        for module in found:
            setattr(module, name, 1.0)
        return None if found else False
    return break_it


def queries_as_they_are(model, config):
    """The same at every position."""
    said = text_part(config).get("rope_parameters") or {}
    if "llama_4_scaling_beta" not in said:
        return False
    getattr(model, "language_model", model).args.rope_parameters["llama_4_scaling_beta"] = 0.0


def inner_epsilon(model, config):
    """The norms within attention by DeepSeek's epsilon."""
    for layer in model.layers:
        if "kv_a_layernorm" not in layer.self_attn or text_part(config)["rms_norm_eps"] <= 1e-3:
            return False
        for name in ("q_a_layernorm", "kv_a_layernorm"):
            layer.self_attn[name].eps = 1e-6


def epsilon(model, _):
    for _, module in model.named_modules():
        if hasattr(module, "eps"):
            module.eps = 0.3


def gelu_is_silu(model, config):
    if not config["model_type"].startswith("gemma"):
        return False
    for layer in model.layers:
        mlp = layer.mlp
        layer.mlp = lambda x, mlp=mlp: mlp.down_proj(nn.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


def gate_and_up_swapped(model, _):
    for _, module in model.named_modules():
        if "gate_up_proj" in module:
            fused = module.gate_up_proj
            fused.update(tree_map(lambda w: mx.concatenate(mx.split(w, 2)[::-1]), fused.parameters()))
        elif "gate_proj" in module:
            module.gate_proj, module.up_proj = module.up_proj, module.gate_proj


# Experts.

def in_blocks(break_block):
    """Breaks every block of experts; does not apply where there is none, or to a block that gives False."""
    def break_it(model, _):
        blocks = list(sparse_blocks(model))
        results = [break_block(block) for block in blocks]
        return False if not blocks or False in results else None
    return break_it


def experts_of(block):
    return block["switch_mlp"] if "switch_mlp" in block else block["experts"]


def experts_turned(block):
    experts = experts_of(block)
    experts.update(tree_map(lambda w: mx.roll(w, 1, axis=0), experts.parameters()))


def one_expert_less(block):
    module, name = chooser_of(block)
    setattr(module, name, getattr(module, name) - 1)


def one_expert_more(block):
    module, name = chooser_of(block)
    setattr(module, name, getattr(module, name) + 1)


def router_halved(block):
    """The choice stays (without a bias), the weights of the chosen do not."""
    router = router_of(block)
    if "proj" in router:
        router.scale = router.scale * 0.5
        return
    if "gate" in router:
        router.gate.weight = router.gate.weight * 0.5
        return
    kept = ("weight",) if "scales" in router else ()
    router.update({name: w * 0.5 for name, w in router.parameters().items() if name not in kept})


def experts_not_normalised(block):
    """Or normalised where they are not to be."""
    module = router_of(block) if hasattr(router_of(block), "norm_topk_prob") else block
    if not hasattr(module, "norm_topk_prob"):
        return False
    module.norm_topk_prob = not module.norm_topk_prob


def no_routed_scale(block):
    if not hasattr(router_of(block), "routed_scaling_factor"):
        return False
    router_of(block).routed_scaling_factor = 1.0


def no_groups(block):
    if getattr(router_of(block), "n_group", 1) == 1:
        return False
    router_of(block).n_group = router_of(block).topk_group = 1


def bias_in_weights(block):
    """The correction is for the choice only; here it comes into the weights too."""
    router = router_of(block)
    if "e_score_correction_bias" in block:
        block.__class__ = CorrectedWeights
        return None
    if "router_bias" in router:
        router.__class__ = StepCorrectedWeights
        return None
    if "e_score_correction_bias" not in router:
        return False

    class Wrong(type(router)):
        def __call__(self, x):
            chosen, _ = super().__call__(x)
            scores = mx.sigmoid(x @ self.weight.T) + self.e_score_correction_bias
            weights = mx.take_along_axis(scores, chosen, axis=-1)
            return chosen, weights / weights.sum(axis=-1, keepdims=True) * self.routed_scaling_factor

    router.__class__ = Wrong


class CorrectedWeights(MiniMaxSparseMoeBlock):
    def __call__(self, x):
        scores = mx.sigmoid(self.gate(x.astype(mx.float32))) + self.e_score_correction_bias
        chosen = mx.argsort(-scores, axis=-1)[..., :self.num_experts_per_tok]
        weights = mx.take_along_axis(scores, chosen, axis=-1)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        return (self.switch_mlp(x, chosen) * weights[..., None]).sum(axis=-2)


def beside_dense(break_block):
    """Breaks a layer in which experts stand beside a dense part."""
    def break_it(block):
        if "pre_feedforward_layernorm_2" not in block:
            return False
        break_block(block)
    return in_blocks(break_it)


def dense_left_out(layer):
    down = layer.mlp.down_proj
    down.update(tree_map(mx.zeros_like, down.parameters()))


def router_sees_normed(layer):
    layer.router.__class__ = RouterOfNormed
    layer.router.before = layer.pre_feedforward_layernorm_2


class RouterOfNormed(Gemma4Router):
    def __call__(self, x):
        return super().__call__(self.before(x))


def silu_in_experts(layer):
    layer.experts.switch_glu.activation = SwiGLU()


class StepCorrectedWeights(Step3p5MoEGate):
    def __call__(self, x):
        chosen, _ = super().__call__(x)
        weights = mx.take_along_axis(mx.sigmoid(self.gate(x)) + self.router_bias, chosen, axis=-1)
        return chosen, weights / weights.sum(axis=-1, keepdims=True) * self.routed_scaling_factor


def no_head_gates(model, _):
    for layer in model.layers:
        if not getattr(layer.self_attn, "use_head_wise_attn_gate", False):
            return False
        layer.self_attn.use_head_wise_attn_gate = False


def clamps_of_experts(make):
    def break_it(model, _):
        found = [m for _, m in model.named_modules() if isinstance(m.get("activation"), ClampedSwiGLU)]
        for module in found:
            module.activation = make(module.activation.limit)
        return None if found else False
    return break_it


def clamps_of_others_left_out(model, _):
    found = [m for _, m in model.named_modules() if isinstance(m, Step3p5MLP) and m.limit]
    for module in found:
        module.limit = None
    return None if found else False


class ClampedBefore(nn.Module):
    """The gate is bounded before its sigmoid."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def __call__(self, x, gate):
        return nn.silu(mx.minimum(gate, self.limit)) * mx.clip(x, -self.limit, self.limit)


def no_shared_experts(block):
    name = "share_expert" if "share_expert" in block else "shared_experts"
    if name not in block:
        return False
    shared = block[name].down_proj
    shared.update(tree_map(mx.zeros_like, shared.parameters()))


def activation(make):
    def break_block(block):
        if not isinstance(experts_of(block).get("activation"), SwigluOAI):
            return False
        experts_of(block).activation = make()
    return in_blocks(break_block)


# What layers hand on besides hidden states.

def inputs_of_layers(change):
    def break_it(model, _):
        body = body_of(model)
        if not getattr(body, "hidden_size_per_layer_input", 0):
            return False
        change(body)
    return break_it


def no_inputs(body):
    body.hidden_size_per_layer_input = 0


def inputs_of_other_layers(body):
    project = body._project_per_layer_inputs
    body._project_per_layer_inputs = lambda *args: mx.roll(project(*args), 1, axis=2)


def no_table_of_inputs(body):
    look_up = body._get_per_layer_inputs
    body._get_per_layer_inputs = lambda *args: 0 * look_up(*args)


def inputs_of_table_alone(body):
    body._project_per_layer_inputs = lambda _, inputs: inputs * body.per_layer_input_scale


def kv_of_first_alike(model, _):
    """Keys and values of the first layer that sees as far, where those of the last are meant."""
    body = body_of(model)
    own = list(range(len(model.layers)))
    if getattr(body, "previous_kvs", own) == own:
        return False
    types = [layer.layer_type for layer in model.layers]
    body.previous_kvs = [i if i == lender else types.index(types[i]) for i, lender in zip(own, body.previous_kvs)]


# What is remembered.

def kv_of_other_bits(model, config):
    """Four where eight are set: eight are so near to all of them that few tokens would tell."""
    if not hasattr(model, "kv_bits"):
        return False
    return with_packed_kv(model, 4 if model.kv_bits == 8 else None)


MISTAKES = {
    "no RoPE": no_rope,
    "RoPE not scaled": rope_not_scaled,
    "RoPE of pairs": rope_of_pairs,
    "offset stands still": rope_stuck,
    "RoPE everywhere": rope_everywhere,
    "RoPE in other layers": rope_in_other_layers,
    "heads mixed": heads_mixed,
    "KV of other bits": kv_of_other_bits,
    "KV of the first layer alike": kv_of_first_alike,
    "no inputs of layers": inputs_of_layers(no_inputs),
    "inputs of other layers": inputs_of_layers(inputs_of_other_layers),
    "no table of inputs": inputs_of_layers(no_table_of_inputs),
    "inputs of the table alone": inputs_of_layers(inputs_of_table_alone),
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
    "epsilon of DeepSeek": inner_epsilon,

    "no k bias": flat("k_proj.bias", 0.0),
    "no bias of low rank queries": flat("q_a_proj.bias", 0.0),
    "no bias of latents": flat("kv_a_proj_with_mqa.bias", 0.0),
    "no router bias": flat("router.bias", 0.0),
    "no q norm weights": flat("self_attn.q_norm.weight", 1.0),
    "no k norm weights": flat("self_attn.k_norm.weight", 1.0),
    "no q norm": no_head_norm("q_norm"),
    "no k norm": no_head_norm("k_norm"),
    "no query norm": no_head_norm("query_layernorm"),
    "no key norm": no_head_norm("key_layernorm"),
    "no query norm weights": flat("query_layernorm.weight", 1.0),
    "no key norm weights": flat("key_layernorm.weight", 1.0),
    "norms before RoPE": norms_before_rope,
    "no v norm": no_head_norm("v_norm"),
    "values of normed keys": values_of_normed_keys,
    "q norm of each head": head_norms_apart("q_norm", "num_attention_heads"),
    "k norm of each head": head_norms_apart("k_norm", "num_key_value_heads"),
    "no norm before the MLP": flat("pre_feedforward_layernorm.weight", 1.0),
    "no norm after the MLP": flat("post_feedforward_layernorm.weight", 1.0),
    "no norm after the dense part": flat("post_feedforward_layernorm_1.weight", 1.0),
    "no norm before experts": flat("pre_feedforward_layernorm_2.weight", 1.0),
    "no norm after experts": flat("post_feedforward_layernorm_2.weight", 1.0),
    "no layer scalar": flat("layer_scalar", 1.0),
    "no norm of low rank queries": flat("q_a_layernorm.weight", 1.0),
    "no norm of latents": flat("kv_a_layernorm.weight", 1.0),
    "no mscale": rope_without_mscale,
    "frequencies not scaled": rope_frequencies_plain,
    "short factors": rope_short_factors,
    "all dimensions turned": rope_all_dims,
    "mscale on all dimensions": rope_mscale_on_all_dims,
    "one RoPE for all layers": rope_global_everywhere,
    "whole heads turned": rope_of_whole_heads,
    "all layers scaled": rope_scaled_everywhere,
    "all pairs turned": rope_proportional_otherwise(lambda width, part: width),
    "pairs of a part of the head": rope_proportional_otherwise(lambda width, part: int(width * part)),
    "latent heads mixed": latent_heads_mixed,
    "scale of head_dim": scale_of_head_dim,
    "no softcap of scores": no_softcap,
    "no window": other_window(lambda _: None),
    "window one too large": other_window(lambda window: window + 1),
    "window one too small": other_window(lambda window: window - 1),
    "window on the other layers": window_on_other_layers,
    "sinks ignored": sinks_ignored,
    "norms without one": norms_without_one,
    "embeddings not scaled": embeddings_not_scaled,
    "embeddings not multiplied": multiplier(lambda model: [body_of(model)], "embedding_multiplier"),
    "sums not multiplied": multiplier(lambda model: model.layers, "residual_multiplier"),
    "queries the same everywhere": queries_as_they_are,
    "SiLU for GELU": gelu_is_silu,
    "gate and up swapped": gate_and_up_swapped,
    "no choice of positions": index_count(lambda count: 1 << 20),
    "one position less": index_count(lambda count: count - 1),
    "one position more": index_count(lambda count: count + 1),
    "index not turned": of_indexers(index_not_turned),
    "index turned otherwise": of_indexers(index_turned_otherwise),
    "index turned at the end": of_indexers(index_turned_at_the_end),
    "heads of the index alike": of_indexers(index_heads_alike),
    "index not bent": of_indexers(index_not_bent),
    "no norm weights of the index": flat("indexer.k_norm.weight", 1.0),
    "no norm bias of the index": flat("indexer.k_norm.bias", 0.0),
    "experts turned": in_blocks(experts_turned),
    "one expert less": in_blocks(one_expert_less),
    "one expert more": in_blocks(one_expert_more),
    "router halved": in_blocks(router_halved),
    "weights of experts normalised otherwise": in_blocks(experts_not_normalised),
    "no scale of experts": in_blocks(no_routed_scale),
    "no groups of experts": in_blocks(no_groups),
    "no correction of scores": flat("e_score_correction_bias", 0.0),
    "no correction by a bias": flat("router_bias", 0.0),
    "correction in the weights": in_blocks(bias_in_weights),
    "no gates of heads": no_head_gates,
    "experts not clamped": clamps_of_experts(lambda _: SwiGLU()),
    "experts clamped before SiLU": clamps_of_experts(ClampedBefore),
    "dense and shared parts not clamped": clamps_of_others_left_out,
    "no shared experts": in_blocks(no_shared_experts),
    "no scale of the router": flat("router.scale", 1.0),
    "no scales of experts' weights": flat("per_expert_scale", 1.0),
    "dense part left out": beside_dense(dense_left_out),
    "router sees what experts see": beside_dense(router_sees_normed),
    "SiLU in experts": beside_dense(silu_in_experts),
    "plain SwiGLU": activation(SwiGLU),
    "SwiGLU without limit": activation(lambda: SwigluOAI(limit=1e9)),
    "SwiGLU without alpha": activation(lambda: SwigluOAI(alpha=1.0)),
}
# No prompt that is short enough sees them.
LONG_ONLY = {"queries the same everywhere", "no choice of positions", "one position less", "one position more",
             "index not turned", "index turned otherwise", "index turned at the end", "heads of the index alike",
             "index not bent", "no norm weights of the index", "no norm bias of the index", "KV of other bits"}
WINDOW_MISTAKES = {"no window", "window one too large", "window one too small", "window on the other layers"}
# Noticing needs luck: one prompt is enough.
SUBTLE = {"window one too large", "window one too small", "KV of other bits"}
