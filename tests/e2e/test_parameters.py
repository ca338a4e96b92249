"""OpenAI's and vLLM's parameters on the real service, through the official client."""

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from common.model.source import resolve
from tests.e2e.conftest import MODEL, Up
from tests.e2e.needle import needle_prompt

QUESTION = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Name a colour."}]


def complete(up: Up, prompt: object = QUESTION, max_tokens: int = 12, **options):
    return up.client.completions.create(model=MODEL, prompt=prompt, max_tokens=max_tokens, **options)


def test_several_answers_are_those_of_the_following_seeds(up: Up) -> None:
    prompt, _ = needle_prompt(3)
    together = complete(up, prompt, n=3, temperature=0.9, seed=5)
    alone = [complete(up, prompt, temperature=0.9, seed=seed) for seed in (5, 6, 7)]
    assert [choice.text for choice in together.choices] == [answer.choices[0].text for answer in alone]
    assert len({choice.text for choice in together.choices}) > 1
    assert together.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert together.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in alone)


def test_several_prompts_are_answered_as_alone(up: Up) -> None:
    prompts = [QUESTION, "Water boils at a temperature of", "Once upon a time"]
    together = complete(up, prompts, temperature=0)
    alone = [complete(up, prompt, temperature=0) for prompt in prompts]
    assert [choice.text for choice in together.choices] == [answer.choices[0].text for answer in alone]
    assert together.usage.total_tokens == sum(answer.usage.total_tokens for answer in alone)


def test_logprobs_are_the_models_own(up: Up) -> None:
    tokenizer = Tokenizer.from_file(str(resolve(MODEL, weights=False) / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(resolve(MODEL, weights=True), dtype=torch.float32)
    choice = complete(up, temperature=0.7, seed=1, logprobs=3).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    prompt, answer = tokenizer.encode(QUESTION).ids, tokenizer.encode(choice.text).ids
    assert len(answer) == len(choice.logprobs.tokens)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    chosen = expected[torch.arange(len(answer)), answer].tolist()
    assert choice.logprobs.token_logprobs == pytest.approx(chosen, abs=1e-2)
    for likeliest, row in zip(choice.logprobs.top_logprobs, expected, strict=True):
        assert sorted(likeliest.values(), reverse=True)[:3] == pytest.approx(row.topk(3).values.tolist(), abs=1e-2)


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 1.5}])
def test_penalties_break_a_repetition(penalty: dict, up: Up) -> None:
    def num_different(**options: object) -> int:
        tokens = complete(up, "one one one one one one", 16, temperature=0, logprobs=0, **options).choices[0].logprobs
        return len(set(tokens.tokens))

    ours = {name: value for name, value in penalty.items() if name == "repetition_penalty"}
    theirs = {name: value for name, value in penalty.items() if name not in ours}
    assert num_different(**theirs, extra_body=ours) > num_different()


def test_a_biased_token_is_never_or_always_chosen(up: Up) -> None:
    tokenizer = Tokenizer.from_file(str(resolve(MODEL, weights=False) / "tokenizer.json"))
    first = complete(up, max_tokens=1, temperature=0, logprobs=0).choices[0]
    (token_id,) = tokenizer.encode(first.text).ids
    (other,) = tokenizer.encode(" cheese").ids
    banned = complete(up, max_tokens=1, temperature=0, logit_bias={str(token_id): -100}).choices[0].text
    assert banned != first.text
    assert complete(up, max_tokens=3, temperature=1, logit_bias={str(other): 100}).choices[0].text == " cheese" * 3


def test_min_tokens_keeps_an_answer_from_ending(up: Up) -> None:
    ended = up.client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=40, temperature=0)
    least = ended.usage.completion_tokens + 5
    longer = up.client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=60, temperature=0, extra_body={"min_tokens": least}
    )
    assert ended.choices[0].finish_reason == "stop"
    assert longer.usage.completion_tokens > least


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_streams_of_several_answers_say_the_same(temperature: float, up: Up) -> None:
    options = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Name three animals that live in the sea, with one emoji each."}],
        "n": 3,
        "max_tokens": 24,
        "temperature": temperature,
        "seed": 3,
        "stop": ["\n\n"],
        "logprobs": True,
        "top_logprobs": 2,
    }
    plain = up.client.chat.completions.create(**options)
    texts, tokens, reasons = ["", "", ""], [[], [], []], [None, None, None]
    usage = None
    for chunk in up.client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += [entry.token for entry in choice.logprobs.content] if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in plain.choices]
    assert tokens == [[entry.token for entry in choice.logprobs.content] for choice in plain.choices]
    assert reasons == [choice.finish_reason for choice in plain.choices]
    assert usage == plain.usage
