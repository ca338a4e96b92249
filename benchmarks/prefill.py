"""Prefill: seconds to the first token of ours, transformers' and vLLM's; the share that selecting takes; memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.engines import Prefilled, TimedPrefill, load_prefill, model_dtype
from benchmarks.flops import LayerShape, largest_speedup
from benchmarks.measure import in_turns, random_tokens
from benchmarks.peak import peak_row
from benchmarks.peer import PeerError, VllmPeer
from benchmarks.random_models import random_llama
from benchmarks.record import Parameters, Record, Row, head
from benchmarks.reference import ReferencePrefill, load_reference
from common.model.decoder import DecoderModel
from common.model.source import resolve
from common.skeleton.selection import Selection
from services.prefill.engine import PrefillEngine
from services.prefill.structkv.calibration import stored_pivot

VLLM_DTYPES = ("float32", "auto")
"""Ours, and the one that vLLM takes by itself."""
_WARM_UP_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is measured: prompt lengths in tokens, repeats, and where."""

    lengths: Sequence[int]
    repeats: int
    device: str = "cpu"
    pivot_layer: int = 0


Timed = Callable[[list[int]], Prefilled | float]


def measure(model: str, prompts: Prompts, peer_python: Path | None, log_folder: Path) -> Record:
    """Measure a model."""
    engine = load_prefill(model, prompts.device)
    reference = load_reference(model, model_dtype(engine.model), prompts.device)
    rows: list[Row] = []
    about: dict[str, object] = {"calibrated_pivot": stored_pivot(engine.model.spec.fingerprint)}
    with ExitStack() as stack:
        peers: dict[str, Timed] = {}
        for dtype in VLLM_DTYPES if peer_python is not None else ():
            assert peer_python is not None
            try:
                peer = stack.enter_context(
                    VllmPeer(
                        peer_python,
                        resolve(model, weights=True),
                        dtype=dtype,
                        threads=torch.get_num_threads(),
                        max_tokens=engine.model.spec.max_tokens,
                        log=log_folder / f"vllm-{dtype}.log",
                    )
                )
            except PeerError as error:
                rows.append(Row("ttft", {"method": f"vllm-{dtype}"}, [], "s", str(error)))
            else:
                peers[f"vllm-{dtype}"] = peer.prefill
                about[f"vllm-{dtype}"] = peer.about
        rows += timings(engine, reference, prompts, peers)
    del engine, reference  # the children have the memory to themselves
    for length in prompts.lengths:
        rows += [peak_row(model, method, length, prompts.device) for method in ("full", "structkv", "transformers")]
    return Record("prefill", head(model=model, threads=torch.get_num_threads(), **about), rows)


def measure_random_llama(prompts: Prompts, **overrides: object) -> Record:
    """Measure ours and transformers on random weights, which both share. The pivot is whatever such weights give."""
    dtype = torch.float32 if prompts.device == "cpu" else torch.bfloat16
    shared = random_llama(prompts.device, dtype, **overrides)
    engine = PrefillEngine(DecoderModel(shared, "random-llama"))
    rows = timings(engine, shared, prompts, {}, memory=prompts.device != "cpu")
    return Record("prefill-random-llama", head(model="random weights in Llama-3.1-8B's shape"), rows)


def timings(
    engine: PrefillEngine,
    reference: PreTrainedModel,
    prompts: Prompts,
    peers: dict[str, Timed],
    *,
    memory: bool = False,
) -> list[Row]:
    """Time everybody in turns at each length; a method that runs out of memory has an error instead."""
    selection = Selection(pivot_layer=prompts.pivot_layer)
    methods: dict[str, Timed] = {
        "full": TimedPrefill(engine, Selection(method="full")),
        "structkv": TimedPrefill(engine, selection),
        "transformers": ReferencePrefill(reference),
        **peers,
    }
    spec, shape = engine.model.spec, LayerShape.of(reference)
    rows: list[Row] = []
    for length in dict.fromkeys(min(length, spec.max_tokens) for length in prompts.lengths):
        token_ids = random_tokens(length, spec.vocab_size)
        alive: dict[str, Callable[[], Prefilled | float]] = {}
        for name, method in methods.items():
            try:
                method(token_ids[:_WARM_UP_TOKENS])
                if memory:
                    rows.append(_gpu_peak(name, method, token_ids))
            except (torch.OutOfMemoryError, PeerError) as error:
                rows.append(Row("ttft", {"method": name, "length": length}, [], "s", str(error).partition("\n")[0]))
                torch.cuda.empty_cache()
            else:
                alive[name] = lambda method=method: method(token_ids)  # type: ignore[misc]  # noqa: B023
        results = in_turns(alive, prompts.repeats)
        for name, samples in results.items():
            seconds = [sample.seconds if isinstance(sample, Prefilled) else sample for sample in samples]
            rows.append(Row("ttft", {"method": name, "length": length}, seconds, "s"))
        cut = [sample for sample in results.get("structkv", ()) if isinstance(sample, Prefilled)]
        if cut:
            rows += _of_structkv(cut, length, shape, spec.num_layers, selection)
    return rows


def _of_structkv(
    runs: Sequence[Prefilled], length: int, shape: LayerShape, num_layers: int, selection: Selection
) -> Iterator[Row]:
    pivot = runs[0].pivot_layer
    parameters: Parameters = {"length": length, "pivot_layer": pivot}
    shares = [run.selecting_seconds / run.seconds for run in runs]
    yield Row("selecting_share", parameters, shares, "of structkv's prefill")
    bound = largest_speedup(
        shape,
        num_layers=num_layers,
        tokens=length,
        pivot_layer=pivot,
        struct_tokens=selection.struct_budget(length),
    )
    yield Row("flop_bound", parameters, [bound], "times as fast as full")


def _gpu_peak(name: str, method: Timed, token_ids: list[int]) -> Row:
    """Run once more for the memory: what the allocator holds at most beyond the weights."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    method(token_ids)
    peak = torch.cuda.max_memory_allocated() - before
    return Row("peak_memory", {"method": name, "length": len(token_ids)}, [peak], "bytes")
