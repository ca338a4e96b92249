"""`python -m services.reference`: docs/settings.md, written from the settings themselves."""

from collections.abc import Iterator, Mapping
from typing import get_args

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common.settings import ServiceSettings, WorkerSettings
from services.cli import app
from services.decode.settings import DecodeSettings
from services.gateway.settings import GatewaySettings
from services.prefill.settings import PrefillSettings

_INTRODUCTION = """# Settings

Written by `make reference`; do not edit.

A setting is read from a flag or from a variable, the flag first: `--kv-memory-gib 8` is `STRUCTKV_KV_MEMORY_GIB=8`.
`REDIS_URL` alone has no prefix, and the store's password, `STRUCTKV_STORE_PASSWORD`, alone has no flag.
A value that makes no sense, or a flag that nobody knows, stops the start and is named.
`structkv up` starts its services with their defaults: what its own flags do not say, variables do."""

_NOTHING = "\N{EN DASH}"


def reference() -> str:
    """Return the whole page."""
    shared, workers = ServiceSettings.model_fields, WorkerSettings.model_fields
    sections = {
        "Every service": _rows(shared, {}),
        "Both kinds of worker": _rows(workers, shared),
        "Prefill worker": _rows(PrefillSettings.model_fields, workers),
        "Decode worker": _rows(DecodeSettings.model_fields, workers),
        "Gateway": _rows(GatewaySettings.model_fields, shared),
        "structkv up": _options("up"),
        "structkv store": _options("store"),
    }
    return "\n\n".join([_INTRODUCTION, *(_section(title, rows) for title, rows in sections.items())]) + "\n"


def _section(title: str, rows: Iterator[tuple[str, str, str]]) -> str:
    lines = [f"| `{name}` | {default} | {meaning} |" for name, default, meaning in rows]
    return "\n".join([f"## {title}", "", "| setting | default | meaning |", "|---|---|---|", *lines])


def _rows(fields: Mapping[str, FieldInfo], known: Mapping[str, FieldInfo]) -> Iterator[tuple[str, str, str]]:
    """Yield what a service has beyond what is listed elsewhere; a default of its own is listed again."""
    for name, field in fields.items():
        if name not in known or field.default != known[name].default:
            yield name, _default(field), field.description or _choices(field)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return _NOTHING if field.default in (None, "", ()) else f"`{field.default}`"


def _choices(field: FieldInfo) -> str:
    return ", ".join(str(choice) for choice in get_args(field.annotation))


def _options(command: str) -> Iterator[tuple[str, str, str]]:
    group = typer.main.get_command(app)
    for option in getattr(group, "commands")[command].params:  # noqa: B009  click's types are not typer's
        yield option.opts[0], _NOTHING if option.default is None else f"`{option.default}`", option.help


if __name__ == "__main__":
    typer.echo(reference(), nl=False)
