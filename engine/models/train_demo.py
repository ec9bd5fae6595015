#!/usr/bin/env python3
"""Trains Planaria's demo model: a Llama of 12 layers that speaks plain sentences.

The text comes from `demo_text.py` and `demo_tools.py`, so nothing is downloaded. The
result is a directory in the usual Hugging Face layout, `engine/models/demo`.

    python3 -m venv /tmp/venv
    /tmp/venv/bin/pip install "mlx[cpu]==0.32.2" mlx-lm tokenizers
    /tmp/venv/bin/python engine/models/train_demo.py

    train="/tmp/venv/bin/python engine/models/train_demo.py --from engine/models/demo"
    $train --round drills --steps 650 --lr 0.02 --seed 2
    $train --round tools --steps 2200 --lr 0.012 --seed 3
    $train --round talk --steps 600 --lr 0.012 --seed 4

The later rounds make it hold on to what was asked, copy it into the calls of tools,
and still end a story well. Together they take some two hours on two cores. On Linux the
BLAS in the MLX wheel is slow: replace mlx_cpu.libs/libblas-*.so.3* by a link to
Debian's OpenBLAS first. The same arguments on the same machine give the same model.
"""

import argparse
import json
import os
import time
from pathlib import Path

# The products here are small: a second BLAS thread costs more than it brings. MLX
# reads this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from demo_text import documents

HERE = Path(__file__).resolve().parent
PAD, BOS, END = range(3)
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tools|>", "<|tool|>"]
# They are read in answers, so they are tokens, but not special ones.
MARKERS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 768,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "torch_dtype": "float32",
    "use_cache": True,
}

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|tools|>' }}
    {%- for tool in tools %}
        {{- '' if loop.first else '\\n' }}
        {{- tool.function.name ~ '(' ~ ((tool.function.parameters or {}).properties or {}) | list | join(', ') ~ ')' }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('the roles are system, user, assistant and tool, not ' ~ message['role']) }}
    {%- endif %}
    {{- '<|' ~ message['role'] ~ '|>' }}
    {%- if message.reasoning_content %}
        {{- '<think>' ~ message.reasoning_content ~ '</think>' }}
    {%- endif %}
    {{- (message['content'] or '') | trim }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>{"name": "' ~ call.function.name ~ '", "arguments": ' }}
        {{- call.function.arguments | tojson ~ '}</tool_call>' }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' ~ ('<think>' if enable_thinking else '') }}
{%- endif %}
"""

# What the training asks at its end, to be read by a person.
QUESTIONS = ["Hello!", "Who are you?", "What is a planarian?", "Tell me a story about a fox and a lake.",
             "What happens when a machine dies?", "Count from 3 to 9.", "What color is the sky?",
             "Write a poem about the rain.", "What is the capital of France?"]

# Of each round: share of the steps, tokens in a row, rows in a step, and the shares of drills and of tools in the
# text. Short rows are cheap and teach the words, long rows teach the end of a long story. Drills teach to copy what
# was read, which this model does not learn from conversations alone, and calls of tools are made of that.
ROUNDS = {
    "first": [(0.45, 128, 8, (0.0, 0.3)), (0.40, 256, 4, (0.0, 0.3)), (0.15, 512, 2, (0.0, 0.3))],
    "drills": [(1.00, 64, 16, (0.7, 0.3))],
    "tools": [(0.65, 128, 8, (0.15, 0.55)), (0.25, 256, 4, (0.05, 0.4)), (0.10, 512, 2, (0.0, 0.3))],
    "talk": [(0.40, 256, 4, (0.02, 0.35)), (0.60, 512, 2, (0.0, 0.25))],
}


def main():
    args = arguments()
    out = Path(args.out)
    mx.random.seed(args.seed)
    if args.start:
        tokenizer = Tokenizer.from_file(str(Path(args.start) / "tokenizer.json"))
        params = tree_unflatten(list(mx.load(str(Path(args.start) / "model.safetensors")).items()))
    else:
        tokenizer = train_tokenizer(args.seed)
        params = initial_parameters()
    write_model_files(out, tokenizer)
    count = sum(v.size for _, v in tree_flatten(params))
    print(f"{count} parameters, {args.steps} steps", flush=True)
    params = train(params, tokenizer, args, out)
    save_weights(params, out)
    compare_with_mlx_lm(params, out)
    for question in QUESTIONS:
        print(f"> {question}\n{answer(out, question)}\n", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(HERE / "demo"), help="directory to write (default: engine/models/demo)")
    parser.add_argument("--from", dest="start", help="go on from this model instead of beginning anew")
    parser.add_argument("--round", choices=ROUNDS, default="first")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=0.02, help="peak learning rate of the layers; a fifth of it elsewhere")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100, help="steps between two saved states")
    return parser.parse_args()


# Tokens.

def train_tokenizer(seed):
    """Byte-level BPE; digits stand alone, so that counting is the same everywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    source = documents(seed)
    texts = (text for _ in range(8000) for _, text in next(source))
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], show_progress=False,
        special_tokens=SPECIAL + MARKERS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", BOS)])
    described = json.loads(tokenizer.to_str())
    for token in described["added_tokens"]:
        token["special"] = token["content"] not in MARKERS
    return Tokenizer.from_str(json.dumps(described))


def encode(tokenizer, document):
    """Ids of a document as the chat template renders it, and how much each one counts.

    What the assistant says counts in full. Questions count little: people word them
    as they like, and a small model should not spend itself on guessing them. That it
    is to think does not count at all: the chat template says so, never the model.
    """
    ids, weights = [BOS], [0.0]
    think = tokenizer.token_to_id("<think>")
    for role, text in document:
        spoken = tokenizer.encode(text, add_special_tokens=False).ids
        if role == "text":
            ids += spoken + [END]
            weights += [0.5] + [1.0] * len(spoken)
        elif role == "drill":
            ids += spoken * 4 + [END]
            weights += [0.0] * (len(spoken) + 1) + [1.0] * (3 * len(spoken))
        else:
            weight = 1.0 if role == "assistant" else 0.05
            ids += [tokenizer.token_to_id(f"<|{role}|>")] + spoken + [END]
            weights += [0.05] + [0.0 if token == think else weight for token in spoken] + [weight]
    return ids, weights


def batches(tokenizer, seed, length, rows, shares):
    """Batches without end; each row begins with a document and is filled with more."""
    source = documents(seed, shares)
    while True:
        ids = np.full((rows, length + 1), PAD, np.int32)
        weights = np.zeros((rows, length + 1), np.float32)
        for row in range(rows):
            at = 0
            while at <= length:
                some, some_weights = encode(tokenizer, next(source))
                fit = min(len(some), length + 1 - at)
                ids[row, at:at + fit] = some[:fit]
                weights[row, at:at + fit] = some_weights[:fit]
                at += fit
        yield mx.array(ids[:, :-1]), mx.array(ids[:, 1:]), mx.array(weights[:, 1:])


# The model, written out for training. MLX's CPU backend computes `exp` about ten times
# slower than plain arithmetic, so softmax and SiLU use a polynomial here; at the end the
# result is compared with mlx-lm's own Llama.

def initial_parameters():
    c = CONFIG
    hidden, inner, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    queries, keys = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    back = (2 * c["num_hidden_layers"]) ** -0.5

    def weight(rows, columns, scale=1.0):
        return {"weight": mx.random.normal((rows, columns)) * (scale * columns ** -0.5)}

    def layer():
        return {
            "self_attn": {"q_proj": weight(queries, hidden), "k_proj": weight(keys, hidden),
                          "v_proj": weight(keys, hidden), "o_proj": weight(hidden, queries, back)},
            "mlp": {"gate_proj": weight(inner, hidden), "up_proj": weight(inner, hidden),
                    "down_proj": weight(hidden, inner, back)},
            "input_layernorm": {"weight": mx.ones(hidden)},
            "post_attention_layernorm": {"weight": mx.ones(hidden)},
        }

    return {"model": {
        "embed_tokens": {"weight": mx.random.normal((c["vocab_size"], hidden)) * 0.05},
        "layers": [layer() for _ in range(c["num_hidden_layers"])],
        "norm": {"weight": mx.ones(hidden)},
    }}


def fast_exp(x):
    """exp(x) for |x| <= 30 by arithmetic alone: a Taylor polynomial of x/32, squared five times."""
    y = mx.clip(x, -30.0, 30.0) * (1 / 32)
    result = 1 + y / 8
    for k in range(7, 0, -1):
        result = 1 + result * (y / k)
    for _ in range(5):
        result = result * result
    return result


@mx.custom_function
def fast_softmax(scores):
    e = fast_exp(scores - mx.max(scores, axis=-1, keepdims=True))
    return e / mx.sum(e, axis=-1, keepdims=True)


@fast_softmax.vjp
def fast_softmax_vjp(_, cotangent, output):
    return output * (cotangent - mx.sum(cotangent * output, axis=-1, keepdims=True))


@mx.custom_function
def fast_silu(x):
    return x / (1 + fast_exp(-x))


@fast_silu.vjp
def fast_silu_vjp(x, cotangent, _):
    s = 1 / (1 + fast_exp(-x))
    return cotangent * s * (1 + x * (1 - s))


@mx.custom_function
def cross_entropy(logits, onehot, weights):
    top = mx.max(logits, axis=-1, keepdims=True)
    total = mx.log(mx.sum(fast_exp(logits - top), axis=-1)) + top[..., 0]
    return mx.sum(weights * (total - mx.sum(logits * onehot, axis=-1)))


@cross_entropy.vjp
def cross_entropy_vjp(primals, cotangent, _):
    logits, onehot, weights = primals
    return (cotangent * weights[..., None] * (fast_softmax(logits) - onehot),
            mx.zeros_like(onehot), mx.zeros_like(weights))


def forward(params, ids):
    c = CONFIG
    model, eps = params["model"], c["rms_norm_eps"]
    batch, length = ids.shape
    heads, kv_heads, head = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    # As much as fast_exp can tell from minus infinity.
    hide = mx.triu(mx.full((length, length), -1e4), k=1)
    table = model["embed_tokens"]["weight"]
    h = table[ids]
    for layer in model["layers"]:
        attention, mlp = layer["self_attn"], layer["mlp"]
        x = mx.fast.rms_norm(h, layer["input_layernorm"]["weight"], eps)

        def split(name, count):
            y = x @ attention[name]["weight"].T
            return y.reshape(batch, length, count, head).transpose(0, 2, 1, 3)

        q, k, v = split("q_proj", heads), split("k_proj", kv_heads), split("v_proj", kv_heads)
        q = mx.fast.rope(q, head, traditional=False, base=c["rope_theta"], scale=1.0, offset=0) * head ** -0.5
        k = mx.fast.rope(k, head, traditional=False, base=c["rope_theta"], scale=1.0, offset=0)
        groups = heads // kv_heads
        q = q.reshape(batch, kv_heads, groups * length, head)
        scores = (q @ k.transpose(0, 1, 3, 2)).reshape(batch, kv_heads, groups, length, length)
        scores = fast_softmax(scores + hide).reshape(batch, kv_heads, groups * length, length)
        y = (scores @ v).reshape(batch, heads, length, head).transpose(0, 2, 1, 3).reshape(batch, length, -1)
        h = h + y @ attention["o_proj"]["weight"].T
        x = mx.fast.rms_norm(h, layer["post_attention_layernorm"]["weight"], eps)
        gate = fast_silu(x @ mlp["gate_proj"]["weight"].T)
        h = h + (gate * (x @ mlp["up_proj"]["weight"].T)) @ mlp["down_proj"]["weight"].T
    return mx.fast.rms_norm(h, model["norm"]["weight"], eps) @ table.T


def loss_of(params, ids, targets, weights):
    logits = forward(params, ids)
    onehot = (targets[..., None] == mx.arange(logits.shape[-1])).astype(mx.float32)
    return cross_entropy(logits, onehot, weights) / mx.sum(weights)


# Training.

def train(params, tokenizer, args, out):
    warm = max(1, min(60, args.steps // 10))

    def schedule(peak):
        return optim.join_schedules([
            optim.linear_schedule(0.0, peak, warm),
            optim.cosine_decay(peak, max(1, args.steps - warm), peak / 50)], [warm])

    # Muon for the matrices of the layers needs about half the steps that AdamW alone needs.
    optimizer = optim.MultiOptimizer([
        optim.Muon(learning_rate=schedule(args.lr), momentum=0.95, weight_decay=0.0),
        optim.AdamW(learning_rate=schedule(args.lr / 5), betas=[0.9, 0.98], weight_decay=0.0, bias_correction=True),
    ], [lambda path, weight: weight.ndim == 2 and "embed" not in path])
    optimizer.init(params)
    value_and_grad = mx.value_and_grad(loss_of)

    def step(state, ids, targets, weights):
        loss, grads = value_and_grad(state, ids, targets, weights)
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        return loss, optimizer.apply_gradients(grads, state)

    started, mean, done, tokens = time.time(), None, 0, 0
    phases = ROUNDS[args.round]
    for phase, (share, length, rows, shares) in enumerate(phases):
        last = args.steps if phase == len(phases) - 1 else done + round(share * args.steps)
        source = batches(tokenizer, args.seed + 1000 * (phase + 1), length, rows, shares)
        compiled = mx.compile(step, inputs=[optimizer.state], outputs=[optimizer.state])
        while done < last:
            loss, params = compiled(params, *next(source))
            mx.eval(loss, params, optimizer.state)
            done, tokens = done + 1, tokens + length * rows
            mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
            if done % 20 == 0 or done == args.steps:
                spent = time.time() - started
                print(f"step {done:5} of {args.steps}, rows of {length}, loss {mean:.4f}, "
                      f"{tokens / spent:.0f} tokens/s, {spent:.0f} s", flush=True)
            if done % args.save_every == 0:
                save_weights(params, out)
    return params


# What the directory holds beside the weights.

def write_model_files(out, tokenizer):
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    files = {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD,
                                   "do_sample": True, "temperature": 0.3, "top_p": 0.95},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONFIG["max_position_embeddings"],
            "bos_token": SPECIAL[BOS], "eos_token": SPECIAL[END], "pad_token": SPECIAL[PAD],
            "clean_up_tokenization_spaces": False},
        "special_tokens_map.json": {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[END], "pad_token": SPECIAL[PAD]},
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def save_weights(params, out):
    """Whole or not at all: a reader never sees half a file."""
    part = out / "part.safetensors"
    mx.save_safetensors(str(part), dict(tree_flatten(params)), {"format": "pt"})
    part.rename(out / "model.safetensors")


def compare_with_mlx_lm(params, out):
    from mlx_lm import load
    model, _ = load(str(out))
    ids = mx.random.randint(6, CONFIG["vocab_size"], (1, 64))
    difference = mx.abs(model(ids) - forward(params, ids)).max().item()
    print(f"largest difference of a logit from mlx-lm's Llama: {difference:.2e}", flush=True)
    assert difference < 1e-2


def answer(out, question, limit=300):
    from mlx_lm import generate, load
    model, tokenizer = load(str(out))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    return generate(model, tokenizer, prompt, max_tokens=limit)


if __name__ == "__main__":
    main()
