"""Plain and streamed answers agree, however decode's tokens come: text, reasons, log probabilities, usage."""

import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from common.pb import decode_pb2
from services.gateway.text_model import TextModel
from tests.gateway.conftest import LENGTH, SKELETON, STOP, Gateway, Step, scored
from tests.gateway.test_api import frames

GRAMMAR = decode_pb2.FINISH_REASON_GRAMMAR
NUM_CASES = 60
WORDS = ["日本語", " naïve", "👩‍👩‍👧‍👦", "\n\n", " the end", " END", "aab", " aaab", "abcabc", " \t", "."]


class Case:
    """A few answers' tokens, what is asked of them, and how they may come."""

    def __init__(self, dice: random.Random, model: TextModel) -> None:
        self.answers = [self._tokens(dice, model) for _ in range(dice.randint(1, 3))]
        self.reasons = [dice.choice([STOP, LENGTH, GRAMMAR]) for _ in self.answers]
        self.body: dict[str, Any] = {"n": len(self.answers), "seed": 1}
        text = model.tokenizer.decode(self.answers[0])
        start = dice.randrange(len(text))
        stops = [text[start : start + dice.randint(1, 4)], "END", "aab", "\N{REPLACEMENT CHARACTER}"]
        self.body["stop"] = dice.sample(stops, dice.randint(0, 3))
        self.body["include_stop_str_in_output"] = dice.random() < 0.3
        self.body["skip_special_tokens"] = dice.random() < 0.7
        self.body["min_tokens"] = dice.choice([0, 0, 3, 10])
        self.top_logprobs = dice.choice([None, 0, 3])

    def _tokens(self, dice: random.Random, model: TextModel) -> list[int]:
        ids = model.tokenizer.encode("".join(dice.choices(WORDS, k=dice.randint(1, 8)))).ids
        noise = [dice.randrange(300) for _ in range(dice.choice([0, 0, 3]))]  # special tokens and single bytes
        for token_id in noise:
            ids.insert(dice.randrange(len(ids) + 1), token_id)
        return ids[: dice.randint(1, len(ids))]

    def completion(self) -> dict[str, Any]:
        return self.body | {"logprobs": self.top_logprobs}

    def chat(self) -> dict[str, Any]:
        return self.body | {"logprobs": self.top_logprobs is not None, "top_logprobs": self.top_logprobs}

    def script(self, dice: random.Random, most_tokens: int) -> list[Step]:
        """Return the answers' events in a random order, with up to so many tokens each."""
        left = [list(ids) for ids in self.answers]
        steps: list[Step] = []
        while running := [place for place, ids in enumerate(left) if ids]:
            place = dice.choice(running)
            size = dice.randint(1, most_tokens)
            token_ids, left[place] = left[place][:size], left[place][size:]
            event = decode_pb2.GenerateEvent(token_ids=token_ids, answer=place)
            event.finish_reason = decode_pb2.FINISH_REASON_UNSPECIFIED if left[place] else self.reasons[place]
            if self.top_logprobs is not None:
                event.logprobs.extend(scored(token_id, self.top_logprobs) for token_id in token_ids)
            steps.append(event)
        steps[0].skeleton.CopyFrom(SKELETON)  # type: ignore[union-attr]
        return steps


def joined_completion(chunks: list[dict]) -> list[dict]:
    """Return a stream's choices, each put together as a plain answer has it."""
    choices: dict[int, dict] = {}
    for delta in (choice for chunk in chunks for choice in chunk["choices"]):
        choice = choices.setdefault(delta["index"], {"index": delta["index"], "text": "", "logprobs": {}})
        choice["text"] += delta["text"]
        for name, entries in (delta["logprobs"] or {}).items():
            choice["logprobs"].setdefault(name, []).extend(entries)
        choice |= {name: delta[name] for name in ("finish_reason", "stop_reason") if name in delta}
    return [choices[index] for index in sorted(choices)]


def joined_chat(chunks: list[dict]) -> list[dict]:
    choices: dict[int, dict] = {}
    for delta in (choice for chunk in chunks for choice in chunk["choices"]):
        choice = choices.setdefault(delta["index"], {"index": delta["index"], "content": "", "logprobs": []})
        choice["content"] += delta["delta"].get("content", "")
        choice["logprobs"] += (delta["logprobs"] or {"content": []})["content"]
        choice |= {name: delta[name] for name in ("finish_reason", "stop_reason") if name in delta}
    return [choices[index] for index in sorted(choices)]


def plain_completion(answer: dict) -> list[dict]:
    return [choice | {"logprobs": {k: v for k, v in (choice["logprobs"] or {}).items() if v}} for choice in answer]


def plain_chat(answer: list[dict]) -> list[dict]:
    return [
        {
            "index": choice["index"],
            "content": choice["message"]["content"],
            "logprobs": (choice["logprobs"] or {"content": []})["content"],
            "finish_reason": choice["finish_reason"],
            "stop_reason": choice["stop_reason"],
        }
        for choice in answer
    ]


async def ask(gateway: Gateway, endpoint: str, body: dict, script: list[Step], **extra: object) -> httpx.Response:
    gateway.decode.script = script
    return await getattr(gateway, endpoint)(**body, **extra)


@pytest.mark.parametrize(
    ("endpoint", "plain", "joined"),
    [("complete", plain_completion, joined_completion), ("chat", plain_chat, joined_chat)],
)
async def test_plain_and_streamed_answers_agree(
    gateway: Gateway, text_model: TextModel, endpoint: str, plain: Callable, joined: Callable
) -> None:
    for number in range(NUM_CASES):
        dice = random.Random(number)
        case = Case(dice, text_model)
        body = case.completion() if endpoint == "complete" else case.chat()
        answer = (await ask(gateway, endpoint, body, case.script(dice, 1))).json()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, last = frames(await ask(gateway, endpoint, body, case.script(dice, 4), **options))
        assert joined(chunks) == plain(answer["choices"]), f"case {number}"
        assert last["usage"] == answer["usage"], f"case {number}"


async def test_the_bytes_of_the_tokens_are_the_text(gateway: Gateway, text_model: TextModel) -> None:
    for number in range(NUM_CASES):
        dice = random.Random(number)
        case = Case(dice, text_model)
        case.top_logprobs = 2
        body = case.chat() | {"skip_special_tokens": False}
        for choice in (await ask(gateway, "chat", body, case.script(dice, 3))).json()["choices"]:
            tokens = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
            text = choice["message"]["content"]
            if isinstance(choice["stop_reason"], str):  # it may begin or end within a token
                assert tokens.decode(errors="replace").startswith(text), f"case {number}"
            else:
                assert tokens.decode(errors="replace") == text, f"case {number}"
