"""A model that was taught two tools calls them when it needs them, and only then. Usage: URL MODEL"""

import json
import sys

import openai

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120)


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def function(name, **parameters):
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


tools = [function("get_weather", city={"type": "string"}), function("add", a={"type": "number"}, b={"type": "number"})]
weather = {"Oslo": "snow, -3 degrees", "Rome": "sunny, 24 degrees", "Paris": "rain, 12 degrees"}
work = {"get_weather": lambda city: weather[city], "add": lambda a, b: str(a + b)}


def talk(question, thinks=False):
    """Goes on until the model has said something; gives its calls, its thoughts and its words."""
    messages, calls, thoughts = [{"role": "user", "content": question}], [], []
    while True:
        check(len(messages) < 10, f"an end: {messages}")
        said = client.chat.completions.create(
            model=model, messages=messages, tools=tools, temperature=0, max_tokens=300,
            extra_body={"chat_template_kwargs": {"enable_thinking": thinks}},
        )
        [choice] = said.choices
        messages.append(choice.message)
        thoughts.append(getattr(choice.message, "reasoning_content", None))
        if choice.finish_reason != "tool_calls":
            check(choice.finish_reason == "stop", choice)
            return calls, thoughts, choice.message.content
        for call in choice.message.tool_calls:
            arguments = json.loads(call.function.arguments)
            calls.append((call.function.name, arguments))
            result = work[call.function.name](**arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


calls, thoughts, answer = talk("What is the weather in Oslo?")
check(calls == [("get_weather", {"city": "Oslo"})], calls)
check("Oslo" in answer and weather["Oslo"] in answer and not any(thoughts), (thoughts, answer))

calls, thoughts, answer = talk("What is 217 plus 345?", thinks=True)
check(calls == [("add", {"a": 217, "b": 345})], calls)
check("562" in answer and all(thoughts) and "<" not in "".join(thoughts), (thoughts, answer))

# Two calls at once. So small a model may forget the second result.
calls, _, answer = talk("What is the weather in Rome and Paris?")
check(calls == [("get_weather", {"city": "Rome"}), ("get_weather", {"city": "Paris"})], calls)
check("Rome" in answer and weather["Rome"] in answer, answer)

# Nothing to call.
calls, _, answer = talk("Tell me a story about a fox.")
check(calls == [] and "fox" in answer, (calls, answer))
# The same over a WebSocket, on which only what is new is sent, and after the conversation was summed up.
functions = [{"type": "function", **tool["function"]} for tool in tools]


def respond(connection, **more):
    connection.response.create(model=model, tools=functions, temperature=0, max_output_tokens=300, store=False, **more)
    for event in connection:
        check(event.type != "error", event)
        if event.type in ("response.completed", "response.incomplete", "response.failed"):
            check(event.type == "response.completed", event)
            return event.response


def loop(connection, **more):
    response = respond(connection, **more)
    calls = []
    while called := [item for item in response.output if item.type == "function_call"]:
        check(len(calls) < 10, calls)
        results = []
        for call in called:
            arguments = json.loads(call.arguments)
            calls.append((call.name, arguments))
            output = work[call.name](**arguments)
            results.append({"type": "function_call_output", "call_id": call.call_id, "output": output})
        response = respond(connection, previous_response_id=response.id, input=results)
    return calls, response


with client.responses.connect() as connection:
    calls, response = loop(connection, input="What is the weather in Oslo?")
    check(calls == [("get_weather", {"city": "Oslo"})], calls)
    check("Oslo" in response.output_text and weather["Oslo"] in response.output_text, response)
    # A prompt that was computed before is not computed again.
    warm = respond(connection, input="What is 217 plus 345?", generate=False)
    check(warm.output == [] and warm.usage.output_tokens == 0, warm)
    calls, response = loop(connection, previous_response_id=warm.id)
    check(calls == [("add", {"a": 217, "b": 345})] and "562" in response.output_text, (calls, response))

question = [{"role": "user", "content": "What is the weather in Rome?"}]
said = client.responses.create(model=model, input=question, temperature=0, max_output_tokens=100, store=False)
compacted = client.responses.compact(model=model, input=[*question, *said.output], extra_body={"max_output_tokens": 100})
kinds = [(item.type, getattr(item, "role", None)) for item in compacted.output]
check(kinds == [("message", "user"), ("compaction", None)], compacted)
goes_on = [item.to_dict() for item in compacted.output] + [{"role": "user", "content": "Thank you."}]
said = client.responses.create(model=model, input=goes_on, max_output_tokens=100)
check(said.status in ("completed", "incomplete") and said.output_text, said)
print("all checks passed")
