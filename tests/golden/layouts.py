"""The names and shapes in which checkpoints on hubs differ from mlx-lm's own.

Each takes the weights under mlx-lm's names and a config, and gives both as the
original authors publish them.
"""

import mlx.core as mx


def experts_apart(weights, config):
    """One tensor for each expert: `mlp.experts.E.gate_proj.weight`."""
    return split_experts(weights, ".mlp.switch_mlp.", ".mlp.experts.", {}), config


def mixtral(weights, config):
    names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    return split_experts(weights, ".switch_mlp.", ".experts.", names), config


def split_experts(weights, stacked, apart, names):
    found = {}
    for path, weight in weights.items():
        if stacked not in path:
            found[path] = weight
            continue
        before, after = path.split(stacked)
        matrix, name = after.split(".")
        for expert in range(len(weight)):
            found[f"{before}{apart}{expert}.{names.get(matrix, matrix)}.{name}"] = mx.contiguous(weight[expert])
    return found


def gpt_oss(weights, config):
    """Packed experts with the rows of gate and up by turns, four bits in blocks of 32."""
    found = {}
    for path, weight in weights.items():
        *before, matrix, name = path.split(".")
        if "experts" not in before or matrix == "up_proj":
            if "experts" not in before:
                found[path] = weight
            continue
        if matrix == "gate_proj":
            up = weights[".".join([*before, "up_proj", name])]
            weight = mx.stack([weight, up], axis=2).reshape(weight.shape[0], -1, *weight.shape[2:])
            matrix = "gate_up_proj"
        if name == "weight":
            # Eight values in 32 bits are four bytes; a block is sixteen.
            weight = mx.view(mx.contiguous(weight), mx.uint8).reshape(*weight.shape[:2], -1, 16)
        suffix = {"weight": "_blocks", "scales": "_scales", "bias": "_bias"}[name]
        found[".".join([*before, matrix + suffix])] = weight
    config = {key: value for key, value in config.items() if key != "quantization"}
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
    return found, config


def deepseek(weights, config):
    """Keys and values of all heads out of one matrix, `kv_b_proj`; experts apart."""
    weights, _ = experts_apart(weights, config)
    found = {}
    for path, weight in weights.items():
        if path.endswith("unembed_out.weight"):
            continue
        if path.endswith("embed_q.weight"):
            before = path.removesuffix("embed_q.weight")
            both = mx.concatenate([weight.swapaxes(1, 2), weights[before + "unembed_out.weight"]], axis=1)
            path, weight = before + "kv_b_proj.weight", both.reshape(-1, both.shape[-1])
        found[path] = weight
    return found, config


def gemma3_towers(weights, config):
    """Beside the language model what a loader of text must pass over."""
    return weights | {
        "multi_modal_projector.mm_input_projection_weight": mx.ones((8, 4)),
        "multi_modal_projector.mm_soft_emb_norm.weight": mx.ones((8,)),
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": mx.ones((8, 8)),
        "vision_tower.vision_model.post_layernorm.weight": mx.ones((8,)),
    }, config


LAYOUTS = {"experts-apart": experts_apart, "mixtral-hf": mixtral, "gpt-oss-hf": gpt_oss, "deepseek-hf": deepseek,
           "gemma3-towers": gemma3_towers}
