"""Loops of tools, forms and thoughts by the official openai package: chats and responses. Usage: URL MODEL"""

import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel, Field

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120)


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


class Answer(BaseModel):
    city: Literal["Oslo", "Rome"]
    degrees: int = Field(ge=-40, le=50)
    words: list[Literal["wet", "dry"]] = Field(min_length=1, max_length=3)


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


# A chat calls, hears the result, and answers.
messages = [{"role": "user", "content": "What is the weather?"}]
called = client.chat.completions.create(
    model=model, messages=messages, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=3
)
choice = called.choices[0]
check(choice.finish_reason == "tool_calls" and choice.message.content is None, choice)
[call] = choice.message.tool_calls
result = weather(**json.loads(call.function.arguments))
messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": result}]
answer = client.chat.completions.create(model=model, messages=messages, tools=tools, max_tokens=20)
check(answer.choices[0].finish_reason in ("stop", "length"), "the loop ends")
check(answer.usage.prompt_tokens > called.usage.prompt_tokens, "the result is a part of the prompt")

# The same streamed, by the helper that puts events together.
with client.chat.completions.stream(
    model=model, messages=messages[:1], tools=tools, tool_choice={"type": "function", "function": {"name": "weather"}},
    parallel_tool_calls=False, seed=3,
) as stream:
    kinds = {event.type for event in stream}
    final = stream.get_final_completion()
check("tool_calls.function.arguments.done" in kinds, kinds)
[streamed] = final.choices[0].message.tool_calls
weather(**json.loads(streamed.function.arguments))

# Typed answers.
parsed = client.chat.completions.parse(model=model, messages=messages[:1], response_format=Answer, seed=5)
check(isinstance(parsed.choices[0].message.parsed, Answer), parsed)
several = client.chat.completions.create(model=model, messages=messages[:1], n=3, max_tokens=8, seed=1, temperature=1.0)
check([c.index for c in several.choices] == [0, 1, 2], several)
whole = client.chat.completions.create(
    model=model, messages=messages[:1], response_format={"type": "json_object"}, max_tokens=2000, seed=2
)
if whole.choices[0].finish_reason == "stop":
    check(isinstance(json.loads(whole.choices[0].message.content), dict), whole)
picked = client.chat.completions.create(
    model=model, messages=messages[:1], extra_body={"guided_choice": ["yes", "no"]}
)
check(picked.choices[0].message.content in ("yes", "no"), picked)

# What is wrong is the package's own exception.
for wrong in (
    {"tools": [{"type": "web_search"}]},
    {"tool_choice": "required"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
):
    try:
        client.chat.completions.create(model=model, messages=messages[:1], **wrong)
        check(False, f"{wrong} is refused")
    except openai.BadRequestError as error:
        check(error.param, error)

# Responses: by items, by the name of the former answer, streamed, in the background.
flat = [{"type": "function", "name": "weather", "description": "Tells it.", "parameters": parameters, "strict": True}]
first = client.responses.create(
    model=model, input="What is the weather?", tools=flat, tool_choice="required", parallel_tool_calls=False
)
calls = [item for item in first.output if item.type == "function_call"]
check(len(calls) == 1 and first.status == "completed", first)
output = {"type": "function_call_output", "call_id": calls[0].call_id, "output": weather(**json.loads(calls[0].arguments))}
second = client.responses.create(
    model=model, previous_response_id=first.id, input=[output], tools=flat, tool_choice="none", max_output_tokens=20
)
check(second.status in ("completed", "incomplete") and second.previous_response_id == first.id, second)
check(client.responses.retrieve(second.id).output == second.output, "an answer is read again")
typed = client.responses.parse(model=model, input="Tell me.", text_format=Answer)
check(isinstance(typed.output_parsed, Answer), typed)
with client.responses.stream(model=model, input="Tell me.", max_output_tokens=12) as stream:
    events = list(stream)
numbers = [event.sequence_number for event in events]
check(numbers == list(range(len(numbers))), numbers)
check(events[-1].type in ("response.completed", "response.incomplete"), events[-1])
check(events[-1].response.usage.output_tokens <= 12, events[-1])

print("all checks passed")
