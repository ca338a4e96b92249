"""Whether what the device computes is right: against transformers in float32, and our ways against one another.

An error is a distance over the length of the true vector: ||x - true|| / ||true||. In bfloat16 every way has some, so
what transformers' own bfloat16 has is the measure.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, PreTrainedModel

from benchmarks.engines import run_prompt, synchronise
from benchmarks.gpu.rows import check
from benchmarks.gpu.scale import Scale
from benchmarks.measure import random_tokens
from benchmarks.random_models import random_gemma, random_llama
from benchmarks.record import Parameter, Row
from common.model.attention import IMPLEMENTATION
from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from services.decode.engine import DecodeEngine
from services.decode.graphs import GraphedForward
from services.decode.pool import KVPool, SequenceKV
from services.prefill.engine import PrefillEngine

_TIMES_THE_REFERENCE = 1.3
"""Our error may be so many times that of transformers in the same dtype."""
_FLOOR = 1e-5
"""Nor need it be less than this: float32 against float32."""
_LENGTHS = (1.0, 0.4, 0.17, 0.03, 0.002)
"""Of the sequences of a decode batch, as shares of the prompt: ragged, and one row short of a captured size."""
_KERNELS = 10

Layers = list[tuple[Tensor, Tensor]]


def truth(scale: Scale) -> Iterator[Row]:
    """Yield checks of prefill and of the decode step, and the names of the kernels that ran."""
    shapes: dict[str, tuple[Callable[..., PreTrainedModel], dict[str, object]]] = {
        "llama": (random_llama, {**scale.llama, "num_hidden_layers": scale.truth_layers}),
        "gemma": (random_gemma, {**scale.gemma, "num_hidden_layers": scale.truth_layers, **_GEMMA_LAYERS}),
    }
    for shape, (make, overrides) in shapes.items():
        own = make(scale.device, scale.dtype, **overrides)
        yield from _of_shape(shape, own, scale)
        del own
        _release(scale)


_GEMMA_LAYERS = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "vocab_size": 32768,
}


def _of_shape(shape: str, own: PreTrainedModel, scale: Scale) -> Iterator[Row]:
    vocab_size = own.config.vocab_size
    token_ids, next_tokens = random_tokens(scale.truth_tokens, vocab_size), random_tokens(len(_LENGTHS), vocab_size, 1)
    reference = _transformers(own, token_ids)
    model = DecoderModel(own, f"random-{shape}")

    def prefill() -> tuple[Layers, Tensor]:
        engine = PrefillEngine(model, chunk_tokens=-(-scale.truth_tokens // 3))  # chunks meet the past of those before
        return run_prompt(engine, token_ids, Selection(method="full"))

    layers, hidden = prefill()
    logits = model.logits(hidden[None])
    yield from _kernels(prefill, scale, shape=shape, of="prefill")
    ways = _ways(model, layers, next_tokens, scale)
    yield from _kernels(ways["eager"], scale, shape=shape, of="decode")
    decoded = {name: step().float() for name, step in ways.items()}
    again = ways["paged"]().float()
    yield check(f"{shape}: a replayed graph against its layers", error(decoded["paged"], decoded["eager"]), _FLOOR)
    yield check(f"{shape}: a graph replayed twice", error(again, decoded["paged"]), 0.0)

    own.float()  # from here on the model is the truth
    true = _transformers(own, token_ids)
    for what, (its, theirs, trues) in _pairs((logits, layers), reference, true).items():
        limit = max(_FLOOR, _TIMES_THE_REFERENCE * error(theirs, trues))
        yield check(f"{shape}: prefill's {what} against transformers'", error(its, trues), limit)
    exact = [(keys.float(), values.float()) for keys, values in layers]
    true_rows = _ways(DecoderModel(own, f"random-{shape}"), exact, next_tokens, scale)["sdpa"]()
    for row, share in enumerate(_LENGTHS):
        limit = max(_FLOOR, _TIMES_THE_REFERENCE * error(decoded["sdpa"][row], true_rows[row]))
        what = f"{shape}: paged step at {_tokens(share, scale)} tokens against SDPA's"
        yield check(what, error(decoded["paged"][row], true_rows[row]), limit)


def _pairs(
    ours: tuple[Tensor, Layers], reference: tuple[Tensor, Layers], true: tuple[Tensor, Layers]
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return what is compared, by name: ours, transformers' in the same dtype, and in float32."""
    pairs = {"logits": (ours[0], reference[0], true[0])}
    for layer, (its, theirs, trues) in enumerate(zip(ours[1], reference[1], true[1], strict=True)):
        live = slice(-its[0].shape[0], None)  # a window's
        for kind, index in (("keys", 0), ("values", 1)):
            pairs[f"{kind} of layer {layer}"] = its[index], theirs[index][live], trues[index][live]
    return pairs


def error(ours: Tensor, true: Tensor) -> float:
    """Return ||ours - true|| / ||true||."""
    ours, true = ours.double(), true.double()
    return float((ours - true).norm() / true.norm())


@torch.inference_mode()
def _transformers(own: PreTrainedModel, token_ids: list[int]) -> tuple[Tensor, Layers]:
    """Return transformers' own last logits, [1, V], and keys and values, [N, G, d], by its SDPA attention."""
    model: Any = own
    driven = model.config._attn_implementation == IMPLEMENTATION
    model.set_attn_implementation("sdpa")
    # Without the configuration a cache keeps all of a window's tokens.
    output = model(
        input_ids=torch.tensor([token_ids], device=model.device),
        past_key_values=DynamicCache(),
        use_cache=True,
        logits_to_keep=1,
    )
    if driven:
        model.set_attn_implementation(IMPLEMENTATION)
    cached = output.past_key_values.layers
    layers = [(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in cached]
    return output.logits[0].float(), layers


def _ways(model: DecoderModel, layers: Layers, next_tokens: list[int], scale: Scale) -> dict[str, Callable[[], Tensor]]:
    """Return the ways to run one token of each of some sequences, to hidden states [B, D]; each with a pool of its own.

    A sequence begins with the first tokens of the layers; where a window has kept less than that, with the last.
    """
    lengths = [_tokens(share, scale) for share in _LENGTHS]

    def start() -> tuple[KVPool, list[SequenceKV]]:
        """Return a pool with the sequences, each with room for the new token."""
        slots = [[min(length, keys.shape[0]) + 1 for keys, _ in layers] for length in lengths]
        num_blocks = sum(KVPool.blocks_needed(counts) for counts in slots)
        pool = KVPool(model.spec, num_blocks, model.device)
        sequences = []
        for length, counts in zip(lengths, slots, strict=True):
            kv = pool.allocate(counts)
            for table, (keys, values), count in zip(kv.tables, layers, counts, strict=True):
                tokens = count - 1
                positions = range(length - tokens, length) if table.window is not None else ()
                pool.write(table, keys[:tokens], values[:tokens], positions)
            sequences.append(kv)
        return pool, sequences

    def batched(*, captures: bool) -> Callable[[], Tensor]:
        pool, sequences = start()
        for length, kv in zip(lengths, sequences, strict=True):
            pool.append_slots(kv, length)
        forward = GraphedForward(model, pool, captures=captures)
        return lambda: forward(next_tokens, lengths, sequences).clone()

    def one_by_one() -> Tensor:
        pool, sequences = start()
        engine = DecodeEngine(model, pool, backend="sdpa")
        rows = zip(next_tokens, lengths, sequences, strict=True)
        return torch.cat([engine.run_tokens(kv, [token], length) for token, length, kv in rows])

    return {"paged": batched(captures=True), "eager": batched(captures=False), "sdpa": one_by_one}


def _tokens(share: float, scale: Scale) -> int:
    return max(1, int(share * scale.truth_tokens))


def _kernels(run: Callable[[], object], scale: Scale, **where: Parameter) -> Iterator[Row]:
    """Yield the seconds of the kernels that took longest; on a CPU, of torch's operations."""
    run()
    synchronise(torch.device(scale.device))
    on_gpu = scale.device != "cpu"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        run()
        synchronise(torch.device(scale.device))
    times = {
        entry.key: (entry.self_device_time_total if on_gpu else entry.self_cpu_time_total) * 1e-6
        for entry in profiled.key_averages()
    }
    for name in sorted(times, key=lambda name: -times[name])[:_KERNELS]:
        yield Row("kernel", {**where, "kernel": name[:100]}, [times[name]], "s")


def _release(scale: Scale) -> None:
    if scale.device != "cpu":
        torch.cuda.empty_cache()
