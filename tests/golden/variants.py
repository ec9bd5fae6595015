#!/usr/bin/env python3
"""Makes what the tests say about the golden checkpoints under other configurations.

    /tmp/venv/bin/python tests/golden/variants.py

Run it after make.py. It writes
- `transformers5/NAME.json`: the configuration of every case as transformers 5 saves it. The same
  weights must give the same tokens with it.
- `variants.json`: what the reference says where a configuration was changed by hand.
  `labels` has every case under every other `model_type` that the reference can load it as, strictly,
  with its tokens; whatever is not there, the reference refuses. `changes` has single changes of a
  configuration, in mlx-lm's spelling (`reference`) and in the one to be tested (`config`).

The reference is mlx-lm with the windows that it leaves out, as for the golden tokens (reference.py).
"""

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path

from transformers import AutoConfig

from cases import FAMILIES
from reference import greedy, kv_bits, load

HERE = Path(__file__).resolve().parent
# Enough to see a difference: a short prompt, one of middle length, and one longer than any window.
PROMPTS = [2, 4, 5]
STEPS = 12
# Names by which others publish a family, and by which the reference knows it too.
OTHER_NAMES = {"kimi_k2": "deepseek_v3", "joyai_llm_flash": "deepseek_v3", "minimax": "minimax_m2"}
CHANGES = {
    "phi3-partial-rotary": {
        "case": "phi3",
        "reference": {"partial_rotary_factor": 0.5},
        "config": {"rope_theta": None, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    },
}


def main():
    folders = sorted(path.parent for path in HERE.glob("*/golden.json"))
    (HERE / "transformers5").mkdir(exist_ok=True)
    for folder in folders:
        with tempfile.TemporaryDirectory() as out:
            save_as_transformers_does(json.loads((folder / "config.json").read_text()), Path(out))
            shutil.copyfile(Path(out) / "config.json", HERE / "transformers5" / f"{folder.name}.json")
    labels = {}
    for folder in folders:
        if kv_bits(folder):
            # A setting changes nothing of what a name means.
            continue
        own = json.loads((folder / "config.json").read_text())["model_type"]
        for label in sorted({*FAMILIES, *OTHER_NAMES} - {own}):
            if found := tokens_with(folder, {"model_type": label}):
                labels.setdefault(folder.name, {})[label] = found
                print(folder.name, "as", label, flush=True)
    changes = {}
    for name, change in CHANGES.items():
        found = tokens_with(HERE / change["case"], change["reference"])
        assert found and found != tokens_with(HERE / change["case"], {}), f"{name} changes nothing"
        changes[name] = {"case": change["case"], "config": change["config"], "tokens": found}
    lines = [f'  "prompts": {json.dumps(PROMPTS)}', group("labels", labels), group("changes", changes)]
    (HERE / "variants.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def save_as_transformers_does(config, out):
    """Transformers lacks some of the names, though not the families."""
    name = config["model_type"]
    config["model_type"] = OTHER_NAMES.get(name, name)
    file = out / "config.json"
    file.write_text(json.dumps(config))
    AutoConfig.from_pretrained(out).save_pretrained(out)
    if name in OTHER_NAMES:
        saved = json.loads(file.read_text()) | {"model_type": name}
        file.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def group(name, entries):
    """One entry in a line."""
    lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
    return f'  "{name}": {{\n' + ",\n".join(lines) + "\n  }"


def tokens_with(folder, changes):
    """What the reference says with these changes of the configuration, or None if it refuses them."""
    golden = json.loads((folder / "golden.json").read_text())
    with tempfile.TemporaryDirectory() as out:
        copy = Path(out) / folder.name
        shutil.copytree(folder, copy)
        config = json.loads((folder / "config.json").read_text()) | changes
        (copy / "config.json").write_text(json.dumps(config))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                model, _ = load(copy)
                return [greedy(model, golden["prompts"][prompt], STEPS) for prompt in PROMPTS]
        except Exception:
            # Whatever goes wrong, it is not loaded.
            return None


if __name__ == "__main__":
    main()
