"""The decode step for GPUs: every layer for all sequences at once, recorded as a CUDA graph and replayed.

A small model's step is hundreds of short kernels, which take longer to launch one by one than to run.
"""

import logging
import time
from typing import Any

import torch
from torch import Tensor

from common.model.decoder import DecoderModel, Rotary
from services.decode.paged_attention import num_splits, paged_attention, store_newest
from services.decode.pool import KVPool, SequenceKV
from services.decode.step_plan import StepPlan

_MIN_BLOCKS = 16
_WARM_UPS = 2

logger = logging.getLogger(__name__)


class PagedAttention:
    """One step's attention over the sequences of a plan, whatever the plan holds when it runs."""

    def __init__(self, pool: KVPool, plan: StepPlan, splits: int) -> None:
        self._pool = pool
        self._plan = plan
        self._splits = splits

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store key and value [B, G, 1, d] in their slots and attend with query [B, H, 1, d]."""
        keys, values = self._pool.keys, self._pool.values
        tables, length = self._plan.tables(layer), self._plan.length(layer)
        store_newest(keys, values, key[:, :, 0], value[:, :, 0], tables, length)
        first = self._plan.first(layer)
        return paged_attention(query[:, :, 0], keys, values, tables, first, length, scaling, self._splits)[:, :, None]


class GraphedForward:
    """Runs one new token of each sequence through all layers.

    Batches are padded to a power of two, and so are the longest block tables; each pair of sizes has static tensors
    and on CUDA a graph, captured when it is first needed. Elsewhere, and where a layer may have to ask the device
    how to go on (experts), the same computation runs over the same tensors without a graph.
    """

    def __init__(self, model: DecoderModel, pool: KVPool, *, captures: bool = True) -> None:
        """Take the model and its KV memory; without `captures` no graph is made anywhere."""
        self._model = model
        self._pool = pool
        self._captures = captures and model.device.type == "cuda" and not model.has_experts
        self._steps: dict[tuple[int, int], _Step] = {}
        # Graphs never run at the same time and keep nothing in it for later: all share one piece of memory.
        self._memory = torch.cuda.graph_pool_handle() if self._captures else None

    @torch.inference_mode()
    def __call__(self, token_ids: list[int], positions: list[int], batch: list[SequenceKV]) -> Tensor:
        """Run each sequence's newest token, which has its slots; return hidden states [B, D], valid until the next."""
        if self._model.device.type != "cuda":
            return self._run(token_ids, positions, batch)
        with torch.cuda.device(self._model.device):  # Triton launches on the current one
            return self._run(token_ids, positions, batch)

    def _run(self, token_ids: list[int], positions: list[int], batch: list[SequenceKV]) -> Tensor:
        rows = _power_of_two(len(batch))
        blocks = _power_of_two(max(_MIN_BLOCKS, *(len(table.blocks) for kv in batch for table in kv.tables)))
        step = self._steps.get((rows, blocks))
        if step is None:
            step = self._steps[rows, blocks] = _Step(self._model, self._pool, rows, blocks)
        step.fill(token_ids, positions, batch)
        if not self._captures:
            step.compute()
        else:
            if step.graph is None:
                step.capture(self._memory)
            step.replay()
        return step.hidden[: len(batch)]


class _Step:
    """The static tensors of one size of step, and its graph."""

    def __init__(self, model: DecoderModel, pool: KVPool, rows: int, blocks: int) -> None:
        spec, device = model.spec, model.device
        self._model = model
        self._plan = StepPlan(rows, blocks, spec.num_layers, device)
        splits = num_splits(blocks, rows, spec.num_kv_heads, _multiprocessors(device))
        self._attention = PagedAttention(pool, self._plan, splits)
        self._rotary: Rotary | None = None
        self.hidden = torch.zeros((rows, spec.hidden_size), dtype=spec.dtype, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def fill(self, token_ids: list[int], positions: list[int], batch: list[SequenceKV]) -> None:
        """Take up a step's inputs."""
        self._plan.fill(token_ids, positions, batch)
        if self._model.rotary_depends_on_length:
            rotary = self._model.rotary(self._plan.positions)
            if self._rotary is None:
                self._rotary = {kind: (cos.clone(), sin.clone()) for kind, (cos, sin) in rotary.items()}
            for kind, (cos, sin) in rotary.items():
                self._rotary[kind][0].copy_(cos)
                self._rotary[kind][1].copy_(sin)

    def compute(self) -> None:
        """Run all layers, from the plan's tokens to `hidden`. Running it again changes nothing."""
        model, positions = self._model, self._plan.positions
        hidden = model.embed(self._plan.token_ids)
        rotary = model.rotary(positions) if self._rotary is None else self._rotary
        for layer in range(model.spec.num_layers):
            hidden = model.layer(layer, hidden, rotary, positions, self._attention)
        self.hidden.copy_(hidden[:, 0])

    def capture(self, memory: Any) -> None:
        """Record `compute` as a graph, after runs in which libraries set themselves up and kernels are compiled."""
        started = time.monotonic()
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self.compute()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Skeletons arrive on the event loop's thread meanwhile: only this thread's calls must keep to the rules.
        with torch.cuda.graph(graph, pool=memory, stream=side, capture_error_mode="thread_local"):
            self.compute()
        self.graph = graph
        rows, seconds = self.hidden.shape[0], round(time.monotonic() - started, 3)
        logger.info("decode step captured", extra={"rows": rows, "seconds": seconds})

    def replay(self) -> None:
        """Run the graph over what the plan holds now."""
        assert self.graph is not None
        self.graph.replay()


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below."""
    return 1 << (number - 1).bit_length()
