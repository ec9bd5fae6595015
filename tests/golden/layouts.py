"""The names and shapes in which checkpoints on hubs differ from mlx-lm's own.

Each takes the weights under mlx-lm's names and a config, and gives both as the
original authors publish them.
"""

import mlx.core as mx


def experts_apart(weights, config):
    """One tensor for each expert: `mlp.experts.E.gate_proj.weight`."""
    return split_experts(weights, ".mlp.switch_mlp.", ".mlp.experts.", {}), config


def dots1(weights, config):
    return split_experts(weights, ".mlp.experts.", ".mlp.experts.", {}), config


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


def eyes(weights, config):
    """What a loader of text must pass over."""
    return weights | {"vision_tower.patch_embed.proj.weight": mx.ones((8, 8)),
                      "vision_tower.merger.mlp.0.weight": mx.ones((8, 4))}, config


def kimi_k25(weights, config):
    weights, config = deepseek(weights, config)
    return weights | {"mm_projector.proj.0.weight": mx.ones((8, 4)),
                      "vision_tower.patch_embed.proj.weight": mx.ones((8, 8))}, config


def below_model(*eyes):
    """The language model as `model.language_model`, the head outside of it."""
    def lay_out(weights, config):
        def renamed(path):
            path = path.removeprefix("language_model.")
            return path if path.startswith("lm_head") else "model.language_model." + path.removeprefix("model.")

        found = {renamed(path): weight for path, weight in weights.items()}
        return found | {f"model.{eye}.weight": mx.ones((8, 8)) for eye in eyes}, config
    return lay_out


def qwen3_vl_moe(weights, config):
    """The experts of a layer in two tensors, each matrix from inputs to outputs, gate and up side by side."""
    weights, config = below_model("visual.patch_embed.proj")(weights, config)
    found = {}
    for path, weight in weights.items():
        before, _, matrix = path.partition(".mlp.switch_mlp.")
        if matrix == "gate_proj.weight":
            up = weights[before + ".mlp.switch_mlp.up_proj.weight"]
            path, weight = before + ".mlp.experts.gate_up_proj", mx.concatenate([weight, up], axis=1).swapaxes(1, 2)
        elif matrix == "down_proj.weight":
            path, weight = before + ".mlp.experts.down_proj", weight.swapaxes(1, 2)
        elif matrix:
            continue
        found[path] = mx.contiguous(weight)
    return found, config


def as_it_is(weights, config):
    """MLX's names, which are those of Hugging Face where nothing else is said."""
    return weights, config


def step3p5(weights, config):
    """StepFun's names, and norms as their distance from one."""
    names = {".mlp.switch_mlp.": ".moe.", ".mlp.gate.gate.": ".moe.gate.", ".mlp.gate.router_bias": ".moe.router_bias",
             ".mlp.share_expert.": ".share_expert."}
    found = {}
    for path, weight in weights.items():
        for mlx_name, name in names.items():
            path = path.replace(mlx_name, name)
        found[path] = weight - 1 if "norm" in path else weight
    return found, config


def gemma4_experts(weights, config):
    """The experts of a layer in two tensors, gate above up."""
    weights, config = below_model("vision_tower.patch_embedder.input_proj")(weights, config)
    found = {}
    for path, weight in weights.items():
        before, _, matrix = path.partition(".experts.switch_glu.")
        if matrix == "gate_proj.weight":
            up = weights[before + ".experts.switch_glu.up_proj.weight"]
            path, weight = before + ".experts.gate_up_proj", mx.concatenate([weight, up], axis=1)
        elif matrix == "down_proj.weight":
            path = before + ".experts.down_proj"
        elif matrix:
            continue
        found[path] = weight
    return found, config


def gemma4_shared(weights, config):
    """Modules that make keys and values in the layers too that look at those of others, as Google publishes them."""
    found, config = below_model("vision_tower.patch_embedder.input_proj")(weights, config)
    text = config["text_config"]
    for layer in range(text["num_hidden_layers"] - text["num_kv_shared_layers"], text["num_hidden_layers"]):
        path = f"model.language_model.layers.{layer}.self_attn"
        like = found[f"{path}.q_proj.weight"]
        found |= {f"{path}.{name}.weight": mx.ones_like(like) for name in ("k_proj", "v_proj")}
        found[f"{path}.k_norm.weight"] = mx.ones((text["head_dim"],))
    return found, config


LAYOUTS = {"as-it-is": as_it_is, "gemma4-shared-hf": gemma4_shared, "gemma4-experts-hf": gemma4_experts, "step3p5-hf": step3p5, "dots1-hf": dots1, "eyes": eyes, "kimi-k25-hf": kimi_k25, "qwen3-vl-hf": below_model("visual.patch_embed.proj"),
           "qwen3-vl-moe-hf": qwen3_vl_moe,
           "gemma4-hf": below_model("vision_tower.patch_embedder.input_proj", "embed_vision.embedding_projection"),
           "mistral3-hf": below_model("vision_tower.patch_conv", "multi_modal_projector.linear_1"),
           "experts-apart": experts_apart, "mixtral-hf": mixtral, "gpt-oss-hf": gpt_oss, "deepseek-hf": deepseek,
           "gemma3-towers": gemma3_towers}
