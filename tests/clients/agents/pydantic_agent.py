"""Agents of pydantic-ai with a tool and a typed result, which constrained answers end. Usage: URL MODEL"""

import asyncio
import importlib.metadata
import sys
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

url, model = sys.argv[1:]
print("pydantic-ai", importlib.metadata.version("pydantic-ai-slim"))
provider = OpenAIProvider(base_url=url + "/v1", api_key="none")
calls = 0


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


class Answer(BaseModel):
    sky: Literal["wet", "dry"]
    degrees: int = Field(ge=-40, le=50)


def weather(city: Literal["Oslo", "Rome"], days: Annotated[int, Field(ge=1, le=9)]) -> str:
    """Tells the weather.

    Args:
        city: where
        days: for how long
    """
    global calls
    calls += 1
    return f"{days} days of rain in {city}"


async def main():
    # Each turn the model must call, and picks at random: the tool, or the result.
    limits = UsageLimits(request_limit=60)
    settings = {"parallel_tool_calls": False, "timeout": 120}
    for speaks in (OpenAIChatModel, OpenAIResponsesModel):
        spoken = speaks(model, provider=provider)
        agent = Agent(
            spoken, output_type=Answer, tools=[weather], instructions="Be short.", model_settings=settings, retries=0
        )
        before = calls
        for _ in range(20):
            result = await agent.run("What is the weather?", usage_limits=limits)
            check(isinstance(result.output, Answer), result)
            check(result.usage.output_tokens > 0, result.usage)
            if calls > before:
                break
        check(calls > before, "it has called the tool in twenty runs")
        async with agent.run_stream("What is the weather?", usage_limits=limits) as streamed:
            check(isinstance(await streamed.get_output(), Answer), streamed)
        formed = Agent(spoken, output_type=NativeOutput(Answer), model_settings=settings, retries=0)
        check(isinstance((await formed.run("What is the weather?")).output, Answer), "of the form of the answer")


asyncio.run(main())
print("all checks passed")
