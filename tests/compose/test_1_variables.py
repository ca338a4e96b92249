"""What `docker compose up` says when something is not set."""

import pytest

from tests.compose.stack import REQUIRED, Stack


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("given", [None, ""])
def test_a_missing_variable_is_named(name: str, given: str | None, stack: Stack) -> None:
    complete = stack.settings
    stack.settings = {other: value for other, value in complete.items() if other != name}
    stack.settings |= {} if given is None else {name: given}
    try:
        said = stack.compose("up", "--detach", check=False)
    finally:
        stack.settings = complete
    assert f"required variable {name} is missing a value: set it in .env, see .env.example" in said
    assert not stack.states()
