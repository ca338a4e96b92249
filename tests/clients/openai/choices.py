"""Several answers to one prompt, and how sure the model was."""

import math
import os

import openai

MODEL = os.environ["MODEL"]
STORY = [{"role": "user", "content": "Tell me a story about a lighthouse."}]
client = openai.OpenAI()

# Three answers, one prompt counted once; a seed repeats them all.
drawn = [
    client.chat.completions.create(model=MODEL, messages=STORY, n=3, max_tokens=16, temperature=1.0, seed=3)
    for _ in range(2)
]
texts = [[choice.message.content for choice in answer.choices] for answer in drawn]
assert texts[0] == texts[1]
assert len(set(texts[0])) == 3
assert [choice.index for choice in drawn[0].choices] == [0, 1, 2]
assert drawn[0].usage.completion_tokens == 48

# Streamed, every piece says whose it is.
stream = client.chat.completions.create(
    model=MODEL, messages=STORY, n=3, max_tokens=16, temperature=1.0, seed=3, stream=True
)
streamed = {0: "", 1: "", 2: ""}
for chunk in stream:
    for choice in chunk.choices:
        streamed[choice.index] += choice.delta.content or ""
assert list(streamed.values()) == texts[0]

# Log probabilities of a chat: of each token, and of the likeliest at its place.
sure = client.chat.completions.create(
    model=MODEL, messages=STORY, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
)
tokens = sure.choices[0].logprobs.content
assert len(tokens) == sure.usage.completion_tokens
assert b"".join(bytes(token.bytes) for token in tokens).decode() == sure.choices[0].message.content
for token in tokens:
    likeliest = [one.logprob for one in token.top_logprobs]
    assert likeliest == sorted(likeliest, reverse=True)
    assert len(likeliest) == 3
    assert math.isclose(token.logprob, likeliest[0], abs_tol=1e-4)  # greedy: the likeliest is the one
    assert sum(map(math.exp, likeliest)) <= 1.0001

# Of a completion, in its older shape.
answer = client.completions.create(
    model=MODEL, prompt="The capital of France is", max_tokens=6, temperature=0, logprobs=2
).choices[0]
assert len(answer.logprobs.tokens) == len(answer.logprobs.token_logprobs) == len(answer.logprobs.text_offset) == 6
assert all(logprob <= 0 for logprob in answer.logprobs.token_logprobs)
assert all(len(likeliest) >= 2 for likeliest in answer.logprobs.top_logprobs)

# A bias forbids a token, or leaves no other.
capital = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
first = client.completions.create(**capital, logprobs=1, extra_body={"return_tokens_as_token_ids": False})
assert "Paris" in first.choices[0].text
forced = client.completions.create(**capital, logit_bias={"42": 100})
assert len(set(forced.choices[0].text)) <= 2
