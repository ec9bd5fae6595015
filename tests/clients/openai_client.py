"""Talks to a Planaria cluster by the official openai package. Usage: URL MODEL"""

import sys

import openai

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120)
messages = [{"role": "user", "content": "What is a planarian?"}]


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


check(model in [entry.id for entry in client.models.list()], "the model is listed")
check(client.models.retrieve(model).id == model, "the model is retrieved")

whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=40)
text = whole.choices[0].message.content
check(len(text) > 20 and text.isprintable(), f"a chat answers in words: {text!r}")
check(whole.choices[0].finish_reason in ("stop", "length"), "a finish reason")
check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, "usage")

stream = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=40, stream=True,
    stream_options={"include_usage": True},
)
chunks = list(stream)
check(chunks[0].choices[0].delta.role == "assistant", "the first delta bears the role")
streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
check(streamed == text, f"streamed {streamed!r} is not {text!r}")
check(chunks[-1].choices == [] and chunks[-1].usage == whole.usage, "the usage chunk comes last")
check(len(chunks) > 5, "it comes in pieces")

plain = client.completions.create(model=model, prompt="A planarian is", temperature=0, max_tokens=20)
parts = client.completions.create(
    model=model, prompt="A planarian is", temperature=0, max_tokens=20, stream=True
)
check(plain.choices[0].text == "".join(part.choices[0].text for part in parts), "plain, streamed")

seeded = [
    client.chat.completions.create(
        model=model, messages=messages, temperature=1.2, seed=7, max_tokens=30
    ).choices[0].message.content
    for _ in range(2)
]
check(seeded[0] == seeded[1], f"a seed gives the same answer twice: {seeded}")

scored = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
).choices[0].logprobs.content
check(len(scored) == 5 and all(len(entry.top_logprobs) == 3 for entry in scored), "logprobs")
check(all(entry.logprob <= 0 for entry in scored), "logprobs are at most 0")
check("".join(entry.token for entry in scored) == text[: len("".join(e.token for e in scored))], "tokens")

history = [{"role": "developer", "content": "You are a small model."}]
for turn in range(10):
    history += [{"role": "user", "content": f"Hello, for the time {turn}."},
                {"role": "assistant", "content": "Hello." if turn % 2 else None}]
history.append({"role": "user", "content": [{"type": "text", "text": "Who are you?"}]})
plainly = client.chat.completions.create(model=model, messages=history)
check(plainly.choices[0].message.content.strip(), f"ten turns, by default: {plainly}")
pieces = list(client.chat.completions.create(model=model, messages=history, stream=True))
check("".join(piece.choices[0].delta.content or "" for piece in pieces).strip(), "and streamed")
large = client.chat.completions.create(
    model=model, messages=history, max_tokens=32_000, stop=[f"<stop {number}>" for number in range(14)]
)
check(large.choices[0].message.content.strip(), "more tokens than there are, and many stop texts")
check(client.models.retrieve(model).max_model_len > 0, "models say how long a sequence may be")

word = text.split()[3]
stopped = client.chat.completions.create(model=model, messages=messages, temperature=0, stop=[word])
check(stopped.choices[0].message.content == text.split(word)[0], "the stop string ends the answer")
check(stopped.choices[0].finish_reason == "stop", "and is the reason")

kept = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=40, store=True, metadata={"for": "a test"}
)
again = client.chat.completions.retrieve(kept.id)
check(again.choices == kept.choices and again.usage == kept.usage, f"what was stored is {again}")
check((again.status, again.metadata) == ("completed", {"for": "a test"}), "what became of it")
check(client.chat.completions.delete(kept.id).deleted, "it can be deleted")
try:
    sys.exit(f"FAILED: it is still there: {client.chat.completions.retrieve(kept.id)}")
except openai.NotFoundError:
    pass


def raises(kind, what, **request):
    try:
        client.chat.completions.create(**{"model": model, "messages": messages, **request})
    except kind as error:
        check(error.body and error.body.get("message"), f"{what}: it has a message")
        return error
    sys.exit(f"FAILED: {what} raised nothing")


raises(openai.NotFoundError, "an unknown model", model="nobody-has-this")
error = raises(openai.BadRequestError, "a bad temperature", temperature=9)
check(error.param == "temperature", f"the parameter is named: {error.param}")
raises(openai.BadRequestError, "a tool without a name", tools=[{"type": "function", "function": {"parameters": {}}}])
raises(openai.BadRequestError, "a prompt past the context", messages=[
    {"role": "user", "content": "planarian " * 3000}
])
print("all checks passed")
