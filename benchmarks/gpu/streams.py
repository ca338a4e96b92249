"""Both services on one GPU, and many streams at once through HTTP, as users' clients see them."""

import asyncio
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import torch
from tokenizers import Tokenizer, models

from benchmarks.gpu.scale import Scale
from benchmarks.measure import random_tokens
from benchmarks.processes import Processes, ServiceError
from benchmarks.random_models import LLAMA_1B, random_llama
from benchmarks.record import Parameters, Row

_VOCAB_SIZE = 32768
_POOL_GIB = {"cpu": 0.25, "cuda": 16.0}
_TIMEOUT_SECONDS = 120.0


def streams(scale: Scale) -> Iterator[Row]:
    """Yield time to first token, time between tokens and tokens a second of one stream, then of many at once."""
    with TemporaryDirectory() as folder:
        _write_model(Path(folder), scale)
        with Processes(folder, Path(folder) / "logs") as processes:
            prefill = processes.worker("prefill", "--device", scale.device)
            # The two share the device's memory, so decode is told its part.
            memory = str(_POOL_GIB[scale.device.partition(":")[0]])
            decode = processes.worker("decode", "--device", scale.device, "--kv-memory-gib", memory)
            url, _ = processes.gateway(decode, prefill)
            for count in (1, scale.streams):
                asyncio.run(_ask(url, count, scale, seed=1))  # warms up
                yield from _rows(*asyncio.run(_ask(url, count, scale, seed=2)))


def _write_model(folder: Path, scale: Scale) -> None:
    """Write a random model of one billion weights, and a tokenizer in which every token is a word."""
    shape = {**LLAMA_1B, "vocab_size": _VOCAB_SIZE, **scale.llama_1b}
    model = random_llama(scale.device, scale.dtype, **shape)
    model.save_pretrained(folder)
    words = {f"w{token}": token for token in range(model.config.vocab_size)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))  # noqa: S106  no password
    del model
    if scale.device != "cpu":
        torch.cuda.empty_cache()


Arrivals = list[tuple[float, int]]
"""Of an answer's events: when, in seconds after it was asked for, and how many tokens each brought."""


async def _ask(url: str, count: int, scale: Scale, seed: int) -> tuple[list[Arrivals], float]:
    """Stream so many answers at once; return each one's arrivals, and the seconds of them all."""
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        vocab_size = int(str(scale.llama_1b.get("vocab_size", _VOCAB_SIZE)))
        prompts = [random_tokens(scale.stream_prompt, vocab_size, seed * count + number) for number in range(count)]
        started = time.perf_counter()
        answers = await asyncio.gather(*(_stream(client, model, prompt, scale.stream_tokens) for prompt in prompts))
        return answers, time.perf_counter() - started


async def _stream(client: httpx.AsyncClient, model: str, prompt: list[int], tokens: int) -> Arrivals:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    arrivals: Arrivals = []
    started = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        if reply.is_error:
            raise ServiceError(f"the service answers {reply.status_code}: {(await reply.aread())[:1000]!r}")
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ServiceError(str(event["error"]))
                if words := sum(choice["text"].count("w") for choice in event["choices"]):
                    arrivals.append((time.perf_counter() - started, words))
    return arrivals


def _rows(answers: list[Arrivals], seconds: float) -> Iterator[Row]:
    where: Parameters = {"streams": len(answers)}
    gaps = sorted(later - earlier for arrivals in answers for (earlier, _), (later, _) in pairwise(arrivals))
    yield Row("client_ttft", where, [arrivals[0][0] for arrivals in answers], "s")
    yield Row("client_itl", {**where, "share": "median"}, [median(gaps)], "s")
    yield Row("client_itl", {**where, "share": "p99"}, [gaps[int(0.99 * (len(gaps) - 1))]], "s")
    yield Row(
        "client_throughput",
        where,
        [sum(tokens for arrivals in answers for _, tokens in arrivals) / seconds],
        "tokens/s",
    )
    # While all decode: from the last one's first token to the first one's last.
    begun, ended = max(arrivals[0][0] for arrivals in answers), min(arrivals[-1][0] for arrivals in answers)
    tokens = sum(tokens for arrivals in answers for arrival, tokens in arrivals if begun < arrival <= ended)
    if ended > begun:
        yield Row("client_decode", where, [tokens / (ended - begun)], "tokens/s")
