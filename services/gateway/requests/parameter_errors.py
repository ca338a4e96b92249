"""What is wrong with a parameter, in OpenAI's words: the error's `param` and `code`."""

from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from common.errors import InvalidRequestError

_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "string_too_short": "string_below_min_length",
    "string_too_long": "string_above_max_length",
    "too_short": "array_below_min_length",
    "too_long": "array_above_max_length",
}
_OF_JSON = {
    "list_type": "Input should be a valid array",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
}
"""What is said of Python's types otherwise."""
_BOUNDS = {"gt": "below_min_value", "ge": "below_min_value", "lt": "above_max_value", "le": "above_max_value"}


class InvalidParameterError(InvalidRequestError):
    """One parameter of the request is wrong."""

    def __init__(self, message: str, *, param: str | None, openai_code: str) -> None:
        """Take the message, the parameter if it is one alone, and OpenAI's code for what is wrong with it."""
        super().__init__(message, param=param)
        self.openai_code = openai_code


def from_validation(error: ValidationError) -> InvalidRequestError:
    """Return the first thing that a schema finds wrong; what the client sent is not quoted."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    message = _OF_JSON.get(first["type"], first["msg"])
    if not param:
        return InvalidRequestError(message)
    return InvalidParameterError(f"{param}: {message}", param=param, openai_code=_code(first))


def _code(found: ErrorDetails) -> str:
    if found["type"].endswith("_type"):
        return "invalid_type"
    return _CODES.get(found["type"]) or _bound(found.get("ctx", {}))


def _bound(context: Mapping[str, object]) -> str:
    """Return the code of a number beyond its bound, or of a value that is wrong in another way."""
    for name, code in _BOUNDS.items():
        if name in context:
            return f"{'integer' if isinstance(context[name], int) else 'decimal'}_{code}"
    return "invalid_value"
