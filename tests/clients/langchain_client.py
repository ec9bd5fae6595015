"""Talks to a Planaria cluster by langchain-openai, with its default settings. Usage: URL MODEL"""

import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

url, model = sys.argv[1:]


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


history = [SystemMessage("You are a small model.")]
for turn in range(10):
    history += [HumanMessage(f"Hello, for the time {turn}."), AIMessage("Hello." if turn else "")]
# As its own agents and its front ends write them.
history.append(HumanMessage([{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]))

chat = ChatOpenAI(model=model, base_url=url + "/v1", api_key="none", max_retries=0)
answer = chat.invoke(history)
check(answer.content.strip(), f"a chat answers: {answer!r}")
check(answer.response_metadata["finish_reason"] in ("stop", "length"), "a finish reason")
check(answer.usage_metadata["total_tokens"] > 0, f"usage: {answer.usage_metadata}")
pieces = list(chat.stream(history))
check("".join(piece.content for piece in pieces).strip() and len(pieces) > 2, f"a stream: {pieces!r}")

counted = ChatOpenAI(
    model=model, base_url=url + "/v1", api_key="none", max_retries=0, stream_usage=True,
    temperature=0, max_tokens=32_000, stop=["<never>"] * 14, n=1,
)
pieces = list(counted.stream(history))
check(any(piece.usage_metadata for piece in pieces), "usage at the end of a stream")
check("".join(piece.content for piece in pieces) == counted.invoke(history).content, "the same, whole")

plain = OpenAI(model=model, base_url=url + "/v1", api_key="none", max_retries=0)
check(plain.invoke("A planarian is").strip(), "a text is completed")
check("".join(plain.stream("A planarian is")).strip(), "and streamed")
print("all checks passed")
