"""What the service answers, with the real model."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from common.model.source import resolve
from tests.e2e.conftest import MODEL, Up
from tests.e2e.needle import needle_prompt

NEW_TOKENS = 16

QUESTIONS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea, there lived",
    "Die Hauptstadt von Deutschland ist",
    "The three primary colors are red,",
]


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(resolve(MODEL, weights=True), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(resolve(MODEL, weights=False) / "tokenizer.json"))


def complete(up: Up, prompt: str | list[int], method: str, max_tokens: int = NEW_TOKENS):
    selection = {"method": method, "return_stats": True}
    return up.client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=max_tokens, temperature=0, extra_body={"structkv": selection}
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["full", "structkv"])
def test_the_needle_is_found(method: str, seed: int, up: Up) -> None:
    prompt, number = needle_prompt(seed)
    answer = complete(up, prompt, method)
    assert number in answer.choices[0].text
    stats = answer.structkv  # type: ignore[attr-defined]
    tokens = answer.usage.prompt_tokens
    assert 1500 < tokens < 1700
    assert stats["kept_tokens_per_layer"] == [tokens if method == "full" else -(-tokens // 10)] * 30
    assert stats["full_kv_bytes"] == tokens * 30 * 3 * 64 * 2 * 2
    if method == "structkv":
        assert 9 <= stats["pivot_layer"] <= 21
        assert 0.05 < stats["skeleton_bytes"] / stats["full_kv_bytes"] <= 0.06


def test_eight_requests_at_once_answer_like_transformers(
    up: Up, reference: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    prompts = [tokenizer.encode(text).ids for text in [*QUESTIONS, needle_prompt(8)[0], needle_prompt(9, 600)[0]]]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: complete(up, prompt, "full"), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=2,
        )[0, len(prompt) :].tolist()
        text = tokenizer.decode([*prompt, *expected]).removeprefix(tokenizer.decode(prompt))
        assert answer.choices[0].text == text
        assert answer.usage.completion_tokens == len(expected)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_streaming_says_the_same(temperature: float, up: Up) -> None:
    question = {"role": "user", "content": "Name three animals that live in the sea, with one emoji each."}
    options = {"model": MODEL, "messages": [question], "max_tokens": 40, "temperature": temperature, "seed": 11}
    plain = up.client.chat.completions.create(**options)
    stream = up.client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage
