"""The `structkv` command."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer
from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource

from common.errors import InvalidRequestError, StructKVError
from common.settings import DEFAULT_MODEL, ServiceSettings, TlsSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve long prompts: only a compressed KV skeleton crosses the network.",
)

# A service's flags are its settings, so pydantic-settings reads them (and answers --help).
_SERVICE = {"allow_extra_args": True, "ignore_unknown_options": True}

_PROBE_SECONDS = 5.0

Settings = TypeVar("Settings", bound=ServiceSettings)


@app.command(context_settings=_SERVICE, add_help_option=False)
def gateway(context: typer.Context) -> None:
    """Start the OpenAI-compatible HTTP gateway."""
    from services.gateway import main, settings  # noqa: PLC0415  each process loads only its own service

    _run(main.run, settings.GatewaySettings, context.args)


@app.command(context_settings=_SERVICE, add_help_option=False)
def prefill(context: typer.Context) -> None:
    """Start a prefill worker."""
    from services.prefill import main, settings  # noqa: PLC0415

    _run(main.run, settings.PrefillSettings, context.args)


@app.command(context_settings=_SERVICE, add_help_option=False)
def decode(context: typer.Context) -> None:
    """Start a decode worker."""
    from services.decode import main, settings  # noqa: PLC0415

    _run(main.run, settings.DecodeSettings, context.args)


@app.command()
def up(
    model: Annotated[
        str, typer.Option(envvar="STRUCTKV_MODEL", help="Hub id, folder, or GGUF file of the model.")
    ] = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(help="Address of the HTTP endpoint; the workers stay on loopback.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="STRUCTKV_PORT", min=1, max=65535, help="Port of the HTTP endpoint.")
    ] = 8000,
    prefill_workers: Annotated[int, typer.Option(min=1, help="Prefill workers to start.")] = 1,
    decode_workers: Annotated[int, typer.Option(min=1, help="Decode workers to start.")] = 1,
    transport: Annotated[
        Literal["inline", "redis"],
        typer.Option(envvar="STRUCTKV_TRANSPORT", help="How skeletons cross: inline, or redis, which keeps them too."),
    ] = "inline",
    redis_url: Annotated[
        str | None,
        typer.Option(envvar="REDIS_URL", help="Redis or Valkey for --transport redis; started here if unset."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="STRUCTKV_METRICS_PORT",
            min=1,
            max=65535,
            help="Port of the first worker's metrics, prefill before decode; the others' follow. None if unset.",
        ),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option(envvar="STRUCTKV_LOG_LEVEL", help="What the services log: debug, info, warning or error."),
    ] = "warning",
) -> None:
    """Start the gateway and its workers on this machine; Ctrl-C stops them."""
    from services.gateway.http.endpoint import EndpointSettings  # noqa: PLC0415
    from services.up import Plan, run  # noqa: PLC0415

    with _naming_settings():
        endpoint, tls = EndpointSettings(), TlsSettings().tls
    plan = Plan(
        model=model,
        host=host,
        port=port,
        num_prefill=prefill_workers,
        num_decode=decode_workers,
        log_level=log_level,
        transport=transport,
        redis_url=redis_url,
        scheme=endpoint.scheme,
        needs_key=bool(endpoint.all_api_keys),
        tls=tls,
        metrics_port=metrics_port,
    )
    sys.exit(run(plan))


@app.command()
def store(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on, on loopback only.")] = 6379,
    memory_mib: Annotated[int, typer.Option(min=16, help="Most memory that the server takes.")] = 1536,
) -> None:
    """Start a Valkey server for skeletons on this machine."""
    from services.embedded_store import run  # noqa: PLC0415

    run(port, memory_mib)


Device = Annotated[str, typer.Option(help="torch device; auto takes a GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="Weights and KV cache: auto, float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads for torch; its own choice if unset.")]
Data = Annotated[Path | None, typer.Option(help="Folder with texts and questions; generated if unset.", exists=True)]
Model = Annotated[str, typer.Option(envvar="STRUCTKV_MODEL", help="Hub id, folder, or GGUF file of the model.")]


@app.command()
def calibrate(
    model: Model = DEFAULT_MODEL,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts to average over, of RULER's tasks in turn.")] = 13,
    length: Annotated[int, typer.Option(min=256, help="Tokens of each prompt.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="File to write; unset: where workers look for it.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Find a model's pivot layer, store it for the prefill workers, and draw the curves beside it."""
    from evaluation import calibrate as calibration  # noqa: PLC0415

    plan = calibration.Plan(model, device, dtype, threads, prompts, length, seed, data, out)
    with _complaining():
        found, path = calibration.run(plan)
    typer.echo(f"L* = {found.pivot_layer} of {found.num_layers} layers: {path}, {path.with_suffix('.png')}")


@app.command("eval")
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for answers and report; a run goes on where it was.")],
    model: Model = DEFAULT_MODEL,
    suite: Annotated[str, typer.Option(help="ruler or longbench.")] = "ruler",
    tasks: Annotated[str, typer.Option(help="Tasks of the suite, separated by commas; all if unset.")] = "",
    lengths: Annotated[str, typer.Option(help="Tokens of prompt and answer, separated by commas.")] = "2048",
    method: Annotated[
        list[str] | None,
        typer.Option(help='What to compare, once for each: "snapkv" or "structkv:variant=paper,pivot_layer=19".'),
    ] = None,
    kv_retention: Annotated[str, typer.Option(help="KV budgets as shares, separated by commas.")] = "0.1",
    kv_tokens: Annotated[str, typer.Option(help="KV budgets in tokens, separated by commas.")] = "",
    samples: Annotated[int, typer.Option(min=1, help="Samples of each task and length.")] = 20,
    seed: Annotated[int, typer.Option(help="Of everything that is generated.")] = 0,
    data: Data = None,
    prompt_format: Annotated[str, typer.Option(help="chat, raw, or auto: chat if the model has a template.")] = "auto",
    url: Annotated[str, typer.Option(help="Drive the service at this address instead of engines in here.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once, with --url.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Answers decoded at once, without --url.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Score selection methods on RULER or LongBench.

    With --url, STRUCTKV_API_KEY is the service's API key; a flag would be stored with the results' command.
    """
    from evaluation.command import Options, run  # noqa: PLC0415

    with _complaining():
        run(
            Options(
                model=model,
                suite=suite,
                tasks=_listed(tasks),
                lengths=[int(entry) for entry in _listed(lengths)],
                methods=method or ["full", "structkv"],
                kv_retention=[float(entry) for entry in _listed(kv_retention)],
                kv_tokens=[int(entry) for entry in _listed(kv_tokens)],
                samples=samples,
                seed=seed,
                data=data,
                out=out,
                prompt_format=prompt_format,
                url=url,
                concurrency=concurrency,
                batch=batch,
                device=device,
                dtype=dtype,
                threads=threads,
                api_key=os.environ.get("STRUCTKV_API_KEY", ""),
            )
        )


@app.command()
def inspect(
    prompt: Annotated[str | None, typer.Option(help='The text; "-" reads it from standard input.')] = None,
    file: Annotated[Path | None, typer.Option(help='A file with the text; "-" is standard input.')] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page, the picture and the numbers.")] = Path("inspection"),
    model: Model = DEFAULT_MODEL,
    method: Annotated[
        str, typer.Option(help='What chooses: "structkv", or with parameters "structkv:variant=paper,codec=int4".')
    ] = "structkv",
    kv_retention: Annotated[float, typer.Option(help="Share of the tokens that a layer keeps.")] = 0.1,
    kv_tokens: Annotated[int, typer.Option(help="The same as a number of tokens; 0 leaves it to the share.")] = 0,
    prompt_format: Annotated[str, typer.Option(help="chat, raw, or auto: chat if the model has a template.")] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Draw what is kept of a prompt: a page to read, a picture, and the numbers."""
    from evaluation.inspection.command import Options, run  # noqa: PLC0415

    with _complaining():
        run(
            Options(
                model=model,
                prompt=prompt,
                file=file,
                prompt_format=prompt_format,
                method=method,
                kv_retention=kv_retention,
                kv_tokens=kv_tokens,
                out=out,
                device=device,
                dtype=dtype,
                threads=threads,
            )
        )


def _listed(entries: str) -> list[str]:
    return [entry.strip() for entry in entries.split(",") if entry.strip()]


@contextmanager
def _complaining() -> Iterator[None]:
    """Turn what a user can mend into a message: 2 for a wrong option, 1 for what failed."""
    try:
        yield
    except (InvalidRequestError, ValueError) as error:
        _complain(str(error))
        sys.exit(2)
    except (StructKVError, OSError) as error:
        _complain(str(error))
        sys.exit(1)


@app.command()
def fetch(
    model: Model = DEFAULT_MODEL,
    weights: Annotated[
        bool,
        typer.Option("--weights/--no-weights", help="Without weights it is what a gateway needs, a few megabytes."),
    ] = True,
) -> None:
    """Bring a model into the cache, as a service does at its start, and print its folder; for what runs before one."""
    from common.model.source import resolve  # noqa: PLC0415

    with _complaining():
        typer.echo(resolve(model, weights=weights))


@app.command()
def probe(target: Annotated[str, typer.Argument(help="A worker's host:port, or a URL of the gateway.")]) -> None:
    """Exit with 0 if a worker is serving, or a URL answers; for health checks.

    Reads STRUCTKV_TLS_* as the worker does.
    """
    from common.rpc import is_serving, open_channel  # noqa: PLC0415
    from services.http_probe import answers  # noqa: PLC0415

    if "://" in target:
        sys.exit(not answers(target, _PROBE_SECONDS))
    with _naming_settings():
        tls = TlsSettings().tls

    async def serving() -> bool:
        async with open_channel(target, tls) as channel:
            return await is_serving(channel, _PROBE_SECONDS)

    sys.exit(not asyncio.run(serving()))


def _run(service: Callable[[Settings], None], settings: type[Settings], flags: list[str]) -> None:
    """Run a service until it ends; a bad setting or an unusable model stops it with its name."""
    source: CliSettingsSource[Settings] = CliSettingsSource(
        settings, cli_kebab_case=True, cli_prog_name=f"structkv {service.__module__.split('.')[1]}"
    )
    with _naming_settings():
        service(CliApp.run(settings, cli_args=flags, cli_settings_source=source))


@contextmanager
def _naming_settings() -> Iterator[None]:
    """Turn a bad setting into a message with its name, and 2; what else a user can mend into a message and 1."""
    try:
        yield
    except ValidationError as error:
        for problem in error.errors():
            _complain(_named(problem["loc"]) + problem["msg"].removeprefix("Value error, "))
        sys.exit(2)
    except (StructKVError, OSError) as error:
        _complain(str(error))
        sys.exit(1)


def _named(location: tuple[int | str, ...]) -> str:
    """Return a setting's names; nothing for what several settings have wrong together, whose message names them."""
    name = "_".join(map(str, location))
    return f"{name} (--{name.replace('_', '-')}, STRUCTKV_{name.upper()}): " if name else ""


def _complain(message: str) -> None:
    typer.echo(f"structkv: {message}", err=True)


if __name__ == "__main__":
    app()
