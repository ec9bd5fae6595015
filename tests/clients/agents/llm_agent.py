"""Chains of tools by the `llm` package, by chats and by responses. Usage: URL MODEL"""

import importlib.metadata
import os
import pathlib
import sys
import tempfile

url, model = sys.argv[1:]
print("llm", importlib.metadata.version("llm"))
home = pathlib.Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(home)
entry = f'  model_name: {model}\n  api_base: "{url}/v1"\n  supports_tools: true\n  supports_schema: true\n'
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: chats\n{entry}- model_id: responses\n{entry}  responses: true\n"
)

import llm  # noqa: E402  (reads the folder when it is imported)

heard = []


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def weather(city):
    heard.append(city)
    return f"rain in {city}"


def closed(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


tool = llm.Tool("weather", "Tells the weather.", closed(city={"enum": ["Oslo", "Rome"]}), weather)
schema = closed(sky={"enum": ["wet", "dry"]})

for name in ("chats", "responses"):
    spoken = llm.get_model(name)
    # It has no way to demand a call, and a model that makes up what it says calls nothing by itself.
    built = "build_kwargs" if name == "chats" else "_build_responses_kwargs"
    plain = getattr(spoken, built)

    def demanding(prompt, *rest, plain=plain, **named):
        made = plain(prompt, *rest, **named)
        if prompt.tools:
            made |= {"tool_choice": "none" if prompt.tool_results else "required", "parallel_tool_calls": False}
        return made

    setattr(spoken, built, demanding)
    for stream in (True, False):
        heard.clear()
        chain = spoken.conversation(tools=[tool], chain_limit=4).chain(
            "What is the weather?", stream=stream, options={"max_tokens": 900}
        )
        chain.text()
        responses = chain._responses
        check(len(heard) == 1 and len(responses) == 2, f"{name}, stream {stream}: {heard}, {responses}")
        [call] = responses[0].tool_calls()
        check(call.name == "weather" and call.arguments["city"] in ("Oslo", "Rome"), call)
        check(responses[1].prompt.tool_results[0].output.startswith("rain in"), "the result is handed back")
        formed = spoken.prompt("What is the weather?", schema=schema, stream=stream).text()
        check(formed.replace(" ", "").replace("\n", "") in ('{"sky":"wet"}', '{"sky":"dry"}'), formed)

print("all checks passed")
