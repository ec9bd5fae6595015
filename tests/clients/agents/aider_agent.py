"""A turn of aider, which shows a file and reads the answer as edits. Usage: URL MODEL

What the model makes up is no edit. What counts is that the turn is answered, and ends.
"""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tempfile

url, model = sys.argv[1:]
print("aider", importlib.metadata.version("aider-chat"))


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


for stream in ("--stream", "--no-stream"):
    with tempfile.TemporaryDirectory() as home:
        pathlib.Path(home, "hello.py").write_text("print('hello')\n")
        # Else it asks the network for prices.
        prices = pathlib.Path(home, ".aider/caches/model_prices_and_context_window.json")
        prices.parent.mkdir(parents=True)
        prices.write_text('{"nothing": {}}')
        command = [
            sys.executable, "-m", "aider", "--model", f"openai/{model}", "--openai-api-base", url + "/v1",
            "--openai-api-key", "none", "--edit-format", "whole", stream, "--message", "Say more.", "--no-git",
            "--yes-always", "--no-pretty", "--no-suggest-shell-commands", "--no-detect-urls", "--no-check-update",
            "--no-show-release-notes", "--no-show-model-warnings", "--analytics-disable", "hello.py",
        ]
        environment = {"PATH": os.environ["PATH"], "HOME": home, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        done = subprocess.run(
            command, cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=140
        )
    told = f"{stream}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    check(done.returncode == 0, told)
    check(re.search(r"Tokens: [1-9]\S* sent, [1-9]\S* received", done.stdout), told)
    check("litellm." not in done.stdout, told)

print("all checks passed")
