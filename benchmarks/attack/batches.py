"""Requests that are allowed each, and take all the room there is: answers, memory, priority, long prompts."""

import random
from collections.abc import Callable, Mapping

from benchmarks.attack.wire import Attack, Target, left, repeated

_MAX_RUNNING = 64
"""The decode worker's default."""

_MOST_URGENT = -(2**31)


def _answers(num_answers: int, num_connections: int, **fields: object) -> Callable[[Target], Attack]:
    def make(target: Target) -> Attack:
        request = target.completion(n=num_answers, max_tokens=200, ignore_eos=True, stream=True, **fields)
        return repeated(target, [request], num_connections)

    return make


def _biased(target: Target) -> Attack:
    bias = {str(token): 1 for token in range(1024)}
    fields: dict[str, object] = {"logit_bias": bias, "logprobs": 20, "stop": ["z" * 256 + str(i) for i in range(10)]}
    fields |= {"frequency_penalty": 0.1, "repetition_penalty": 1.1, "top_k": 50, "min_p": 0.01, "top_p": 0.9}
    return _answers(32, 1, **fields)(target)


def _long_prompts(target: Target) -> Attack:
    dice = random.Random(0)  # noqa: S311  no secret
    prompts = [[dice.randrange(100, target.vocab_size) for _ in range(8000)] for _ in range(16)]
    requests = [target.completion(prompt=prompt, max_tokens=1, structkv={"method": "full"}) for prompt in prompts]
    return repeated(target, requests, 4)


def _remembered(text_bytes: int, num_connections: int) -> Callable[[Target], Attack]:
    """Requests with much that is ignored, whose answers take long: is it held meanwhile?"""

    def make(target: Target) -> Attack:
        metadata = {f"key {number}": "a" * 100 for number in range(text_bytes // 115)}
        request = target.completion(metadata=metadata, max_tokens=1000, ignore_eos=True, stream=True)
        return repeated(target, [request], num_connections)

    return make


def _left(
    num_connections: int, seconds: float, *, resets: bool = False, **fields: object
) -> Callable[[Target], Attack]:
    """Requests that are sent and left after a time, over and over; who closes does not say whether it still reads."""

    def make(target: Target) -> Attack:
        request = target.completion(**{"n": 16, "max_tokens": 200, "ignore_eos": True, "stream": True, **fields})
        return left(target, request, num_connections, seconds, resets=resets)

    return make


def _left_before_the_body(target: Target) -> Attack:
    """Heads that ask whether to go on with a body, and do not."""
    head = target.head("/v1/completions", 1000).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    return left(target, head, 800, seconds=None)


BATCHES: Mapping[str, Callable[[Target], Attack]] = {
    "n-max-running": _answers(_MAX_RUNNING, 1),
    "n-64-from-eight": _answers(64, 8),
    "n-128-from-eight": _answers(128, 8),
    "prompts-64-from-eight": _answers(1, 8, prompt=["The river"] * 64),
    "dear-sampling": _biased,
    "long-prompts": _long_prompts,
    "most-urgent-from-twelve": _answers(4, 12, priority=_MOST_URGENT),
    "twelve-clients": _answers(4, 12),
    "most-urgent-long-prompts": lambda target: repeated(
        target, [target.completion(prompt=[17] * 8000, max_tokens=1, priority=_MOST_URGENT)], 12
    ),
    "metadata-12-mb-five": _remembered(12_000_000, 5),
    "metadata-12-mb-twenty": _remembered(12_000_000, 20),
    "asked-and-left": _left(8, 0.05, resets=True),
    "asked-and-left-at-once": _left(60, 0.001, prompt="x y z " * 300, n=8),
    "asked-little-and-left-at-once": _left(8, 0.001, n=1, max_tokens=1),
    "asked-and-left-soon": _left(60, 0.25, n=8, max_tokens=300),
    "left-before-the-body": _left_before_the_body,
    "n-16-from-a-hundred": _answers(16, 100),
    "logprobs-n16-from-a-hundred": _answers(16, 100, logprobs=20),
}
