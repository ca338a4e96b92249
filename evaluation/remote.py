"""Asks a running service through its OpenAI endpoint."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import httpx

from common.errors import UnavailableError
from evaluation.backend import Answer, Variant
from evaluation.prompt import PromptFormat
from evaluation.sample import Sample

_TIMEOUT_SECONDS = 3600.0
_TRIES = 8
_BUSY = (429, 503)

logger = logging.getLogger(__name__)

Job = tuple[Sample, Variant]


class RemoteBackend:
    """A service at an address. Prompts cross as token ids: text would get its special tokens twice."""

    def __init__(self, *, url: str, concurrency: int, prompts: PromptFormat, api_key: str = "") -> None:
        """Ask what model is served there; raises UnavailableError if nobody answers."""
        self._client = httpx.Client(
            base_url=url.rstrip("/").removesuffix("/v1"),
            timeout=_TIMEOUT_SECONDS,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        )
        self._concurrency = concurrency
        self._prompts = prompts
        served = self._request("GET", "/v1/models")
        if served.is_error:
            raise UnavailableError(f"the service answers {served.status_code}: {served.text[:1000]}")
        self._model: str = served.json()["data"][0]["id"]

    @property
    def description(self) -> Mapping[str, object]:
        """Say that a service answers, and with which model; what it runs on, it does not tell."""
        return {"service": str(self._client.base_url), "model": self._model}

    def run(self, jobs: Iterable[tuple[Sample, list[Variant]]]) -> Iterator[tuple[Sample, Variant, Answer]]:
        """Yield the answers as they come. An error of the service ends the run with its message."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            waiting: dict[Future[Answer], Job] = {}
            for job in ((sample, variant) for sample, variants in jobs for variant in variants):
                if len(waiting) == self._concurrency:
                    yield from self._finished(waiting)
                waiting[pool.submit(self._ask, *job)] = job
            while waiting:
                yield from self._finished(waiting)

    @staticmethod
    def _finished(waiting: dict[Future[Answer], Job]) -> Iterator[tuple[Sample, Variant, Answer]]:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        if any(future.exception() for future in done):
            # It ends the run, but closing the pool waits for the others anyway: they go first, and are stored.
            done, _ = wait(waiting)
        for future in sorted(done, key=lambda future: future.exception() is not None):
            sample, variant = waiting.pop(future)
            yield sample, variant, future.result()

    def _ask(self, sample: Sample, variant: Variant) -> Answer:
        token_ids = self._prompts.token_ids(sample)
        body = {
            "model": self._model,
            "prompt": token_ids,
            "temperature": 0,
            "max_tokens": sample.max_new_tokens,
            "structkv": {**self._prompts.options(sample, variant), "return_stats": True},
        }
        answer, seconds = self._post(body)
        stats = answer.get("structkv")
        if stats is None:
            raise UnavailableError(f"{self._client.base_url} does not say what it kept; is it a structkv gateway?")
        kept = stats["kept_tokens_per_layer"]
        return Answer(
            text=answer["choices"][0]["text"],
            prompt_tokens=len(token_ids),
            kept_tokens=sum(kept) / len(kept),
            skeleton_bytes=stats["skeleton_bytes"],
            prefill_seconds=stats["prefill_seconds"],
            decode_seconds=seconds - stats["ttft_seconds"],
            pivot_layer=stats["pivot_layer"],
        )

    def _post(self, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Return the answer and its seconds, earlier tries not counted; a busy service is asked again."""
        for attempt in range(1, _TRIES + 1):
            started = time.monotonic()
            reply = self._request("POST", "/v1/completions", json=body)
            seconds = time.monotonic() - started
            if reply.status_code not in _BUSY or attempt == _TRIES:
                break
            pause = _retry_seconds(reply, attempt)
            logger.warning("the service is busy", extra={"status": reply.status_code, "retry_in_seconds": pause})
            time.sleep(pause)
        if reply.is_error:
            raise UnavailableError(f"the service answers {reply.status_code}: {reply.text[:1000]}")
        return reply.json(), seconds

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **content)
        except httpx.HTTPError as error:
            raise UnavailableError(f"no answer from {self._client.base_url}: {error}") from error


def _retry_seconds(reply: httpx.Response, attempt: int) -> float:
    """Return how long to wait: what Retry-After says in seconds, else twice as long every time."""
    named = reply.headers.get("retry-after", "")
    return float(named) if named.isdecimal() else 2.0 ** (attempt - 1)
