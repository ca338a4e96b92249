"""Decode: tokens a second and inter-token latency of a running batch, beside transformers and vLLM."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.client import Client
from benchmarks.engines import load_prefill, model_dtype, run_prompt
from benchmarks.measure import in_turns, random_tokens
from benchmarks.peer import PeerError, VllmPeer
from benchmarks.prefill import VLLM_DTYPES
from benchmarks.processes import Processes
from benchmarks.record import Parameters, Record, Row, head
from benchmarks.reference import ReferenceDecode, ReferencePrefill, load_reference
from benchmarks.step_profile import step_parts
from common.model.decoder import DecoderModel
from common.model.source import resolve
from common.skeleton.selection import Selection
from services.decode import engine as decode_engine
from services.decode.answer import Answer
from services.decode.engine import DecodeEngine
from services.decode.pool import KVPool, SequenceKV
from services.decode.sampling import Sampling
from services.prefill.engine import PrefillEngine

_STEPS = 32
_FEWER_STEPS = 8
"""For those who read the whole cache, from `_LARGE_BATCH` on."""
_LARGE_BATCH = 4
_WARM_UP_STEPS = 4
_ROOM_TOKENS = 512
_SERVICE_TOKENS = 64

Steps = Callable[[], list[float]]
"""Runs some steps of a batch; returns the seconds of each."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured: prompts of a length in tokens, so many at once, and how often."""

    length: int
    batches: Sequence[int]
    repeats: int


def measure(model: str, load: Load, peer_python: Path | None, log_folder: Path) -> Record:
    """Measure a model's decode, and the service's as a client sees it."""
    prefill = load_prefill(model)
    spec = prefill.model.spec
    length = min(load.length, spec.max_tokens - _ROOM_TOKENS)
    load = Load(length, load.batches, load.repeats)
    token_ids = random_tokens(length, spec.vocab_size)
    rows: list[Row] = []
    with ExitStack() as stack:
        peers: dict[str, VllmPeer] = {}
        for dtype in VLLM_DTYPES if peer_python is not None else ():
            assert peer_python is not None
            try:
                peers[f"vllm-{dtype}"] = stack.enter_context(
                    VllmPeer(
                        peer_python,
                        resolve(model, weights=True),
                        dtype=dtype,
                        threads=torch.get_num_threads(),
                        max_tokens=spec.max_tokens,
                        max_batch=max(load.batches),
                        log=log_folder / f"vllm-{dtype}.log",
                    )
                )
            except PeerError as error:
                rows.append(Row("itl", {"method": f"vllm-{dtype}"}, [], "s", str(error)))
        rows += _batches(prefill, model, load, token_ids, peers)
        about: dict[str, object] = {name: peer.about for name, peer in peers.items()}
    threads = torch.get_num_threads()
    del prefill
    rows.append(_through_the_service(model, token_ids, load.repeats, log_folder))
    return Record("decode", head(model=model, threads=threads, **about), rows)


def _batches(
    prefill: PrefillEngine, model: str, load: Load, token_ids: list[int], peers: Mapping[str, VllmPeer]
) -> Iterator[Row]:
    ours = {
        method: OurDecode(prefill, token_ids, Selection(method=method), max(load.batches))
        for method in ("structkv", "full")
    }
    reference = load_reference(model, model_dtype(prefill.model))
    vocab_size = prefill.model.spec.vocab_size
    ours["structkv"].start(1)
    for part, seconds in step_parts(ours["structkv"].step, _STEPS).items():
        yield Row("step", {"method": "structkv", "batch": 1, "length": load.length, "part": part}, [seconds], "s")
    in_vllm = 0
    for batch in load.batches:
        methods: dict[str, Steps] = {}
        for name, engine in ours.items():
            engine.start(batch)
            methods[name] = partial(_timed, engine.step, _steps(name, batch))
        logits, cache = ReferencePrefill(reference).run(token_ids)
        copies = ReferenceDecode(reference, cache, logits, batch)
        methods["transformers"] = partial(_timed, copies.step, _steps("transformers", batch))
        for name, peer in list(peers.items()):
            try:
                # What ran in the smaller batch runs on: its prompts need not be computed again.
                prompts = [random_tokens(load.length, vocab_size, seed) for seed in range(in_vllm, batch)]
                peer.grow(prompts)
                peer.steps(_WARM_UP_STEPS)
            except PeerError as error:
                yield Row("itl", {"method": name, "batch": batch}, [], "s", str(error))
                del peers[name]  # type: ignore[attr-defined]
            else:
                methods[name] = partial(peer.steps, _steps(name, batch))
        in_vllm = batch
        for name in (*ours, "transformers"):
            methods[name]()  # warms up
        for name, repeats in in_turns(methods, load.repeats).items():
            parameters: Parameters = {"method": name, "batch": batch, "length": load.length}
            yield Row("itl", parameters, [seconds for steps in repeats for seconds in steps], "s")
            rates = [batch * len(steps) / sum(steps) for steps in repeats]
            yield Row("throughput", parameters, rates, "tokens/s")
        del methods, copies, cache


def _steps(method: str, batch: int) -> int:
    return _STEPS if method == "structkv" or batch < _LARGE_BATCH else _FEWER_STEPS


def _timed(step: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds


class OurDecode:
    """Our decode engine with a batch of one prompt's skeletons, each in memory of its own."""

    def __init__(self, prefill: PrefillEngine, token_ids: list[int], selection: Selection, max_batch: int) -> None:
        """Run the prompt once, and take memory for so many copies."""
        self._layers, self._hidden = run_prompt(prefill, token_ids, selection)
        self._next_position = selection.next_position(len(token_ids))
        self._slots = [keys.shape[0] + _ROOM_TOKENS for keys, _ in self._layers]
        model: DecoderModel = prefill.model
        num_blocks = max_batch * KVPool.blocks_needed(self._slots)
        self._engine = DecodeEngine(model, KVPool(model.spec, num_blocks, model.device))
        self._batch: list[decode_engine.Sequence] = []

    def start(self, batch: int) -> None:
        """Begin anew with so many copies."""
        pool = self._engine.pool
        for sequence in self._batch:
            pool.free(sequence.kv)
        self._batch = [self._sequence(pool.allocate(self._slots)) for _ in range(batch)]

    def _sequence(self, kv: SequenceKV) -> decode_engine.Sequence:
        for table, (keys, values) in zip(kv.tables, self._layers, strict=True):
            self._engine.pool.write(table, keys, values, ())
        sampling = Sampling(
            temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, max_tokens=_ROOM_TOKENS, stop_token_ids=frozenset()
        )
        hidden: Tensor = self._hidden.clone()
        return decode_engine.Sequence(self._next_position, kv, Answer(sampling), hidden)

    def step(self) -> None:
        """Give every sequence its next token."""
        for sequence in self._batch:
            self._engine.append_slots(sequence)
        self._engine.step(self._batch)


def _through_the_service(model: str, token_ids: list[int], repeats: int, log_folder: Path) -> Row:
    """Return the time between tokens as the client of one streamed request sees it: of each answer, the mean."""
    with Processes(model, log_folder) as processes:
        url, _ = processes.gateway(processes.worker("decode"), processes.worker("prefill"))
        with Client(url) as client:
            client.complete(token_ids[:200], _SERVICE_TOKENS)  # warms up
            answers: list[Any] = [client.complete(token_ids, _SERVICE_TOKENS) for _ in range(repeats)]
    means = [(answer.arrivals[-1] - answer.ttft) / (answer.tokens - 1) for answer in answers]
    return Row("client_itl", {"method": "structkv", "batch": 1, "length": len(token_ids)}, means, "s")
