"""Streams say what plain answers say, piece by piece."""

import os

import openai

MODEL = os.environ["MODEL"]
client = openai.OpenAI()
options = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Name three animals that live in the sea."}],
    "max_tokens": 24,
    "temperature": 0.8,
    "seed": 7,
}
plain = client.chat.completions.create(**options)

# The pieces are the answer, under one id; the usage comes last and is the same.
with client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}) as stream:
    chunks = list(stream)
pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
assert "".join(pieces) == plain.choices[0].message.content
assert len(pieces) > 10
assert chunks[0].choices[0].delta.role == "assistant"
assert len({chunk.id for chunk in chunks}) == 1
assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
assert chunks[-1].usage == plain.usage
assert chunks[-1].choices == []
assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason

# Counts along the way, as vLLM gives them.
counting = {"include_usage": True, "continuous_usage_stats": True}
counted = list(client.chat.completions.create(**options, stream=True, stream_options=counting))
totals = [chunk.usage.completion_tokens for chunk in counted]
assert totals == sorted(totals)
assert totals[-1] == plain.usage.completion_tokens

# The package's own accumulation of a stream.
with client.chat.completions.stream(**options) as events:
    accumulated = events.until_done().current_completion_snapshot
assert accumulated.choices[0].message.content == plain.choices[0].message.content

# Completions stream as well.
asked = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
whole = client.completions.create(**asked).choices[0].text
assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == whole

# Who has read enough leaves, and is answered again.
stream = client.chat.completions.create(**options, stream=True)
next(iter(stream))
stream.close()
assert client.chat.completions.create(**options).choices[0].message.content == plain.choices[0].message.content
