"""How request bodies are read: types are not coerced, unknown fields are tolerated, null is the same as absent."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from services.gateway.requests.parameter_errors import from_validation


class StrictBody(BaseModel):
    """A request body, or an object within one."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


BodyT = TypeVar("BodyT", bound=StrictBody)


def parse(schema: type[BodyT], raw: bytes) -> BodyT:
    """Read a request body; raise InvalidRequestError that names the first offending field."""
    try:
        return schema.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error) from None
