"""A worker is killed under a request, and the client's answer is the one it would have had."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.chaos.load import Request, ask
from tests.chaos.run import Plan, run
from tests.cluster import Cluster

LONG = "The harbour of the town was quiet that morning. " * 80 + "Then the first ship"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("cluster"), decode_flags=("--kv-memory-gib", "0.5")) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=120) as client:
        yield client


async def serving(cluster: Cluster, kind: str, gauge: str) -> str:
    """Wait until a worker of a kind has something to do; return its name."""
    async with asyncio.timeout(60):
        while True:
            for member in cluster.of(kind):
                if (await cluster.metrics(member.name))[gauge]:
                    return member.name
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("tokens", [0, 1, 10])
async def test_killing_the_decode_worker_after_some_tokens(
    tokens: int, temperature: float, cluster: Cluster, client: httpx.AsyncClient
) -> None:
    request = Request(f"Number {tokens}. {LONG}", temperature, seed=tokens + 5, max_tokens=40)
    reached = asyncio.Event()
    asking = asyncio.create_task(ask(client, request, after=tokens, reached=reached))
    victim = await serving(cluster, "decode", "structkv_kv_blocks_used")
    if tokens:
        await reached.wait()
    cluster.kill(victim)
    disturbed = await asking
    await cluster.start(victim)
    assert (await cluster.metrics("gateway"))["structkv_decode_failovers_total"] > 0
    async with cluster.store_client() as store:
        await store.flushall()  # the undisturbed run has a prefill of its own
    assert disturbed == await ask(client, request)


async def _choices(
    client: httpx.AsyncClient, body: dict[str, object], reached: asyncio.Event | None = None
) -> dict[int, tuple[str, list[str], str | None]]:
    """Return each choice of a stream: text, tokens, reason; set `reached` after the sixth piece."""
    choices: dict[int, tuple[str, list[str], str | None]] = {}
    pieces = 0
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            (delta,) = json.loads(line.removeprefix("data: "))["choices"]
            text, tokens, _ = choices.get(delta["index"], ("", [], None))
            tokens += delta["logprobs"]["tokens"] if delta["logprobs"] else []
            choices[delta["index"]] = (text + delta["text"], tokens, delta["finish_reason"])
            pieces += 1
            if reached is not None and pieces == 6:
                reached.set()
    return choices


async def test_killing_the_decode_worker_under_several_answers(cluster: Cluster, client: httpx.AsyncClient) -> None:
    body = Request(f"Several. {LONG}", 0.9, seed=3, max_tokens=30).body()
    body |= {"n": 3, "stop": [" the"], "logprobs": 0, "min_tokens": 4}
    reached = asyncio.Event()
    asking = asyncio.create_task(_choices(client, body, reached))
    victim = await serving(cluster, "decode", "structkv_kv_blocks_used")
    await reached.wait()
    cluster.kill(victim)
    disturbed = await asking
    await cluster.start(victim)
    async with cluster.store_client() as store:
        await store.flushall()
    assert len(disturbed) == 3
    assert all(reason in {"stop", "length"} for _, _, reason in disturbed.values())
    assert disturbed == await _choices(client, body)


async def test_killing_the_prefill_worker(cluster: Cluster, client: httpx.AsyncClient) -> None:
    request = Request(f"Prefill. {LONG}", 0.0, seed=0, max_tokens=10)
    asking = asyncio.create_task(ask(client, request))
    victim = await serving(cluster, "prefill", "structkv_prefill_prompts")
    cluster.kill(victim)
    disturbed = await asking
    await cluster.start(victim)
    async with cluster.store_client() as store:
        await store.flushall()
    assert disturbed == await ask(client, request)


async def test_killing_the_store(cluster: Cluster, client: httpx.AsyncClient) -> None:
    request = Request(f"Store. {LONG}", 0.0, seed=0, max_tokens=10)
    asking = asyncio.create_task(ask(client, request))
    await serving(cluster, "prefill", "structkv_prefill_prompts")
    cluster.kill("store")
    disturbed = await asking
    await cluster.start("store")
    assert disturbed == await ask(client, request)


@pytest.mark.timeout(600)
async def test_a_short_run_of_chaos() -> None:
    report = await run(Plan(num_requests=24, num_prompts=12, pause_seconds=(1.0, 4.0)))
    assert report.is_good, str(report)
    assert report.kills
