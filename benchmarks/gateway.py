"""The gateway's own cost: what it adds to a decode worker that answers at once."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import grpc
import psutil
from tokenizers import Tokenizer

from benchmarks import scripted_decode
from benchmarks.client import Client
from benchmarks.measure import in_turns
from benchmarks.processes import Processes
from benchmarks.record import Parameters, Record, Row, head
from common.model.source import resolve
from common.pb import decode_pb2, decode_pb2_grpc
from common.skeleton.selection import Selection

_REQUESTS = 100
_STREAM_TOKENS = 512
_PIECE = " The river turns here and the road follows it over the hill."


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: seconds to the first token, to the end, and CPU seconds that the gateway took."""

    first: float
    whole: float
    cpu: float = 0.0


def measure(model: str, lengths: Sequence[int], repeats: int, log_folder: Path) -> Record:
    """Measure with prompts of these lengths in tokens; they are sent as text."""
    tokenizer = Tokenizer.from_file(str(resolve(model, weights=False) / "tokenizer.json"))
    rows: list[Row] = []
    with Processes(model, log_folder) as processes, _Worker(tokenizer.encode(_PIECE).ids) as worker:
        url, pid = processes.gateway(worker.address, worker.address)
        gateway = psutil.Process(pid)
        with Client(url) as client:
            for length in lengths:
                prompt = _text(tokenizer, length)
                token_ids = tokenizer.encode(prompt).ids
                rows += _first_token(client, worker, prompt, token_ids)
                rows += _stream(client, worker, gateway, prompt, token_ids, repeats)
    return Record("gateway", head(model=model), rows)


class _Worker:
    """The scripted worker's process, and a channel to it; a context manager."""

    def __init__(self, token_ids: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=scripted_decode.serve, args=(token_ids, theirs), daemon=True)
        self._process.start()
        self.address = f"127.0.0.1:{ours.recv()}"
        self._channel = grpc.insecure_channel(self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.terminate()
        self._process.join()

    def ask(self, token_ids: list[int], max_tokens: int) -> Timed:
        """Ask it as the gateway would."""
        request = decode_pb2.GenerateRequest(
            request_id="direct",
            prompt_token_ids=token_ids,
            selection=Selection().to_pb(),
            sampling=decode_pb2.Sampling(top_p=1.0, max_tokens=max_tokens),
        )
        started = time.perf_counter()
        events = iter(decode_pb2_grpc.DecodeStub(self._channel).Generate(request))
        next(events)
        first = time.perf_counter() - started
        for _ in events:
            pass
        return Timed(first, time.perf_counter() - started)


def _first_token(client: Client, worker: _Worker, prompt: str, token_ids: list[int]) -> Iterator[Row]:
    measured: dict[str, Callable[[], Timed]] = {
        "direct": partial(worker.ask, token_ids, 1),
        "gateway": partial(_through, client, prompt, 1),
    }
    in_turns(measured, 5)  # warms up
    results = in_turns(measured, _REQUESTS)
    for way, answers in results.items():
        parameters: Parameters = {"way": way, "length": len(token_ids)}
        yield Row("first_token", parameters, [answer.first for answer in answers], "s")
    pairs = zip(results["gateway"], results["direct"], strict=True)
    added = [through.first - direct.first for through, direct in pairs]
    yield Row("added_to_first_token", {"length": len(token_ids)}, added, "s")


def _stream(
    client: Client, worker: _Worker, gateway: psutil.Process, prompt: str, token_ids: list[int], repeats: int
) -> Iterator[Row]:
    measured: dict[str, Callable[[], Timed]] = {
        "direct": partial(worker.ask, token_ids, _STREAM_TOKENS),
        "gateway": partial(_through, client, prompt, _STREAM_TOKENS, gateway),
    }
    results = in_turns(measured, 1 + repeats)
    for way, answers in results.items():
        parameters: Parameters = {"way": way, "length": len(token_ids), "tokens": _STREAM_TOKENS}
        seconds = [(answer.whole - answer.first) / (_STREAM_TOKENS - 1) for answer in answers[1:]]
        yield Row("streamed_token", parameters, seconds, "s")
    cpu = [1000 * answer.cpu / _STREAM_TOKENS for answer in results["gateway"][1:]]
    yield Row("cpu_per_1000_tokens", {"length": len(token_ids), "tokens": _STREAM_TOKENS}, cpu, "CPU s")


def _through(client: Client, prompt: str, max_tokens: int, gateway: psutil.Process | None = None) -> Timed:
    before = _cpu_seconds(gateway)
    streamed = client.complete(prompt, max_tokens)
    return Timed(streamed.ttft, streamed.ended, _cpu_seconds(gateway) - before)


def _cpu_seconds(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return times.user + times.system


def _text(tokenizer: Tokenizer, length: int) -> str:
    """Return a text of about so many tokens."""
    return _PIECE * max(1, round(length / len(tokenizer.encode(_PIECE).ids)))
