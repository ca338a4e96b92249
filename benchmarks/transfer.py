"""Transfer: a skeleton's size, coding and throughput beside plain means, and what a request waits for it."""

import multiprocessing
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from benchmarks.client import Client, Streamed
from benchmarks.measure import in_turns, random_tokens
from benchmarks.processes import Processes, free_port
from benchmarks.receiver import Receiver, take
from benchmarks.record import Parameters, Record, Row, head
from benchmarks.sender import Skeleton, receive_message_bytes, serve
from common.model import decoder
from common.pb import prefill_pb2
from common.skeleton.selection import CODECS, Selection
from services import embedded_store

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


def _throughput(codec: str, skeleton: Skeleton, repeats: int) -> Iterator[Row]:
    """Receive from another process: skeletons, which are checked and decoded, and as many bytes by plain means."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with valkey() as url:
        arguments = (skeleton.spec, skeleton.prompt_tokens, skeleton.selection, url, theirs)
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        try:
            grpc_port, tcp_port, num_bytes = ours.recv()
            with Receiver(skeleton, f"127.0.0.1:{grpc_port}", url) as receiver, Redis.from_url(url) as client:
                measured: Mapping[str, Callable[[], float]] = {
                    "grpc": partial(_seconds, receiver.receive),
                    "socket": partial(_seconds, partial(_receive_bytes, tcp_port, num_bytes)),
                    "redis": partial(_seconds, partial(receiver.receive, through_store=True)),
                    "redis client": partial(_seconds, partial(_set_and_get, client, num_bytes, len(skeleton.layers))),
                }
                results = in_turns(measured, 1 + repeats)
        finally:
            process.terminate()
            process.join()
    for way, samples in results.items():
        parameters: Parameters = {"codec": codec, "length": skeleton.prompt_tokens, "way": way}
        yield Row("throughput", parameters, [num_bytes / seconds / 1e6 for seconds in samples[1:]], "MB/s")


@contextmanager
def valkey() -> Iterator[str]:
    """Run a server for the store; yield its URL."""
    port = free_port()
    process = subprocess.Popen(embedded_store.command(port, 512), stdout=subprocess.DEVNULL)  # noqa: S603
    url = f"redis://127.0.0.1:{port}"
    try:
        with Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 50)) as client:
            client.ping()
        yield url
    finally:
        process.terminate()
        process.wait()


def _set_and_get(client: Redis, num_bytes: int, parts: int) -> None:
    """Move as many bytes through the server, in as many parts as there are layers."""
    data = bytes(num_bytes // parts)
    for part in range(parts):
        client.set(f"plain:{part}", data, px=60_000)
        client.get(f"plain:{part}")


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


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
