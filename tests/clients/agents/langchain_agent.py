"""Agents of langchain with a tool: one that answers in words, one whose answer is typed. Usage: URL MODEL"""

import importlib.metadata
import sys
from typing import Literal

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

url, model = sys.argv[1:]
print("langchain", importlib.metadata.version("langchain"))
asked = {"model": model, "base_url": url + "/v1", "api_key": "none", "max_retries": 0, "timeout": 120}
question = {"messages": [{"role": "user", "content": "What is the weather?"}]}


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


class Asked(BaseModel):
    city: Literal["Oslo", "Rome"]
    days: int = Field(ge=1, le=9)


class Answer(BaseModel):
    """What the weather is."""

    sky: Literal["wet", "dry"]
    degrees: int = Field(ge=-40, le=50)


@tool(args_schema=Asked)
def weather(city: str, days: int) -> str:
    """Tells the weather."""
    return f"{days} days of rain in {city}"


# Else a model that makes up what it says adds properties to what it calls with until its tokens are spent.
STRICT = {"strict": True}


@wrap_model_call
def strictly(request, handler):
    return handler(request.override(model_settings=STRICT))


@wrap_model_call
def one_call(request, handler):
    """A model that makes up what it says calls nothing by itself, and would never end: it must call first, then answer."""
    heard = any(isinstance(message, ToolMessage) for message in request.messages)
    return handler(request.override(tool_choice="none" if heard else "any", model_settings=STRICT))


# In words, whole and streamed, as chats and as responses.
for responses in (False, True):
    chat = ChatOpenAI(**asked, max_tokens=600, use_responses_api=responses)
    agent = create_agent(chat, tools=[weather], system_prompt="Be short.", middleware=[one_call])
    messages = agent.invoke(question, {"recursion_limit": 10})["messages"]
    called, heard, answer = messages[1], [m for m in messages if isinstance(m, ToolMessage)], messages[-1]
    check(called.tool_calls and not called.invalid_tool_calls, called)
    check(len(heard) == len(called.tool_calls) and all(m.status == "success" for m in heard), heard)
    check(isinstance(answer, AIMessage) and not answer.tool_calls, answer)
    check(answer.usage_metadata["output_tokens"] > 0, answer.usage_metadata)
    steps = [step for step, _ in agent.stream(question, {"recursion_limit": 10}, stream_mode="messages")]
    check(any(isinstance(step, ToolMessage) for step in steps), "the stream has the result of the tool")
    check(len(steps) > 3, "the stream comes in pieces")

# Typed: by a tool for the answer, which the model picks sooner or later, and by the form of the answer itself.
chat = ChatOpenAI(**asked, model_kwargs={"parallel_tool_calls": False})
agent = create_agent(chat, tools=[weather], response_format=ToolStrategy(Answer), middleware=[strictly])
found = agent.invoke(question, {"recursion_limit": 200})
check(isinstance(found["structured_response"], Answer), found)
agent = create_agent(ChatOpenAI(**asked), tools=[], response_format=ProviderStrategy(Answer))
found = agent.invoke(question, {"recursion_limit": 10})
check(isinstance(found["structured_response"], Answer), found)

print("all checks passed")
