"""Weights in fewer bits as others than MLX publish them: written, and read back into plain numbers.

`packed` is a case's `format`: it takes the weights under the names of Hugging Face, puts the tensors of the format in
place of those of each linear layer, and says in `quantization_config` what it did. `unpacked` knows nothing of it: it
reads such a folder by what the format's authors say of it, a few lines of numpy for each, and gives weights of 32 bits,
which the reference computes with.
"""

import json
import struct

import mlx.core as mx
import numpy as np

NUMBERS = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64, "U8": np.uint8}
# An exponent of two, or a float of 8 or 16 bits, which numpy does not know: its bits.
BITS = {"F8_E4M3": np.uint8, "F8_E8M0": np.uint8, "BF16": np.uint16}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# The output that lies at each place of a word, from the lowest bits.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


# Files.

def write_safetensors(tensors, file):
    """`tensors`: for each name the type that safetensors has for it, and its numbers or their bits."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, array) in tensors.items():
        blob = np.ascontiguousarray(array, {**NUMBERS, **BITS}[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(blob)]}
        data += blob
    head = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(head)) + head + data)


def read_safetensors(file):
    blob = file.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    header, data = json.loads(blob[8:8 + length]), blob[8 + length:]
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            numbers = np.frombuffer(data[start:end], {**NUMBERS, **BITS}[entry["dtype"]])
            found[name] = (entry["dtype"], numbers.reshape(entry["shape"]))
    return found


def values(tensor):
    """A tensor's numbers as float32."""
    kind, array = tensor
    if kind == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if kind == "F8_E4M3":
        return np.array(mx.from_fp8(mx.array(array), mx.float32))
    return array.astype(np.float32)


def bf16(array):
    """The nearest numbers of 16 bits, as bits."""
    return np.array(mx.array(array.astype(np.float32)).astype(mx.bfloat16).view(mx.uint16))


def e4m3(array):
    return np.array(mx.to_fp8(mx.array(array.astype(np.float32))))


# Writing.

def packed(weights, config, how, only):
    """(tensors, config) of a folder in the format `how`, a key of FORMATS and its arguments; `only` is a part of the
    names of what is packed."""
    name, arguments = how[0], how[1:]
    pack, say = FORMATS[name]
    tensors = {}
    for path, weight in weights.items():
        weight = np.array(weight.astype(mx.float32))
        module = path.removesuffix(".weight")
        # DeepSeek leaves the weights of an indexer's heads as they are.
        if only in module and module.endswith(("_proj", "_proj_with_mqa", ".wq_b", ".wk")) and "weights_proj" not in module:
            own = pack(weight, *arguments)
            tensors |= {f"{module}.{kind}": tensor for kind, tensor in own.items()}
        else:
            tensors[path] = ("F32", weight)
    said = say(*arguments)
    if "text_config" in config:
        return tensors, config | {"text_config": config["text_config"] | {"quantization_config": said}}
    return tensors, config | {"quantization_config": said}


def in_blocks(weight, rows, columns):
    """The largest number of each block, `[blocks down, blocks across]`."""
    down, across = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
    padded = np.zeros((down * rows, across * columns), np.float32)
    padded[:weight.shape[0], :weight.shape[1]] = np.abs(weight)
    return padded.reshape(down, rows, across, columns).max(axis=(1, 3))


def spread(scales, rows, columns, shape):
    """A scale for each number."""
    return np.repeat(np.repeat(scales, rows, axis=0), columns, axis=1)[:shape[0], :shape[1]]


def fp8(weight, rows, columns, powers=False):
    scales = in_blocks(weight, rows, columns) / 448
    scales = 2 ** np.ceil(np.log2(scales)) if powers else scales
    scales = scales.astype(np.float32)
    numbers = e4m3(weight / spread(scales, rows, columns, weight.shape))
    return {"weight": ("F8_E4M3", numbers), "weight_scale_inv": ("F32", scales)}


def say_fp8(rows, columns, powers=False):
    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [rows, columns]}
    return said | ({"scale_fmt": "ue8m0"} if powers else {})


def fp8_rows(weight):
    scales = bf16(np.abs(weight).max(axis=1, keepdims=True) / 448)
    return {"weight": ("F8_E4M3", e4m3(weight / values(("BF16", scales)))), "weight_scale": ("BF16", scales)}


def say_fp8_rows():
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def in_words(numbers, bits):
    """The numbers of each row in words of 32 bits, the first in the lowest bits."""
    places = numbers.reshape(*numbers.shape[:-1], -1, 32 // bits).astype(np.uint64)
    return (places << (np.arange(32 // bits, dtype=np.uint64) * bits)).sum(axis=-1).astype(np.uint32).view(np.int32)


def int4(weight, group):
    groups = weight.reshape(weight.shape[0], -1, group)
    scales = bf16(np.abs(groups).max(axis=-1) / 7)
    numbers = np.clip(np.rint(groups / values(("BF16", scales))[..., None]), -8, 7) + 8
    return {"weight_packed": ("I32", in_words(numbers.reshape(weight.shape), 4)), "weight_scale": ("BF16", scales),
            "weight_shape": ("I64", np.array(weight.shape))}


def say_int4(group):
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group,
               "dynamic": False, "actorder": None}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}}


def rounded(weight, group, bits):
    """(numbers `[in, out]`, zero points and scales `[groups, out]`) of a matrix `[out, in]`."""
    groups = weight.T.reshape(-1, group, weight.shape[0])
    low, high = np.minimum(groups.min(axis=1), 0), np.maximum(groups.max(axis=1), 0)
    scales = ((high - low) / (2 ** bits - 1)).astype(np.float16)
    zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 1, 2 ** bits - 1)
    numbers = np.rint(groups / scales.astype(np.float32)[:, None]) + zeros[:, None]
    return np.clip(numbers, 0, 2 ** bits - 1).reshape(weight.T.shape), zeros, scales


def awq(weight, group):
    numbers, zeros, scales = rounded(weight, group, 4)

    def words(numbers):
        return in_words(numbers.reshape(len(numbers), -1, 8)[..., AWQ_ORDER].reshape(numbers.shape), 4)

    return {"qweight": ("I32", words(numbers)), "qzeros": ("I32", words(zeros)), "scales": ("F16", scales)}


def say_awq(group):
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": None}


def gptq(weight, group, bits, second):
    numbers, zeros, scales = rounded(weight, group, bits)
    stored = zeros if second else zeros - 1
    order = np.arange(len(numbers)) // group
    return {"qweight": ("I32", np.ascontiguousarray(in_words(np.ascontiguousarray(numbers.T), bits).T)),
            "qzeros": ("I32", in_words(stored, bits)), "scales": ("F16", scales), "g_idx": ("I32", order)}


def say_gptq(group, bits, second):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False,
            "true_sequential": True, "lm_head": False, "checkpoint_format": "gptq_v2" if second else "gptq"}


def nvfp4(weight, divides):
    whole = np.float32(np.abs(weight).max() / (448 * 6))
    groups = weight.reshape(weight.shape[0], -1, 16)
    scales = e4m3(np.maximum(np.abs(groups).max(axis=-1) / 6 / whole, 2.0 ** -9))
    steps = values(("F8_E4M3", scales))[..., None] * whole
    numbers = np.abs(groups[..., None] / steps[..., None] - E2M1).argmin(axis=-1).reshape(weight.shape)
    pairs = (numbers[:, ::2] | numbers[:, 1::2] << 4).astype(np.uint8)
    scales = ("F8_E4M3", scales)
    if divides:
        return {"weight_packed": ("U8", pairs), "weight_scale": scales,
                "weight_global_scale": ("F32", np.array([1 / whole], np.float32)),
                "input_global_scale": ("F32", np.array([1.5], np.float32))}
    return {"weight": ("U8", pairs), "weight_scale": scales, "weight_scale_2": ("F32", np.array(whole)),
            "input_scale": ("F32", np.array(1.5))}


def say_nvfp4(divides):
    if not divides:
        return {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"],
                "producer": {"name": "modelopt"}}
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
    return {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


FORMATS = {"fp8": (fp8, say_fp8), "fp8-rows": (fp8_rows, say_fp8_rows), "int4": (int4, say_int4),
           "awq": (awq, say_awq), "gptq": (gptq, say_gptq), "nvfp4": (nvfp4, say_nvfp4)}


# Reading.

def quantization_of(config):
    said = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config") or {}
    return said if said.get("quant_method") in ("fp8", "compressed-tensors", "awq", "gptq", "modelopt") else None


def unpacked(folder):
    """(weights, config) of a folder in one of these formats, as if it had never been packed; None of any other."""
    config = json.loads((folder / "config.json").read_text())
    said = quantization_of(config)
    if said is None:
        return None
    tensors, weights, kinds = read_safetensors(folder / "model.safetensors"), {}, set()
    for path, tensor in tensors.items():
        module, _, kind = path.rpartition(".")
        beside = {kind: tensors.get(f"{module}.{kind}") for kind in (
            "weight_scale_inv", "weight_scale", "weight_scale_2", "weight_global_scale", "scales", "qzeros", "g_idx")}
        found = unpacked_weight(said, kind, tensor, beside)
        if found is not None:
            scales = beside["scales"] or beside["weight_scale"]
            if module.endswith("kv_b_proj") and scales and scales[0] in ("F16", "BF16"):
                # It is turned, which no packed matrix can be, so it is unpacked, into numbers of its scales' type.
                found = found.astype(np.float16).astype(np.float32) if scales[0] == "F16" else values(("BF16", bf16(found)))
            weights[module + ".weight"] = found
        elif tensor[0] == "F32" and not kind.endswith(("scale", "scale_2", "scale_inv")):
            weights[path] = tensor[1]
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    if "text_config" in config:
        config["text_config"] = {
            key: value for key, value in config["text_config"].items() if key != "quantization_config"}
    return {path: mx.array(weight) for path, weight in weights.items()}, config


def unpacked_weight(said, kind, tensor, beside):
    """The numbers `[out, in]` of a linear layer, if this is the tensor that holds them."""
    stored, array = tensor
    if stored == "F8_E4M3" and kind == "weight":
        scales = values(beside["weight_scale_inv"] or beside["weight_scale"])
        rows, columns = said.get("weight_block_size", (1, array.shape[1]))
        product = values(tensor) * spread(scales, rows, columns, array.shape)
        # The authors compute with 16 bits.
        return values(("BF16", bf16(product)))
    if stored == "U8" and kind in ("weight", "weight_packed"):
        numbers = np.stack([array & 15, array >> 4], axis=-1).reshape(len(array), -1)
        scales = np.repeat(values(beside["weight_scale"]), 16, axis=1)
        if whole := beside["weight_global_scale"]:
            return E2M1[numbers] * scales / values(whole)
        return E2M1[numbers] * scales * values(beside["weight_scale_2"])
    if kind == "weight_packed":
        scales = values(beside["weight_scale"])
        numbers = out_of_words(array, 4).astype(np.float32) - 8
        return numbers * np.repeat(scales, numbers.shape[1] // scales.shape[1], axis=1)
    if kind == "qweight":
        bits = said["bits"]
        zeros, scales = out_of_words(beside["qzeros"][1], bits), values(beside["scales"])
        if said["quant_method"] == "awq":
            back = np.argsort(AWQ_ORDER)
            numbers = out_of_words(array, 4)
            numbers, zeros = (n.reshape(len(n), -1, 8)[..., back].reshape(n.shape) for n in (numbers, zeros))
            group = np.arange(len(numbers)) // said["group_size"]
        else:
            numbers = out_of_words(array.T, bits).T
            zeros = zeros + (said["checkpoint_format"] != "gptq_v2")
            group = beside["g_idx"][1]
        # The authors round each weight to 16 bits; MLX, which has no zero points, rounds what stands for them.
        biases = (-zeros * scales).astype(np.float16).astype(np.float32)
        return (numbers.astype(np.float32) * scales[group] + biases[group]).T
    return None


def out_of_words(words, bits):
    words = np.ascontiguousarray(words).view(np.uint32)
    numbers = words[..., None] >> (np.arange(32 // bits, dtype=np.uint32) * bits) & (2 ** bits - 1)
    return numbers.reshape(*words.shape[:-1], -1).astype(np.int64)
