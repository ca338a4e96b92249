"""What a command says that cannot do what it is told: one line an error, and an exit code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from common.errors import InvalidRequestError, StructKVError
from common.output import take_over_stderr


def complain(message: str) -> None:
    """Say it to a person."""
    if sys.stderr is sys.__stderr__:  # whoever has put a stream of their own there reads it
        take_over_stderr()
    typer.echo(f"structkv: {message}", err=True)


@contextmanager
def complaining() -> Iterator[None]:
    """Turn what a user can mend into a message: 2 for a wrong option, 1 for what failed."""
    try:
        yield
    except (InvalidRequestError, ValueError) as error:
        complain(str(error))
        sys.exit(2)
    except (StructKVError, OSError) as error:
        complain(str(error))
        sys.exit(1)


@contextmanager
def naming_settings(say: Callable[[str], None] = complain) -> Iterator[None]:
    """Turn a bad setting into a message with its name, and 2; what else a user can mend into a message and 1."""
    try:
        yield
    except ValidationError as error:
        for problem in error.errors():
            say(_named(problem["loc"]) + problem["msg"].removeprefix("Value error, "))
        sys.exit(2)
    except SettingsError as error:
        say(str(error))
        sys.exit(2)
    except (StructKVError, OSError) as error:
        say(str(error))
        sys.exit(1)


def _named(location: tuple[int | str, ...]) -> str:
    """Return a setting's names; nothing for what several settings have wrong together, whose message names them."""
    name = "_".join(map(str, location))
    return f"{name} (--{name.replace('_', '-')}, STRUCTKV_{name.upper()}): " if name else ""
