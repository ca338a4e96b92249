"""The `structkv` command."""

import asyncio
import sys
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource

from common.errors import StructKVError
from common.settings import DEFAULT_MODEL, ServiceSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve long prompts: only a compressed KV skeleton crosses the network.",
)

# A service's flags are its settings, so pydantic-settings reads them (and answers --help).
_SERVICE = {"allow_extra_args": True, "ignore_unknown_options": True}

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
    log_level: Annotated[
        str,
        typer.Option(envvar="STRUCTKV_LOG_LEVEL", help="What the services log: debug, info, warning or error."),
    ] = "warning",
) -> None:
    """Start the gateway and its workers on this machine; Ctrl-C stops them."""
    from services.up import Plan, run  # noqa: PLC0415

    plan = Plan(
        model=model,
        host=host,
        port=port,
        num_prefill=prefill_workers,
        num_decode=decode_workers,
        log_level=log_level,
    )
    sys.exit(run(plan))


@app.command()
def probe(target: Annotated[str, typer.Argument(help="A worker's host:port.")]) -> None:
    """Exit with 0 if a worker is serving; for health checks."""
    from common.rpc import is_serving, open_channel  # noqa: PLC0415

    async def serving() -> bool:
        async with open_channel(target) as channel:
            return await is_serving(channel, timeout_seconds=5)

    sys.exit(not asyncio.run(serving()))


def _run(service: Callable[[Settings], None], settings: type[Settings], flags: list[str]) -> None:
    """Run a service until it ends; a bad setting or an unusable model stops it with its name."""
    source: CliSettingsSource[Settings] = CliSettingsSource(
        settings, cli_kebab_case=True, cli_prog_name=f"structkv {service.__module__.split('.')[1]}"
    )
    try:
        service(CliApp.run(settings, cli_args=flags, cli_settings_source=source))
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(map(str, problem["loc"]))
            _complain(f"{name} (--{name.replace('_', '-')}, STRUCTKV_{name.upper()}): {problem['msg']}")
        sys.exit(2)
    except (StructKVError, OSError) as error:
        _complain(str(error))
        sys.exit(1)


def _complain(message: str) -> None:
    typer.echo(f"structkv: {message}", err=True)


if __name__ == "__main__":
    app()
