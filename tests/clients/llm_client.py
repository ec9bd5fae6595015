"""Talks to a Planaria cluster by the `llm` package, in a conversation of ten turns. Usage: URL MODEL"""

import os
import pathlib
import sys
import tempfile

url, model = sys.argv[1:]
home = pathlib.Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(home)
# As its manual says it.
(home / "extra-openai-models.yaml").write_text(
    f'- model_id: planaria\n  model_name: {model}\n  api_base: "{url}/v1"\n'
)

import llm  # noqa: E402  (reads the folder when it is imported)

SAID = ["Hello.", "Thank you.", "Who are you?", "Hello.", "Thank you."]

for stream in (True, False):
    conversation = llm.get_model("planaria").conversation()
    for turn, prompt in enumerate(SAID * 2):
        answer = conversation.prompt(prompt, stream=stream).text()
        if not answer.strip():
            sys.exit(f"FAILED: turn {turn} of a conversation, stream {stream}: no answer")
    if len(conversation.responses) != 10:
        sys.exit(f"FAILED: {len(conversation.responses)} turns were kept")
print("all checks passed")
