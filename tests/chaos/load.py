"""Streamed requests whose right answers are known from an undisturbed run."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx

from common.settings import DEFAULT_MODEL

HANGS_AFTER_SECONDS = 150
_THINGS = "river engine garden letter window market winter signal harbour teacher mountain library".split()
_PEOPLE = "Anna Boris Clara David Elena Felix Greta Henry Irene Jonas Karla Louis".split()


@dataclass(frozen=True)
class Request:
    """A prompt with its sampling."""

    prompt: str
    temperature: float
    seed: int
    max_tokens: int

    def body(self) -> dict[str, object]:
        return {
            "model": DEFAULT_MODEL,
            "prompt": self.prompt,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "stream": True,
        }


def requests(count: int, seed: int) -> list[Request]:
    """Return different requests, half of them greedy, with prompts of 150 to 700 tokens."""
    dice = random.Random(seed)
    made = []
    for index in range(count):
        lines = [
            f"{dice.choice(_PEOPLE)} wrote the number {dice.randrange(1000)} on the {dice.choice(_THINGS)}."
            for _ in range(dice.randrange(14, 60))
        ]
        prompt = " ".join([*lines, f"The number on the {dice.choice(_THINGS)} is"])
        made.append(Request(prompt, 0.0 if index % 2 == 0 else 0.8, index, dice.randrange(8, 33)))
    return made


@dataclass
class Outcomes:
    """What became of the requests: how many of each kind, and what to look at."""

    counts: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def note(self, outcome: str, trouble: str = "") -> None:
        self.counts[outcome] += 1
        if trouble:
            self.troubles.append(f"{outcome}: {trouble}")


async def ask(
    client: httpx.AsyncClient, request: Request, *, after: int = 0, reached: asyncio.Event | None = None
) -> str:
    """Return a streamed answer's text; set `reached` after so many pieces of it.

    Raises RuntimeError with the service's own words if it fails.
    """
    text, pieces, done = "", 0, False
    async with client.stream("POST", "/v1/completions", json=request.body()) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"HTTP {reply.status_code}: {(await reply.aread())[:300]!r}")
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(f"after {text!r}: {event['error']}")
                text += event["choices"][0]["text"]
                pieces += 1
                if reached is not None and pieces == after:
                    reached.set()
    if not done:
        raise RuntimeError(f"the stream broke off after {text!r}")
    return text


async def judge(client: httpx.AsyncClient, request: Request, expected: str, outcomes: Outcomes) -> None:
    """Ask once and note whether the answer is the right text, another one, an error, or none."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            text = await ask(client, request)
    except TimeoutError:
        outcomes.note("hung", request.prompt[-40:])
    except (RuntimeError, httpx.HTTPError) as error:
        outcomes.note("error", f"{type(error).__name__} {error}")
    else:
        outcomes.note("right") if text == expected else outcomes.note("wrong", f"{text!r} instead of {expected!r}")
    outcomes.seconds.append(time.monotonic() - started)
