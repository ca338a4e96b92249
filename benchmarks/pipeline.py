"""Pipeline: from a layer's kept keys and values to the receiver of its messages, with layers that cost nothing.

What is measured is the prefill worker without its model: encoding, messages, the scheduler and the server, and a gRPC
stream over loopback to another process, which only counts what comes. The kept keys and values are bfloat16.
"""

import asyncio
import multiprocessing
import time
from collections import deque
from collections.abc import Generator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import grpc
import torch

from benchmarks.measure import in_turns
from benchmarks.random_models import random_llama
from benchmarks.record import Record, Row, head
from common import freed_memory
from common.model.compute import compute_thread
from common.model.decoder import DecoderModel
from common.pb import prefill_pb2, prefill_pb2_grpc
from common.skeleton import wire
from common.skeleton.selection import CODECS, Selection
from common.skeleton.spec import SkeletonSpec
from services.prefill.engine import PrefillEngine
from services.prefill.outputs import KeptLayer, Output, PromptEnd
from services.prefill.scheduler import PrefillScheduler
from services.prefill.server import PrefillServer

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "vocab_size": 512,
    "num_attention_heads": 8,
    "head_dim": 128,
}
"""What the K/V's shape does not depend on is small: 32 layers with 8 KV heads of 128 remain, Llama-3.1-8B's."""
_METHOD = "/structkv.v1.Prefill/Prefill"
_SEND_SECONDS = 600.0


class NullEngine(PrefillEngine):
    """Computes nothing: every layer keeps random keys and values, made once."""

    def __init__(self, device: str, prompt_tokens: int) -> None:
        """Take the device and N; a layer keeps the default share of the N tokens."""
        super().__init__(DecoderModel(random_llama(device, **_SMALL), "null"))
        spec = self.model.spec
        self.prompt = [0] * prompt_tokens
        shape = (Selection().kv_budget(prompt_tokens), spec.num_kv_heads, spec.head_dim)
        generator = torch.Generator(device).manual_seed(0)
        places = torch.arange(shape[0], device=device)
        self.layers: list[KeptLayer] = []
        for layer in range(spec.num_layers):
            keys, values = (torch.randn(shape, generator=generator, device=device).bfloat16() for _ in range(2))
            self.layers.append(KeptLayer(layer, keys, values, None, places))

    @property
    def num_bytes(self) -> int:
        """What all layers keep, in bfloat16."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def run(self, token_ids: list[int], selection: Selection) -> Generator[Output, None, None]:  # noqa: ARG002
        """Yield the layers and the end."""
        yield from self.layers
        yield PromptEnd(torch.zeros(self.model.spec.hidden_size, device=self.model.device), None, 0.0)


def measure(device: str, prompt_tokens: int, repeats: int, threads: int) -> Record:
    """Measure each codec: its messages made one after the other in this process, and streamed from another one."""
    freed_memory.keep()
    engine = NullEngine(device, prompt_tokens)
    num_bytes = engine.num_bytes
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(device, prompt_tokens, threads, theirs), daemon=True
    )
    process.start()
    try:
        address = f"127.0.0.1:{ours.recv()}"
        selections = {codec: Selection(codec=codec) for codec in CODECS}
        made = in_turns({codec: partial(_make, engine, of) for codec, of in selections.items()}, 1 + repeats)
        streamed = in_turns(
            {codec: partial(_stream, engine, address, of) for codec, of in selections.items()}, 1 + repeats
        )
    finally:
        process.terminate()
        process.join()
    rows = [
        Row(name, {"codec": codec, "length": prompt_tokens}, [num_bytes / s / 1e9 for s in samples[1:]], "GB/s of K/V")
        for name, by_codec in (("messages", made), ("stream", streamed))
        for codec, samples in by_codec.items()
    ]
    return Record("pipeline", head(threads=threads), rows)


def _make(engine: NullEngine, selection: Selection) -> float:
    """Return how long making all messages takes."""
    skeleton = SkeletonSpec.of(engine.model.spec, engine.prompt, selection)
    started = time.perf_counter()
    for kept in engine.layers:
        for _ in wire.layer_chunks(skeleton, kept.layer, kept.keys, kept.values, kept.positions):
            pass
    return time.perf_counter() - started


def _stream(engine: NullEngine, address: str, selection: Selection) -> float:
    """Return how long it takes to ask for a skeleton and to have its last message."""
    request = prefill_pb2.PrefillRequest(
        model_fingerprint=engine.model.spec.fingerprint,
        prompt_token_ids=engine.prompt,
        selection=selection.to_pb(),
    )
    started = time.perf_counter()
    with grpc.insecure_channel(address) as channel:
        # Without a deserializer they come as bytes: reading them is the decode worker's part.
        call: Any = channel.unary_stream(_METHOD, prefill_pb2.PrefillRequest.SerializeToString)
        (last,) = deque(call(request, timeout=_SEND_SECONDS), maxlen=1)
    seconds = time.perf_counter() - started
    assert prefill_pb2.PrefillEvent.FromString(last).HasField("result")
    return seconds


def _serve(device: str, prompt_tokens: int, threads: int, pipe: Connection) -> None:
    """Serve the null engine as a prefill worker serves its own, until terminated; send the port through the pipe."""
    freed_memory.keep()
    compute = compute_thread("prefill", threads)
    engine = compute.submit(NullEngine, device, prompt_tokens).result()

    async def serve() -> None:
        scheduler = PrefillScheduler(engine, 2 * prompt_tokens, compute)
        server = grpc.aio.server()
        prefill_pb2_grpc.add_PrefillServicer_to_server(PrefillServer(engine, scheduler), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(port)
        await scheduler.run()

    asyncio.run(serve())
