"""Every process is restarted, one after another, while requests keep coming: none of them fails."""

import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.e2e.processes import Process, small_model, wait_for

NUM_CLIENTS = 3
PROMPTS = [[3 + (i * i * 31 + i * 7 + shift) % 40_000 for i in range(300)] for shift in range(NUM_CLIENTS)]
MAX_TOKENS = 150


@dataclass
class System:
    """Two processes of each kind; the second gateway is started when the first is to go."""

    prefill: list[Process]
    decode: list[Process]
    gateways: list[Process]

    def processes(self) -> list[Process]:
        return [*self.prefill, *self.decode, *self.gateways]


class Balancer:
    """Stays with a gateway as long as it takes requests, and goes on to the next when it is gone or says 503."""

    def __init__(self, gateways: list[Process]) -> None:
        self._urls = itertools.cycle([f"http://{gateway.address}" for gateway in gateways])
        self._num_gateways = len(gateways)
        self._url = next(self._urls)
        self._lock = threading.Lock()

    def complete(self, prompt: list[int]) -> str:
        """Return a streamed answer's text; raise whatever a client would see."""
        for _ in range(self._num_gateways):
            url = self._url
            try:
                with httpx.stream("POST", f"{url}/v1/completions", json=_body(prompt), timeout=60) as response:
                    if response.status_code != 503:
                        return _text(response)
                    reason = response.read().decode()
            except httpx.ConnectError as error:
                reason = str(error)
            with self._lock:
                if self._url == url:  # else another client has gone on already
                    self._url = next(self._urls)
        raise AssertionError(f"no gateway takes the request: {reason}")


def _body(prompt: list[int]) -> dict[str, object]:
    sampling = {"max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
    return {"model": "small", "prompt": prompt, "stream": True} | sampling


def _text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.read()
    *frames, done, rest = "".join(response.iter_text()).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames if not frame.startswith(":")]
    assert all("choices" in chunk for chunk in chunks), chunks[-1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


@dataclass
class Load:
    """Clients that send one request after another for as long as the context lasts."""

    balancer: Balancer
    answers: list[tuple[int, str]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client: int) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append((client, self.balancer.complete(PROMPTS[client])))
            except BaseException as error:
                self.failures.append(error)
                return

    def goes_on(self, count: int = 12) -> None:
        """Wait for so many more answers; fail as soon as a request has failed."""
        before = len(self.answers)
        wait_for(lambda: bool(self.failures) or len(self.answers) >= before + count)
        assert not self.failures


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    model = str(small_model(tmp_path / "small"))

    def process(kind: str, number: int, *flags: str) -> Process:
        return Process(kind, ["--model", model, *flags], tmp_path / f"{kind}-{number}.log")

    prefill = [process("prefill", number, "--threads", "1") for number in range(2)]
    decode = [process("decode", number, "--threads", "1", "--kv-memory-gib", "0.25") for number in range(2)]
    workers = ["--prefill-workers", ",".join(worker.address for worker in prefill)]
    workers += ["--decode-workers", ",".join(worker.address for worker in decode)]
    gateways = [process("gateway", number, "--shutdown-delay-seconds", "1", *workers) for number in range(2)]
    system = System(prefill, decode, gateways)
    try:
        for worker in (*prefill, *decode):
            worker.start()
        for worker in (*prefill, *decode):
            worker.wait_until_serving()
        gateways[0].start()
        gateways[0].wait_until_serving()
        yield system
    finally:
        for running in system.processes():
            running.kill()


def restart(worker: Process, gateway: Process) -> None:
    """Restart a worker at its port; return when the gateway sends it requests again."""
    seen = gateway.said(message="worker is serving", worker=worker.address)
    assert worker.stop() == 0
    worker.start()
    worker.wait_until_serving()
    wait_for(lambda: gateway.said(message="worker is serving", worker=worker.address) > seen)


@pytest.mark.timeout(600)
def test_no_request_fails(system: System) -> None:
    first, second = system.gateways
    with Load(Balancer(system.gateways)) as load:
        load.goes_on()
        for worker in (*system.prefill, *system.decode):
            restart(worker, first)
            load.goes_on()
        for new, old in ((second, first), (first, second)):
            new.start()
            new.wait_until_serving()
            assert old.stop() == 0
            load.goes_on()
    assert not load.failures
    assert len(set(load.answers)) == NUM_CLIENTS, "the same question has the same answer wherever it is answered"
