"""A loop of tools by the official anthropic package. Usage: URL MODEL"""

import sys

import anthropic

url, model = sys.argv[1:]
client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120)


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


tools = [
    {
        "name": "weather",
        "description": "Tells it.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    }
]
messages = [{"role": "user", "content": [{"type": "text", "text": "What is the weather?"}]}]
asked = {"model": model, "system": "Be short.", "max_tokens": 400, "tools": tools}

called = client.messages.create(messages=messages, tool_choice={"type": "any", "disable_parallel_tool_use": True}, **asked)
check(called.stop_reason == "tool_use", called)
[call] = [block for block in called.content if block.type == "tool_use"]
check(call.input["city"] in ("Oslo", "Rome") and 1 <= call.input["days"] <= 9, call)
messages += [
    {"role": "assistant", "content": called.content},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]},
]
answer = client.messages.create(messages=messages, tool_choice={"type": "none"}, **{**asked, "max_tokens": 20})
check(answer.stop_reason in ("end_turn", "max_tokens"), answer)
check(answer.usage.output_tokens <= 20 and answer.usage.input_tokens > 0, answer.usage)

with client.messages.stream(messages=messages[:1], tool_choice={"type": "tool", "name": "weather"}, **asked) as stream:
    for _ in stream:
        pass
    final = stream.get_final_message()
check(final.stop_reason == "tool_use" and final.content[-1].input["city"] in ("Oslo", "Rome"), final)

with client.messages.stream(model=model, max_tokens=12, messages=messages[:1]) as stream:
    text = "".join(stream.text_stream)
    check(text == "".join(b.text for b in stream.get_final_message().content if b.type == "text"), text)

counted = client.messages.count_tokens(model=model, messages=messages[:1], system="Be short.")
check(counted.input_tokens > 3, counted)

try:
    client.messages.create(model="nobody", max_tokens=3, messages=messages[:1])
    check(False, "a model that is not there is refused")
except anthropic.NotFoundError as error:
    check(error.body["error"]["type"] == "not_found_error", error.body)
try:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    client.messages.create(model=model, max_tokens=3, messages=[{"role": "user", "content": [image]}])
    check(False, "an image is refused")
except anthropic.BadRequestError as error:
    check("image" in str(error), error)

print("all checks passed")
