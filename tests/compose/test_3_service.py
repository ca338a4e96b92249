"""One run of the service, in the order of a day: up, asked, hurt, grown, upgraded, started with a bad worker, down."""

import asyncio
import json
import re
from itertools import count

import httpx
import pytest

from tests.chaos.load import Request, ask
from tests.compose.stack import FILES, Stack, engine, inspect, metric, wait_for
from tests.e2e.needle import needle_prompt

SERVICES = ("gateway", "prefill", "decode", "redis")
STORY = "The harbour of the town was quiet that morning. " * 80 + "Then the first ship"


async def in_thread(function, *arguments, **named):
    """Run what blocks beside a request that goes on."""
    return await asyncio.to_thread(function, *arguments, **named)


async def complete(client: httpx.AsyncClient, prompt: str, max_tokens: int = 16, **body: object) -> dict:
    """Ask without a stream; the answer comes with its statistics."""
    fixed = {"model": "smollm2-135m-instruct", "temperature": 0, "structkv": {"return_stats": True}}
    reply = await client.post("/v1/completions", json=fixed | {"prompt": prompt, "max_tokens": max_tokens} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def counted(client: httpx.AsyncClient, name: str) -> float:
    """Return a counter of the gateway's, all labels together."""
    text = (await client.get("/metrics")).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def test_all_are_healthy(running: Stack) -> None:
    states = running.states()
    assert {states[service]["Health"] for service in SERVICES} == {"healthy"}
    assert (states["model"]["State"], states["model"]["ExitCode"]) == ("exited", 0)


@pytest.mark.parametrize("service", SERVICES)
def test_it_is_locked_in(service: str, running: Stack) -> None:
    (name,) = running.containers(service)
    container = inspect(name)
    host = container["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Memory"] > 0
    assert host["LogConfig"]["Config"] == {"max-file": "5", "max-size": "10m"}
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert engine("exec", name, "id", "-u").strip() != "0"
    assert "Read-only file system" in engine("exec", name, "touch", "/written", check=False)


def test_only_the_gateway_is_published(running: Stack) -> None:
    published = {service: inspect(running.containers(service)[0])["HostConfig"]["PortBindings"] for service in SERVICES}
    assert [service for service, ports in published.items() if ports] == ["gateway"]
    assert [port["HostIp"] for port in published["gateway"]["8000/tcp"]] == ["127.0.0.1"]


@pytest.mark.parametrize("service", ["prefill", "decode", "redis"])
def test_workers_and_store_have_no_way_out(service: str, running: Stack) -> None:
    networks = inspect(running.containers(service)[0])["NetworkSettings"]["Networks"]
    assert all(inspect(name)["Internal"] for name in networks)


def test_the_store_wants_a_password_and_has_a_bound(running: Stack) -> None:
    (name,) = running.containers("redis")
    assert "NOAUTH" in engine("exec", "--env", "REDISCLI_AUTH=", name, "redis-cli", "dbsize")
    assert engine("exec", name, "redis-cli", "config", "get", "maxmemory").split() == ["maxmemory", str(1536 << 20)]
    policy = engine("exec", name, "redis-cli", "config", "get", "maxmemory-policy")
    assert policy.split() == ["maxmemory-policy", "volatile-ttl"]


async def test_without_a_key_nobody_is_served(running: Stack) -> None:
    async with httpx.AsyncClient(base_url=running.url) as stranger:
        assert (await stranger.get("/v1/models")).status_code == 401
        assert (await stranger.get("/ready")).status_code == 200


async def test_a_long_prompt_is_answered_in_a_stream(running: Stack) -> None:
    prompt, number = needle_prompt(seed=1)
    async with running.client() as client:
        streamed = await ask(client, Request(prompt, 0.0, seed=0, max_tokens=16))
        whole = await complete(client, prompt, ignore_eos=True)
    print(f"  {whole['usage']['prompt_tokens']} tokens asked, answered {streamed!r}; {json.dumps(whole['structkv'])}")
    assert number in streamed
    assert whole["choices"][0]["text"] == streamed
    assert whole["structkv"]["transport"] == "redis"
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == whole["usage"]["prompt_tokens"]


async def test_killing_the_store(running: Stack) -> None:
    request = Request(f"Store. {STORY}", 0.0, seed=0, max_tokens=16)
    async with running.client() as client:
        expected = await ask(client, request)
        await in_thread(running.compose, "kill", "redis")
        assert await ask(client, request) == expected
        assert (await complete(client, "Inline. " + STORY))["structkv"]["transport"] == "inline"
        await in_thread(running.compose, "up", "--detach", "--wait", "--no-recreate")
        await until(lambda: crosses_the_store(client), "skeletons to cross the store again")


async def until(condition, what: str) -> None:
    async with asyncio.timeout(120):
        while not await condition():
            print(f"  waiting for {what}", flush=True)
            await asyncio.sleep(1)


_numbers = count()


async def crosses_the_store(client: httpx.AsyncClient) -> bool:
    answer = await complete(client, f"Number {next(_numbers)}. {STORY}", max_tokens=1)
    return answer["structkv"]["transport"] == "redis"


async def test_scaled_to_two_of_each(running: Stack) -> None:
    scale = ("--scale", "prefill=2", "--scale", "decode=2")
    await in_thread(running.compose, "up", "--detach", "--wait", "--no-recreate", *scale)
    workers = [name for kind in ("prefill", "decode") for name in running.containers(kind)]
    assert len(workers) == 4

    async def seen() -> bool:
        log = await in_thread(running.logs, "gateway")
        return len(set(re.findall(r'"worker is serving".*?"worker": "([^"]+)"', log))) >= 4

    await until(seen, "the gateway to find all four")
    before = {name: metric(name, "process_cpu_seconds_total") for name in workers}
    async with running.client() as client:
        answers = [complete(client, f"Question {index}. {STORY}", max_tokens=30) for index in range(4)]
        await asyncio.gather(*answers)
    computed = {name: metric(name, "process_cpu_seconds_total") - before[name] for name in workers}
    print(f"  seconds of computing: {computed}")
    assert all(seconds > 0.5 for seconds in computed.values())


@pytest.mark.parametrize("temperature", [0.0, 0.9])
async def test_killing_a_decode_worker_in_the_middle_of_a_stream(temperature: float, running: Stack) -> None:
    request = Request(f"Killed at {temperature}. {STORY}", temperature, seed=5, max_tokens=150)
    reached = asyncio.Event()
    async with running.client() as client:
        failovers = await counted(client, "structkv_decode_failovers_total")
        asking = asyncio.create_task(ask(client, request, after=5, reached=reached))
        await reached.wait()
        victim = await in_thread(the_busy_one, running.containers("decode"))
        await in_thread(engine, "kill", victim)
        disturbed = await asking
        assert await counted(client, "structkv_decode_failovers_total") > failovers
        await in_thread(engine, "start", victim)
        await in_thread(wait_for, lambda: health(victim) == "healthy", f"{victim} to be healthy")
        flush = ("exec", running.containers("redis")[0], "redis-cli", "flushall")
        await in_thread(engine, *flush)  # the undisturbed run has a prefill of its own
        assert disturbed == await ask(client, request)
    print(f"  killed {victim}; the answer is the undisturbed one: {disturbed[:60]!r}...")


def the_busy_one(workers: list[str]) -> str:
    (busy,) = [worker for worker in workers if metric(worker, "structkv_kv_blocks_used")]
    return busy


def health(container: str) -> str:
    return inspect(container)["State"]["Health"]["Status"]


async def test_workers_are_replaced_without_a_failed_request(running: Stack) -> None:
    """As docs/deploy.md says: with two of each, one after another is stopped, removed and started anew."""
    stop = asyncio.Event()
    async with running.client() as client:
        clients = [asyncio.create_task(asks_on(client, number, stop)) for number in range(2)]
        for kind in ("decode", "prefill"):
            for old in running.containers(kind):
                await in_thread(replace, running, kind, old)
        stop.set()
        answered = await asyncio.gather(*clients)
    print(f"  {sum(answered)} answers meanwhile")
    assert min(answered) > 2


async def asks_on(client: httpx.AsyncClient, number: int, stop: asyncio.Event) -> int:
    """Ask one prompt after another, each a new one; raise if one fails."""
    for answered in count():
        if stop.is_set():
            return answered
        await ask(client, Request(f"Client {number}, question {answered}. {STORY}", 0.0, seed=0, max_tokens=40))
    raise AssertionError("unreachable")


def replace(stack: Stack, kind: str, old: str) -> None:
    engine("stop", "--time", "40", old)
    engine("rm", old)
    stack.compose("up", "--detach", "--wait", "--no-deps", "--no-recreate", "--scale", f"{kind}=2", kind)
    assert len(stack.containers(kind)) == 2


async def test_a_worker_that_ends_is_started_again(running: Stack) -> None:
    (victim, _) = running.containers("prefill")
    engine("exec", victim, "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    wait_for(lambda: inspect(victim)["RestartCount"] == 1 and health(victim) == "healthy", f"{victim} to be back")


async def test_a_worker_that_cannot_load_its_model_says_why_and_the_others_stay_up(running: Stack) -> None:
    running.compose("down", "--timeout", "40")
    bad = running.folder / "bad.yml"
    bad.write_text("services: {decode: {environment: {STRUCTKV_MODEL: /models/nowhere}}}\n")
    running.compose("up", "--detach", files=(*FILES, bad))
    wait_for(lambda: "/models/nowhere" in running.logs("decode"), "decode to say why")
    reason = next(line for line in running.logs("decode").splitlines() if "/models/nowhere" in line)
    print(f"  decode says: {reason[:300]}")
    assert "neither a folder" in reason
    wait_for(lambda: healthy(running) >= {"gateway", "prefill", "redis"}, "the others to be healthy")
    async with running.client() as client:
        assert (await client.get("/ready")).json()["missing"] == ["decode"]
        refused = await client.post("/v1/completions", json={"model": "smollm2-135m-instruct", "prompt": "Once"})
    assert refused.status_code == 503
    print(f"  the gateway says: {refused.json()['error']['message']}")
    assert "decode" in refused.json()["error"]["message"]


def healthy(stack: Stack) -> set[str]:
    return {service for service, state in stack.states().items() if state["Health"] == "healthy"}


def test_down_leaves_nothing(running: Stack) -> None:
    running.compose("down", "--volumes", "--timeout", "40")
    label = f"label=com.docker.compose.project={running.project}"
    for kind in ("container", "volume", "network"):
        every = ("--all",) if kind == "container" else ()
        assert engine(kind, "ls", *every, "--quiet", "--filter", label) == ""
