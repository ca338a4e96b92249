"""Transfer: a skeleton's size, coding and throughput beside a plain socket, and what a request waits for it."""

import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import grpc
import torch

from benchmarks.client import Client, Streamed
from benchmarks.measure import in_turns, random_tokens
from benchmarks.processes import Processes
from benchmarks.record import Parameters, Record, Row, head
from benchmarks.sender import Skeleton, receive_message_bytes, serve
from common.model import decoder
from common.pb import prefill_pb2, prefill_pb2_grpc
from common.skeleton.selection import CODECS, Selection
from common.skeleton.wire import SkeletonReader

LINKS_GBIT: tuple[float | None, ...] = (None, 10.0, 1.0)
"""None is the loopback as it is."""
_NEW_TOKENS = 8


def measure(model: str, length: int, repeats: int, log_folder: Path) -> Record:
    """Measure skeletons of a prompt length, at most the model's own."""
    spec = decoder.load(model, device="cpu", dtype="auto").spec
    length = min(length, spec.max_tokens)
    skeletons = {codec: Skeleton.random(spec, length, Selection(codec=codec)) for codec in CODECS}
    rows = [row for codec, skeleton in skeletons.items() for row in _size_and_coding(codec, skeleton, repeats)]
    for codec, skeleton in skeletons.items():
        rows += _throughput(codec, skeleton, repeats)
    rows += list(_exposed(model, length - _NEW_TOKENS, spec.vocab_size, repeats, log_folder))
    return Record("transfer", head(model=model, threads=torch.get_num_threads()), rows)


def _size_and_coding(codec: str, skeleton: Skeleton, repeats: int) -> Iterator[Row]:
    """Encode and decode in one process, alone."""
    parameters: Parameters = {"codec": codec, "length": skeleton.prompt_tokens}
    messages = skeleton.messages()
    num_bytes = sum(message.ByteSize() for message in messages)
    yield Row("bytes", parameters, [num_bytes], "bytes")
    full = skeleton.spec.full_kv_bytes(skeleton.prompt_tokens)
    yield Row("share_of_full", parameters, [num_bytes / full], "of the whole cache in bfloat16")
    measured = {
        "encode": partial(_seconds, skeleton.messages),
        "decode": partial(_seconds, partial(_read, skeleton, messages)),
    }
    for name, samples in in_turns(measured, 1 + repeats).items():
        yield Row(name, parameters, samples[1:], "s")  # the first one warms up


def _read(skeleton: Skeleton, messages: list[prefill_pb2.PrefillEvent]) -> None:
    reader = skeleton.reader()
    for message in messages:
        take(reader, message)


def take(reader: SkeletonReader, event: prefill_pb2.PrefillEvent) -> None:
    """Read one message as a decode worker does."""
    if event.HasField("header"):
        reader.read_header(event.header)
    elif event.HasField("chunk"):
        reader.read_chunk(event.chunk)
    else:
        reader.read_result(event.result)


def _throughput(codec: str, skeleton: Skeleton, repeats: int) -> Iterator[Row]:
    """Receive from another process: skeletons over gRPC, encoded as they are sent, and as many bytes from a socket."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=serve, args=(skeleton.spec, skeleton.prompt_tokens, skeleton.selection, theirs), daemon=True
    )
    process.start()
    try:
        grpc_port, tcp_port, num_bytes = ours.recv()
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            measured: Mapping[str, Callable[[], float]] = {
                "grpc": partial(_seconds, partial(_receive_skeleton, channel, skeleton)),
                "socket": partial(_seconds, partial(_receive_bytes, tcp_port, num_bytes)),
            }
            results = in_turns(measured, 1 + repeats)
    finally:
        process.terminate()
        process.join()
    for way, samples in results.items():
        parameters: Parameters = {"codec": codec, "length": skeleton.prompt_tokens, "way": way}
        yield Row("throughput", parameters, [num_bytes / seconds / 1e6 for seconds in samples[1:]], "MB/s")


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _receive_skeleton(channel: grpc.Channel, skeleton: Skeleton) -> None:
    reader = skeleton.reader()
    for event in prefill_pb2_grpc.PrefillStub(channel).Prefill(prefill_pb2.PrefillRequest()):
        take(reader, event)


def _receive_bytes(port: int, num_bytes: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        receive_message_bytes(connection, num_bytes)


def _exposed(model: str, length: int, vocab_size: int, repeats: int, log_folder: Path) -> Iterator[Row]:
    """Ask the real service over each link, in turns; see what the transfer adds to the time to first token."""
    with Processes(model, log_folder) as processes:
        prefill, decode = processes.worker("prefill"), processes.worker("decode")
        asked: dict[str, Callable[[], Streamed]] = {}
        prompt = random_tokens(length, vocab_size)
        for gbit in LINKS_GBIT:
            url, _ = processes.gateway(decode, prefill if gbit is None else processes.link(prefill, gbit))
            client = Client(url)
            client.complete(prompt[:200], 1)  # opens the connections
            asked["loopback" if gbit is None else f"{gbit:g} Gbit/s"] = partial(client.complete, prompt, _NEW_TOKENS)
        results = in_turns(asked, repeats)
    for link, answers in results.items():
        parameters: Parameters = {"link": link, "length": length, "codec": Selection().codec}
        stats = [answer.stats for answer in answers]
        yield Row("transfer", parameters, [s["transfer_seconds"] for s in stats], "s")
        yield Row("ttft", parameters, [s["ttft_seconds"] for s in stats], "s")
        shares = [s["transfer_seconds"] / s["ttft_seconds"] for s in stats]
        yield Row("exposed_share", parameters, shares, "of the time to first token")
