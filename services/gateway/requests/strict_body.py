"""How request bodies are read: types are not coerced, unknown fields are tolerated, null is the same as absent."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import from_json

from common.errors import InvalidRequestError
from services.gateway.requests.parameter_errors import from_validation


class StrictBody(BaseModel):
    """A request body, or an object within one."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        sent = {name: value for name, value in data.items() if value is not None}
        return sent if cls.model_config.get("extra") != "forbid" else cls._with_one_unknown(sent)

    @classmethod
    def _with_one_unknown(cls, sent: dict[str, object]) -> dict[str, object]:
        """Keep the first of the unknown fields that are refused: an error for each of a million takes long."""
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [name for name in sent if name not in known]
        return {name: value for name, value in sent.items() if name in known or name == unknown[0]}


BodyT = TypeVar("BodyT", bound=StrictBody)


def parse(schema: type[BodyT], raw: bytes) -> BodyT:
    """Read a request body; raise InvalidRequestError that names the first offending field."""
    try:
        # Not with model_validate_json: it holds the body twice, the first time with 200 bytes for every empty list.
        return schema.model_validate(from_json(raw))
    except ValidationError as error:
        raise from_validation(error) from None
    except ValueError as error:
        raise InvalidRequestError(f"Invalid JSON: {error}") from None
