"""Loops of tools by litellm, in each dialect that it can speak to a node. Usage: URL MODEL"""

import importlib.metadata
import json
import os
import sys

# Otherwise it asks the network for prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402  (reads the variable when it is imported)

url, model = sys.argv[1:]
print("litellm", importlib.metadata.version("litellm"))
litellm.suppress_debug_info = True


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


parameters = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
tools = [{"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": parameters}}]


def weather(city, days):
    check(city in ("Oslo", "Rome") and 1 <= days <= 9, f"arguments of the schema: {city}, {days}")
    return f"{days} days of rain in {city}"


def ask(stream, **asked):
    asked |= {"api_key": "none", "timeout": 120, "num_retries": 0}
    if not stream:
        return litellm.completion(**asked)
    pieces = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **asked))
    check(len(pieces) > 2, f"it comes in pieces: {pieces}")
    return litellm.stream_chunk_builder(pieces, messages=asked["messages"])


def loop(stream, first, last, **asked):
    """The model calls, hears the result, and answers."""
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is the weather?"}]
    called = ask(stream, messages=messages, tools=tools, max_tokens=2000, **first, **asked)
    choice = called.choices[0]
    check(choice.finish_reason == "tool_calls", called)
    [call] = choice.message.tool_calls
    result = weather(**json.loads(call.function.arguments))
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    answer = ask(stream, messages=messages, tools=tools, max_tokens=20, **last, **asked)
    check(answer.choices[0].finish_reason in ("stop", "length"), answer)
    check(0 < answer.usage.completion_tokens <= 20, answer.usage)


once = {"tool_choice": "required", "parallel_tool_calls": False}
for stream in (False, True):
    loop(stream, once, {"tool_choice": "none"}, model=f"openai/{model}", api_base=url + "/v1")
    loop(stream, once, {"tool_choice": "none"}, model=f"anthropic/{model}", api_base=url)

# Ollama's dialect has no way to demand a call.
for stream in (False, True):
    answer = ask(
        stream, model=f"ollama_chat/{model}", api_base=url, messages=[{"role": "user", "content": "Hello"}], max_tokens=12
    )
    check(answer.usage.completion_tokens <= 12, answer)

# Responses: a call, its result by the name of the former answer.
flat = [{"type": "function", "name": "weather", "description": "Tells it.", "parameters": parameters, "strict": True}]
asked = {"model": f"openai/{model}", "api_base": url + "/v1", "api_key": "none", "tools": flat, "timeout": 120}
first = litellm.responses(input="What is the weather?", **once, **asked)
[call] = [item for item in first.output if item.type == "function_call"]
output = {"type": "function_call_output", "call_id": call.call_id, "output": weather(**json.loads(call.arguments))}
events = list(
    litellm.responses(
        input=[output], previous_response_id=first.id, tool_choice="none", max_output_tokens=20, stream=True, **asked
    )
)
check(events[-1].type in ("response.completed", "response.incomplete"), events[-1])

try:
    litellm.completion(
        model="openai/nobody", api_base=url + "/v1", api_key="none", messages=[{"role": "user", "content": "Hello"}]
    )
    check(False, "a model that is not there is refused")
except litellm.NotFoundError as error:
    check("nobody" in str(error), error)

print("all checks passed")
