import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.attack.catalogue import ATTACKS
from benchmarks.attack.measure import choose
from benchmarks.attack.summary import Outcome, held_share, misses, percentile, pooled, ratio, rows
from benchmarks.attack.table import table
from benchmarks.attack.usage import Usage
from benchmarks.attack.victim import Phase, Service, answers_again, watch
from benchmarks.attack.wire import Tally, Target, ask, held, repeated
from benchmarks.processes import ServiceError
from benchmarks.record import Record

HOST = "127.0.0.1"


def phase(gap: float, **fields: object) -> Phase:
    return replace(Phase([gap] * 99 + [2 * gap], [0.2], [0.3], [0.01], [0.002], [0.003]), **fields)  # type: ignore[arg-type]


def outcome(attacked: Phase, attack: str = "a") -> Outcome:
    return Outcome(attack, phase(0.1), attacked, {}, 0.5, Counter({"413": 3}))


def record(*outcomes: Outcome) -> Record:
    return Record("attack", {}, [row for entry in outcomes for row in rows(entry)])


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [([3, 1, 2], 0.5, 2), ([1], 0.99, 1), (range(1, 101), 0.99, 99), (range(1, 301), 0.99, 297), ([], 0.5, math.inf)],
)
def test_percentiles_are_samples(samples: list[float], share: float, expected: float) -> None:
    assert percentile(samples, share) == expected


def test_the_ratio_is_of_the_99th_percentiles() -> None:
    assert ratio(record(outcome(phase(0.25))), "a") == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("attacked", "missed"),
    [
        (phase(0.29), []),
        (phase(0.31), ["p99"]),
        (phase(0.1, gaps=[]), ["p99"]),
        (phase(0.1, health=[0.1, 1.2]), ["/health"]),
        (phase(0.1, health=[]), ["/health"]),
        (phase(0.1, first_tokens=[0.1, 5.1]), []),
        (phase(0.1, first_tokens=[0.1, 5.3]), ["first token"]),
        (phase(0.1, formed=[6.0]), ["first token"]),
        (phase(0.1, failures=Counter({"completion 429": 1})), ["failures"]),
        (phase(1.0, health=[9.0]), ["p99", "/health"]),
    ],
)
def test_what_a_victim_misses(attacked: Phase, missed: list[str]) -> None:
    assert misses(record(outcome(attacked)), "a") == missed


def test_what_was_tried_again_counts_as_one() -> None:
    """A moment is not one in a hundred of three times as much; the longest waits, and all failures, still count."""
    moment = phase(0.2, gaps=[0.2] * 98 + [5.0, 5.0], health=[0.1, 1.2], failures=Counter({"completion 429": 1}))
    moment.memory["gateway"], moment.cpu["gateway"] = 5, 0.9
    calm = phase(0.2, gaps=[0.2] * 100, memory={"gateway": 3}, cpu={"gateway": 0.3})
    once, again = outcome(moment), replace(outcome(calm), recovery=2.0)
    both = record(pooled([once, again, again]))
    assert misses(record(once), "a") == ["p99", "/health", "failures"]
    assert misses(both, "a") == ["/health", "failures"]
    assert ratio(both, "a") == pytest.approx(2)
    assert both.median("pieces", attack="a", phase="attacked") == 300
    assert both.median("memory", attack="a", phase="attacked", process="gateway") == 5
    assert both.median("cpu", attack="a", process="gateway") == pytest.approx(0.5)
    assert both.median("recovery", attack="a") == 2
    assert both.median("got", attack="a", what="413") == 9
    assert any(line.startswith("| a | **/health, failures**, 3 times | 2.00 |") for line in table(both))
    assert pooled([once, replace(again, recovery=None)]).recovery is None


def test_the_table_has_every_attack_with_its_figures() -> None:
    good = phase(0.2, memory={"gateway": 3 * 2**20}, cpu={"gateway": 0.25, "decode": 1.0})
    both = record(outcome(good), outcome(phase(0.4, failures=Counter({"completion 429": 7})), "b"))
    assert held_share(both) == 0.5
    lines = list(table(both))
    assert any("50% of 2 attacks" in line for line in lines)
    assert any("over 2 phases: 100 ms" in line for line in lines)
    first, second = (next(line for line in lines if line.startswith(f"| {name} |")) for name in "ab")
    assert first.startswith("| a | held | 2.00 | 100 / 200 | 100 / 200 | 200 / 400 | 0.002 / 0.002 |")
    assert "| \N{EN DASH} / 3 / \N{EN DASH} |" in first
    assert "| 0.25, \N{EN DASH}, 1.00, \N{EN DASH} | 0.5 | 413: 3 |" in first
    assert second.startswith("| b | **p99, failures** | 4.00 |")
    assert "| completion 429: 7 |" in second


def test_attacks_are_chosen_by_name() -> None:
    assert choose("") == list(ATTACKS)
    assert choose("idle, chat-text") == ["idle", "chat-text"]
    assert not any("," in name or " " in name for name in ATTACKS)
    with pytest.raises(ServiceError, match="no attack is named nothing"):
        choose("idle,nothing")


class Server:
    """Answers every connection with the same bytes once its head is there, and may leave it open."""

    def __init__(self, answer: bytes, *, closes: bool = True) -> None:
        self._answer = answer
        self._closes = closes
        self._writers: list[asyncio.StreamWriter] = []
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            writer.write(self._answer)
            if self._closes:
                writer.close()

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # that is when they are closed


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Target]:
    async with await asyncio.start_server(server.serve, HOST, 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield Target(HOST, port, "key", "model", 100, port, port)
        await server.close()


async def until_asked(server: Server, times: int, attack: Coroutine[Any, Any, None]) -> None:
    attacking = asyncio.ensure_future(attack)
    async with asyncio.timeout(30):
        while server.asked < times:
            await asyncio.sleep(0.01)
    attacking.cancel()
    await asyncio.gather(attacking, return_exceptions=True)


REFUSAL = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"


async def test_an_answer_before_the_bodys_end_is_counted() -> None:
    tally: Tally = Counter()
    async with serving(Server(REFUSAL)) as target:
        await ask(target, target.post("/v1/completions", b" " * 16_000_000), tally)
    assert tally == {"413": 1}


async def test_an_attack_goes_on_and_counts_what_it_got() -> None:
    tally: Tally = Counter()
    async with serving(server := Server(REFUSAL)) as target:
        await until_asked(server, 7, repeated(target, [target.completion()], 3)(tally))
    assert tally["413"] >= 4


async def test_what_is_not_answered_still_waits() -> None:
    tally: Tally = Counter()
    async with serving(server := Server(b"", closes=False)) as target:
        await until_asked(server, 2, repeated(target, [target.completion()], 2)(tally))
    assert tally == {"still waiting": 2}


@pytest.mark.parametrize(("closes", "connections", "asked", "outcome"), [(False, 5, 5, "held"), (True, 1, 2, "closed")])
async def test_connections_are_held_and_opened_again(closes: bool, connections: int, asked: int, outcome: str) -> None:
    tally: Tally = Counter()
    async with serving(server := Server(b"", closes=closes)) as target:
        await until_asked(server, asked, held(HOST, target.port, connections, b"GET / HTTP/1.1\r\n\r\n")(tally))
    assert tally[outcome] >= asked - 1


def service(target: Target) -> Service:
    url = f"http://{HOST}:{target.port}"
    return Service(url, "key", "model", f"{HOST}:{target.port}", f"{url}/metrics")


def streamed(*texts: str) -> bytes:
    events = "".join(f'data: {{"choices": [{{"text": "{text}"}}]}}\n\n' for text in texts)
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + events.encode()


async def test_a_stream_that_stands_still_is_a_gap() -> None:
    async with serving(Server(streamed("a", "b"), closes=False)) as target:
        seen = await watch(service(target), 1.5, Usage({}))
    assert seen.first_tokens
    assert max(seen.gaps) > 0.3
    assert not seen.failures


async def test_a_service_that_does_not_answer_is_a_long_check() -> None:
    async with serving(Server(b"", closes=False)) as target:
        seen = await watch(service(target), 0.5, Usage({}))
    assert max(seen.health) > 0.3
    assert max(seen.first_tokens) > 0.3
    assert not seen.gaps


async def test_refusals_are_failures() -> None:
    async with serving(Server(REFUSAL)) as target:
        seen = await watch(service(target), 0.5, Usage({}))
        assert await answers_again(service(target), 0.2) is None
    assert seen.failures["completion 413"] >= 1


async def test_recovery_is_an_answer() -> None:
    async with serving(Server(streamed("a"))) as target:
        assert await answers_again(service(target), 30) is not None
