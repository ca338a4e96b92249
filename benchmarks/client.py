"""A client of the running service, as any user's: streams a completion and looks at the clock."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from benchmarks.processes import ServiceError

_TIMEOUT_SECONDS = 1800.0


@dataclass(slots=True)
class Streamed:
    """What a stream brought, and when, in seconds after it was asked for.

    Attributes:
        arrivals: of each piece of text.
        ended: of the last byte.
        tokens: completion tokens by the service's own count.
        stats: the `structkv` object.
    """

    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def ttft(self) -> float:
        """Seconds to the first token, or to the end if its text is empty."""
        return self.arrivals[0] if self.arrivals else self.ended


class Client:
    """One connection to a gateway; a context manager."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=_TIMEOUT_SECONDS)
        self._model = self._http.get("/v1/models").json()["data"][0]["id"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def complete(
        self, prompt: list[int] | str, max_tokens: int, structkv: Mapping[str, object] | None = None
    ) -> Streamed:
        """Stream a greedy completion of exactly so many tokens."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "structkv": {**(structkv or {}), "return_stats": True},
        }
        streamed = Streamed()
        started = time.perf_counter()
        with self._http.stream("POST", "/v1/completions", json=body) as reply:
            if reply.is_error:
                raise ServiceError(f"the service answers {reply.status_code}: {reply.read()[:1000]!r}")
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    self._take(json.loads(line.removeprefix("data: ")), time.perf_counter() - started, streamed)
        streamed.ended = time.perf_counter() - started
        return streamed

    @staticmethod
    def _take(chunk: dict[str, Any], seconds: float, streamed: Streamed) -> None:
        if "error" in chunk:
            raise ServiceError(str(chunk["error"]))
        if any(choice.get("text") for choice in chunk["choices"]):
            streamed.arrivals.append(seconds)
        if usage := chunk.get("usage"):
            streamed.tokens = usage["completion_tokens"]
        streamed.stats = chunk.get("structkv") or streamed.stats
