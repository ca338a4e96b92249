"""The decode attention kernel by itself, at every number of shares that sequences may be cut into."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.gpu.scale import Scale
from benchmarks.record import Parameters, Row
from services.decode.pool import BLOCK_TOKENS

_NUM_HEADS, _NUM_KV_HEADS, _HEAD_DIM = 32, 8, 128
_SPLITS = (1, 2, 4, 8, 16, 32, 64)
_SIZES = ((1, 3328), (1, 13312), (16, 3328), (16, 13312), (64, 512), (64, 3328), (64, 13312), (256, 512))
"""Sequences, and the tokens that each keeps."""
_REPEATS = 20
_WARM_UPS = 3


def splits(scale: Scale) -> Iterator[Row]:
    """Yield the seconds of a layer's attention in Llama-3.1-8B's shape, and which number of shares would be chosen."""
    if scale.device == "cpu":
        return  # what is interpreted tells nothing of time
    from services.decode.paged_attention import num_splits, paged_attention  # noqa: PLC0415  Triton comes with CUDA

    multiprocessors = torch.cuda.get_device_properties(scale.device).multi_processor_count
    for batch, kept in _SIZES:
        blocks = -(-kept // BLOCK_TOKENS)
        query, pool, tables = _inputs(scale, batch, blocks)
        first = torch.zeros(batch, dtype=torch.int32, device=scale.device)
        length = torch.full_like(first, kept)
        chosen = num_splits(blocks, batch, _NUM_KV_HEADS, multiprocessors)
        for count in _SPLITS:

            def attend(count: int = count) -> None:
                paged_attention(query, pool[0], pool[1], tables, first, length, _HEAD_DIM**-0.5, count)  # noqa: B023

            where: Parameters = {"batch": batch, "kept": kept, "splits": count, "chosen": chosen}
            yield Row("attention", where, _seconds(attend), "s")


def _inputs(scale: Scale, batch: int, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [B, H, d], keys and values [2, slots, G, d], and block tables [B, blocks] in no order."""
    slots = batch * blocks * BLOCK_TOKENS
    pool = torch.randn(2, slots, _NUM_KV_HEADS, _HEAD_DIM, dtype=scale.dtype, device=scale.device)
    query = torch.randn(batch, _NUM_HEADS, _HEAD_DIM, dtype=scale.dtype, device=scale.device)
    return query, pool, torch.randperm(batch * blocks, device=scale.device).int().view(batch, blocks)


def _seconds(run: Callable[[], None]) -> list[float]:
    """Return what each of some runs takes on the device, replayed from a graph as a step's are."""
    for _ in range(_WARM_UPS):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_REPEATS + 1)]
    for event in events[:-1]:
        event.record()
        graph.replay()
    events[-1].record()
    torch.cuda.synchronize()
    return [1e-3 * start.elapsed_time(end) for start, end in pairwise(events)]
