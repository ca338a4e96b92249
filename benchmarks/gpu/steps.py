"""Decode steps over a filled pool: as many sequences and kept tokens as the memory holds."""

import time
from collections.abc import Iterator

from torch.profiler import ProfilerActivity, profile

from benchmarks.engines import synchronise
from benchmarks.gpu.scale import Scale
from benchmarks.measure import random_tokens
from benchmarks.random_models import random_llama
from benchmarks.record import Parameters, Row
from common.model.decoder import DecoderModel
from services.decode.answer import Answer
from services.decode.engine import DecodeEngine, Sequence, pool_blocks
from services.decode.pool import KVPool
from services.decode.sampling import Sampling

_STEPS = 12
_WARM_UP_STEPS = 4
_RETENTION = 10
"""A prompt has so many times as many tokens as are kept of it."""
_KERNELS = 12
_FREE_RAM_BYTES = 1 << 30
_SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
    "drawn, top-p": {"temperature": 1.0, "top_p": 0.9},
}
_NO_FILTER = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
_SPREAD = 0.05
"""Standard deviation of the pool's random numbers: small ones, so that attention stays broad."""


def steps(scale: Scale) -> Iterator[Row]:
    """Yield seconds of steps, host work and sampling included, and tokens a second."""
    model = DecoderModel(random_llama(scale.device, scale.dtype, **scale.llama), "random-llama")
    pool = KVPool(model.spec, pool_blocks(model, None, _FREE_RAM_BYTES), model.device)
    pool.keys.normal_(std=_SPREAD)
    pool.values.normal_(std=_SPREAD)
    engine = DecodeEngine(model, pool)
    for kept in scale.kept:
        for batch in scale.batches:
            where: Parameters = {"batch": batch, "kept": kept}
            slots = [kept + _STEPS * (len(_SAMPLINGS) + 2)] * model.spec.num_layers
            if batch * KVPool.blocks_needed(slots) > pool.allocator.num_blocks:
                yield Row("step", where, [], "s", "the pool is too small")
                continue
            yield from _batch(engine, where, slots, whole=kept == scale.kept[1])


def _batch(engine: DecodeEngine, where: Parameters, slots: list[int], *, whole: bool) -> Iterator[Row]:
    """Yield the steps of one batch; the `whole` of it also drawn, and by kernels."""
    batch, kept = int(str(where["batch"])), int(str(where["kept"]))
    pool = engine.pool
    sequences = []
    for token in random_tokens(batch, engine.model.spec.vocab_size):
        kv = pool.allocate(slots)
        for table in kv.tables:
            table.length = kept
        sequences.append(Sequence(kept * _RETENTION, kv, _answer("greedy"), last_token=token))
    _step(engine, sequences, _WARM_UP_STEPS)
    for name in _SAMPLINGS if whole else ("greedy",):
        for sequence in sequences:
            taken = sequence.answer.num_generated
            sequence.answer = _answer(name)
            sequence.answer.num_generated = taken
        _step(engine, sequences, 1)
        seconds = _step(engine, sequences, _STEPS - _WARM_UP_STEPS)
        yield Row("step", {**where, "sampling": name}, seconds, "s")
        yield Row("throughput", {**where, "sampling": name}, [batch * len(seconds) / sum(seconds)], "tokens/s")
    if whole and engine.model.device.type == "cuda":
        yield from _kernels(engine, sequences, where)
    for sequence in sequences:
        pool.free(sequence.kv)


def _answer(sampling: str) -> Answer:
    chosen = {**_NO_FILTER, **_SAMPLINGS[sampling]}
    return Answer(Sampling(seed=0, max_tokens=1 << 16, stop_token_ids=frozenset(), **chosen))  # type: ignore[arg-type]


def _step(engine: DecodeEngine, sequences: list[Sequence], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        for sequence in sequences:
            engine.append_slots(sequence)
        engine.step(sequences)
        seconds.append(time.perf_counter() - started)
    return seconds


def _kernels(engine: DecodeEngine, sequences: list[Sequence], where: Parameters) -> Iterator[Row]:
    """Yield what a step, the last of them drawn with top-p, has the device do, and for how long."""
    synchronise(engine.model.device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        _step(engine, sequences, 1)
    entries = profiled.key_averages()
    times = {entry.key: entry.self_device_time_total * 1e-6 for entry in entries}
    yield Row("device", where, [sum(times.values())], "s")
    yield Row("launches", where, [sum(entry.count for entry in entries)], "kernels and copies")
    for name in sorted(times, key=lambda name: -times[name])[:_KERNELS]:
        yield Row("kernel", {**where, "kernel": name[:100]}, [times[name]], "s")
