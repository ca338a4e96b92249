"""Texts that go on, from words or from token ids."""

import os

import openai

MODEL = os.environ["MODEL"]
client = openai.OpenAI()


def text_of(prompt, **options) -> str:
    return client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8, **options).choices[0].text


# Words and their token ids are the same prompt.
words = "The capital of France is"
beside = client.with_options(base_url=client.base_url.join("/"))  # /tokenize is vLLM's, and no part of /v1
tokens = beside.post("/tokenize", cast_to=dict, body={"model": MODEL, "prompt": words})["tokens"]
expected = text_of(words)
assert "Paris" in expected
assert text_of(tokens) == expected
assert text_of([tokens]) == expected

# Several prompts in one request, each answered at its place.
other = "Water boils at a temperature of"
both = client.completions.create(model=MODEL, prompt=[words, other], temperature=0, max_tokens=8)
assert [choice.text for choice in both.choices] == [expected, text_of(other)]
assert [choice.index for choice in both.choices] == [0, 1]
assert both.usage.completion_tokens == 16

# The prompt before its answer.
assert text_of(words, echo=True) == words + expected

# vLLM's own parameters travel in the body.
assert text_of(words, extra_body={"min_tokens": 8, "ignore_eos": True, "top_k": 5, "repetition_penalty": 1.0})
