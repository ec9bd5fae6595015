"""A loop of tools by the official ollama package. Usage: URL MODEL"""

import json
import sys

import ollama

url, model = sys.argv[1:]
client = ollama.Client(host=url, timeout=120)


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


check(model in [entry.model for entry in client.list().models], "the model is listed")
check("tools" in client.show(model).capabilities, "it can call tools")

messages = [{"role": "user", "content": "What is the weather?"}]
schema = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
formed = client.chat(model=model, messages=messages, format=schema, options={"seed": 3, "num_predict": 200})
check(json.loads(formed.message.content)["city"] in ("Oslo", "Rome"), formed)
check(formed.done and formed.done_reason == "stop" and formed.eval_count > 0, formed)


def weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: where
    """
    return f"rain in {city}"


# Ollama has no way to demand a call: what was called is handed back as if it had been.
call = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
history = messages + [
    {"role": "assistant", "content": "", "tool_calls": [call]},
    {"role": "tool", "tool_name": "weather", "content": weather("Oslo")},
]
pieces = list(client.chat(model=model, messages=history, tools=[weather], stream=True, options={"num_predict": 12}))
check(len(pieces) > 2 and pieces[-1].done and not pieces[0].done, "it comes in pieces")
check(pieces[-1].prompt_eval_count > 20, "the call and its result are a part of the prompt")

done = client.generate(model=model, prompt="Hello", options={"num_predict": 8, "temperature": 0})
again = "".join(p.response for p in client.generate(
    model=model, prompt="Hello", options={"num_predict": 8, "temperature": 0}, stream=True))
check(done.response == again and done.eval_count == 8, (done.response, again))

try:
    client.chat(model="nobody", messages=messages)
    check(False, "a model that is not there is refused")
except ollama.ResponseError as error:
    check(error.status_code == 404 and error.error, error)

print("all checks passed")
