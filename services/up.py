"""`structkv up`: the whole system on this machine, each service a process of its own."""

import asyncio
import signal
import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console

from common.errors import ModelLoadError
from common.model.source import resolve, served_name
from common.network import address, check_free
from common.output import take_over_stderr
from common.rpc import is_serving, open_channel
from common.settings import WorkerSettings
from common.tls import Tls
from services import embedded_store
from services.probe import problem_of_url
from services.supervisor import Service, StartError, Supervisor

_LOOPBACK = "127.0.0.1"
_MAX_PORT = 65535
_PROBE_SECONDS = 2.0
_STRUCTKV = str(Path(sys.executable).with_name("structkv"))


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, and how it can be spoken to once it runs: the services read the same variables.

    Attributes:
        scheme: of the HTTP endpoint.
        needs_key: whether clients need an API key.
        tls: how workers are asked whether they serve; None for plain text.
        metrics_port: of the first worker's metrics, the others' follow; None if they have none.
    """

    model: str
    host: str
    port: int
    num_prefill: int
    num_decode: int
    log_level: str
    transport: str
    redis_url: str | None = field(repr=False)
    scheme: str = "http"
    needs_key: bool = False
    tls: Tls | None = None
    metrics_port: int | None = None


def run(plan: Plan) -> int:
    """Start everything, wait for Ctrl-C or SIGTERM, stop everything; return the exit code."""
    take_over_stderr()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        _check_ports(plan)
        asyncio.run(_run(plan, console))
    except asyncio.CancelledError:
        console.print("stopped", style="dim")
    except (ModelLoadError, StartError, OSError) as error:
        console.print(f"structkv: {error}", markup=False, style="bold red")
        return 1
    return 0


async def _run(plan: Plan, console: Console) -> None:
    _cancel_on_signal(console)
    async with Supervisor(lambda line: console.print(line, style="dim", markup=False)) as supervisor:
        with console.status(f"preparing {plan.model}"):
            await asyncio.to_thread(resolve, plan.model, weights=True)
        store_port, *ports = _free_ports(1 + plan.num_prefill + plan.num_decode)
        if plan.transport == "redis" and plan.redis_url is None:
            password = embedded_store.new_password()
            plan = replace(plan, redis_url=embedded_store.url(store_port, password))
            await supervisor.start(_store(store_port, password))
        targets = [f"{_LOOPBACK}:{port}" for port in ports]
        prefill, decode = targets[: plan.num_prefill], targets[plan.num_prefill :]
        workers = [_worker("prefill", number, target, plan) for number, target in enumerate(prefill, 1)]
        workers += [_worker("decode", number, target, plan) for number, target in enumerate(decode, 1)]
        if plan.metrics_port is not None:
            workers = [_with_metrics(worker, plan.metrics_port + place) for place, worker in enumerate(workers)]
        with console.status(f"loading {plan.model} in {len(workers)} workers"):
            await _start_all(supervisor, workers)
        with console.status("starting the gateway"):
            await supervisor.start(_gateway(plan, prefill, decode))
        console.print(_welcome(plan), markup=False)
        await asyncio.Event().wait()  # until a signal cancels us


def _check_ports(plan: Plan) -> None:
    """Raise OSError or StartError unless all that the plan names can be listened on."""
    num_metrics = 0 if plan.metrics_port is None else plan.num_prefill + plan.num_decode
    metrics = [(plan.metrics_port or 0) + place for place in range(num_metrics)]
    if metrics and metrics[-1] > _MAX_PORT:
        raise StartError(f"{num_metrics} workers' metrics have no room above port {plan.metrics_port}")
    if plan.port in metrics:
        raise StartError(f"port {plan.port} is asked for twice: by the endpoint, and for a worker's metrics")
    check_free(plan.host, plan.port)
    for port in metrics:
        check_free(_LOOPBACK, port)


async def _start_all(supervisor: Supervisor, services: list[Service]) -> None:
    """Start services side by side; raise the first StartError, with the other starts called off."""
    try:
        async with asyncio.TaskGroup() as starting:
            for service in services:
                starting.create_task(supervisor.start(service))
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _cancel_on_signal(console: Console) -> None:
    """Unwind from wherever we are at the first signal; further ones do not disturb the stopping."""
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None

    def stop() -> None:
        console.print("stopping", style="dim")
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, lambda: None)
        main.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop)


def _worker(kind: str, number: int, target: str, plan: Plan) -> Service:
    host, port = target.split(":")

    async def is_ready() -> bool:
        async with open_channel(target, plan.tls) as channel:
            return await is_serving(channel, _PROBE_SECONDS)

    command = [*_command(kind, plan, host, port), "--transport", plan.transport]
    secrets = {} if plan.redis_url is None else {"REDIS_URL": plan.redis_url}  # a command line is everyone's to read
    return Service(f"{kind} worker {number}", command, is_ready, secrets)


def _with_metrics(worker: Service, port: int) -> Service:
    return replace(worker, command=[*worker.command, "--metrics-port", str(port)])


def _store(port: int, password: str) -> Service:
    async def is_ready() -> bool:
        try:
            async with asyncio.timeout(_PROBE_SECONDS), Redis.from_url(embedded_store.url(port, password)) as client:
                return bool(await client.ping())
        except (RedisError, OSError):
            return False

    # Somewhat above what the workers allow themselves, which they reckon without the server's own needs.
    memory_mib = WorkerSettings(transport="inline").store_memory_mib * 3 // 2  # type: ignore[call-arg]
    command = [_STRUCTKV, "store", "--port", str(port), "--memory-mib", str(memory_mib)]
    return Service("store", command, is_ready, {embedded_store.PASSWORD_VARIABLE: password})


def _gateway(plan: Plan, prefill: list[str], decode: list[str]) -> Service:
    command = _command("gateway", plan, plan.host, str(plan.port))
    command += ["--prefill-workers", ",".join(prefill), "--decode-workers", ",".join(decode)]

    async def is_ready() -> bool:
        return await asyncio.to_thread(problem_of_url, f"{_url(plan)}/ready", _PROBE_SECONDS) is None

    return Service("gateway", command, is_ready)


def _command(kind: str, plan: Plan, host: str, port: str) -> list[str]:
    flags = ["--model", plan.model, "--host", host, "--port", port, "--log-level", plan.log_level]
    return [_STRUCTKV, kind, *flags]


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on: all held at once, so that no two are the same."""
    sockets = [socket.create_server((_LOOPBACK, 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _url(plan: Plan) -> str:
    host = _LOOPBACK if plan.host in {"0.0.0.0", "::"} else plan.host  # noqa: S104  not bound here
    return f"{plan.scheme}://{address(host, plan.port)}"


def _welcome(plan: Plan) -> str:
    key = " -H 'Authorization: Bearer YOUR_KEY'" if plan.needs_key else ""
    return f"""
structkv is ready at {_url(plan)}/v1 with {served_name(plan.model)}. Try it:

  curl {_url(plan)}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
    -d '{{"model": "{served_name(plan.model)}", "max_tokens": 64,
         "messages": [{{"role": "user", "content": "Hello!"}}]}}'

Ctrl-C stops it."""
