"""API keys: where they are read from, and what is too weak to be one. No message quotes a key."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

_LINE = re.compile(r"(?P<secret>\S+)(?:\s+priority=(?P<priority>-?\d{1,10}))?")
_MIN_CHARACTERS = 16
_MIN_DISTINCT_CHARACTERS = 5
_HEADER_SAFE = re.compile(r"[\x21-\x7e]*")
_PLACEHOLDER = re.compile(r"change.?me|placeholder|example|your.?(api.?)?key|<|>|[$]\{", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, and the most urgent priority that it may ask for: None is what everybody may."""

    secret: SecretStr
    priority: int | None = None


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value.strip():
        # `STRUCTKV_API_KEYS=$(cat missing)` must not open the service.
        raise ValueError("is set but holds no key; unset it to serve everybody")
    return tuple(ApiKey(SecretStr(entry.strip())) for entry in value.split(","))


def _read_file(value: object) -> object:
    if not isinstance(value, str | Path):
        return value
    try:
        lines = Path(value).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {value}: {getattr(error, 'strerror', 'not text')}") from None
    entries = [line.strip() for line in lines]
    keys = [entry for entry in entries if entry and not entry.startswith("#")]
    if not keys:
        raise ValueError(f"{value} holds no key; unset it to serve everybody")
    return tuple(_read_line(number, line) for number, line in enumerate(keys, 1))


def _read_line(number: int, line: str) -> ApiKey:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"key {number} is not 'KEY' or 'KEY priority=NUMBER'")
    return ApiKey(SecretStr(match["secret"]), None if match["priority"] is None else int(match["priority"]))


def _check_keys(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
    for number, key in enumerate(keys, 1):
        if fault := _fault(key.secret.get_secret_value()):
            raise ValueError(f"key {number} of {len(keys)} {fault}")
    return keys


def _fault(key: str) -> str | None:
    if len(key) < _MIN_CHARACTERS:
        return f"has fewer than {_MIN_CHARACTERS} characters"
    if not _HEADER_SAFE.fullmatch(key):
        return "has characters other than printable ASCII, which no header carries"
    if _PLACEHOLDER.search(key) or len(set(key)) < _MIN_DISTINCT_CHARACTERS:
        return "is a placeholder; `openssl rand -hex 32` makes a real one"
    return None


ApiKeys = Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_keys)]
"""Keys separated by commas."""

ApiKeysFile = Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_read_file), AfterValidator(_check_keys)]
"""Given as the path of a file: a key a line, behind it maybe how urgent its requests may be; blank lines and
those that begin with # are skipped."""
