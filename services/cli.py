"""The `structkv` command."""

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import typer
from pydantic_settings import CliApp, CliSettingsSource

from common.logging import configure
from common.openmp import spin_briefly
from common.output import protect_descriptors
from common.settings import DEFAULT_MODEL, ServiceSettings, TlsSettings
from services import evaluation_commands
from services.complaints import complain, complaining, naming_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve long prompts: only a compressed KV skeleton crosses the network.",
)

app.add_typer(evaluation_commands.app)

# A service's flags are its settings, so pydantic-settings reads them (and answers --help).
_SERVICE = {"allow_extra_args": True, "ignore_unknown_options": True}

_PROBE_SECONDS = 5.0

Settings = TypeVar("Settings", bound=ServiceSettings)

logger = logging.getLogger(__name__)


@app.callback()
def _begin() -> None:
    protect_descriptors()
    spin_briefly()


@app.command(context_settings=_SERVICE, add_help_option=False)
def gateway(context: typer.Context) -> None:
    """Start the OpenAI-compatible HTTP gateway."""
    from services.gateway import main, settings  # noqa: PLC0415  each process loads only its own service

    _run("gateway", main.run, settings.GatewaySettings, context.args)


@app.command(context_settings=_SERVICE, add_help_option=False)
def prefill(context: typer.Context) -> None:
    """Start a prefill worker."""
    from services.prefill import main, settings  # noqa: PLC0415

    _run("prefill", main.run, settings.PrefillSettings, context.args)


@app.command(context_settings=_SERVICE, add_help_option=False)
def decode(context: typer.Context) -> None:
    """Start a decode worker."""
    from services.decode import main, settings  # noqa: PLC0415

    _run("decode", main.run, settings.DecodeSettings, context.args)


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

    with naming_settings():
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
    """Start a Valkey server for skeletons on this machine.

    Its password is STRUCTKV_STORE_PASSWORD; if unset, one is made, and the REDIS_URL that has it is printed.
    """
    from services import embedded_store  # noqa: PLC0415

    with complaining():
        password = embedded_store.given_password()
        if password is None:
            password = embedded_store.new_password()
            typer.echo(f"export REDIS_URL={embedded_store.url(port, password)}")
        sys.stdout.flush()
        embedded_store.run(port, memory_mib, password)


@app.command()
def fetch(
    model: Annotated[
        str, typer.Option(envvar="STRUCTKV_MODEL", help="Hub id, folder, or GGUF file of the model.")
    ] = DEFAULT_MODEL,
    weights: Annotated[
        bool,
        typer.Option("--weights/--no-weights", help="Without weights it is what a gateway needs, a few megabytes."),
    ] = True,
) -> None:
    """Bring a model into the cache, as a service does at its start, and print its folder; for what runs before one."""
    from common.model.source import resolve  # noqa: PLC0415

    with complaining():
        typer.echo(resolve(model, weights=weights))


@app.command()
def probe(target: Annotated[str, typer.Argument(help="A worker's host:port, or a URL of the gateway.")]) -> None:
    """Exit with 0 if a worker is serving, or a URL answers with 200; else say what is wrong. For health checks.

    Reads STRUCTKV_TLS_* as the worker does.
    """
    from services.probe import problem_of_url, problem_of_worker  # noqa: PLC0415

    if target.startswith(("http://", "https://")):
        problem = problem_of_url(target, _PROBE_SECONDS)
    else:
        with naming_settings():
            tls = TlsSettings().tls
        problem = asyncio.run(problem_of_worker(target, tls, _PROBE_SECONDS))
    if problem is not None:
        complain(problem)
        sys.exit(1)


def _run(name: str, service: Callable[[Settings], None], settings: type[Settings], flags: list[str]) -> None:
    """Run a service until it ends; a bad setting or an unusable model stops it with its name, in its log."""
    configure(name, "info")  # before there are settings: what is wrong with them is logged as all else
    source: CliSettingsSource[Settings] = CliSettingsSource(
        settings, cli_kebab_case=True, cli_prog_name=f"structkv {name}", cli_exit_on_error=False
    )
    with naming_settings(logger.error):
        service(CliApp.run(settings, cli_args=flags, cli_settings_source=source))


if __name__ == "__main__":
    app()
