"""What clients may send to have an answer in a form: OpenAI's `response_format`, and vLLM's structured outputs."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from common.errors import InvalidRequestError
from services.gateway.requests.strict_body import StrictBody

JsonSchema = dict[str, Any]


class JsonSchemaFormat(StrictBody):
    """OpenAI's `response_format.json_schema`. Answers follow the schema whether `strict` or not."""

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool = False


class ResponseFormat(StrictBody):
    """OpenAI's `response_format`."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["text", "json_object"]}, "json_schema": {"type": "null"}}},
                {"properties": {"type": {"const": "json_schema"}}, "required": ["json_schema"]},
            ]
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") is (self.json_schema is None):
            raise InvalidRequestError(
                "response_format.json_schema is for the type json_schema, which needs it",
                param="response_format.json_schema",
            )
        return self


class StructuredOutputs(StrictBody):
    """vLLM's `structured_outputs`: exactly one of these. Its options that are not served are refused, as unknown."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1, "maxProperties": 1})

    json_: JsonSchema | str | None = Field(None, alias="json")
    regex: str | None = Field(None, min_length=1)
    choice: list[str] | None = Field(None, min_length=1, fail_fast=True)
    grammar: str | None = Field(None, min_length=1)
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise InvalidRequestError(
                "structured_outputs must have exactly one of json, regex, choice, grammar and json_object",
                param="structured_outputs",
            )
        return self


class StructuredRequest(StrictBody):
    """The fields of a body by which an answer's form is asked for: one of them, at most.

    Those that vLLM has given up (`guided_*`) are understood, but not published.
    """

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SkipJsonSchema[JsonSchema | str | None] = None
    guided_regex: SkipJsonSchema[str | None] = Field(None, min_length=1)
    guided_choice: SkipJsonSchema[list[str] | None] = Field(None, min_length=1, fail_fast=True)
    guided_grammar: SkipJsonSchema[str | None] = Field(None, min_length=1)

    @model_validator(mode="after")
    def _check_one_form(self) -> Self:
        names = [name for name in StructuredRequest.model_fields if getattr(self, name) is not None]
        if self.response_format is not None and self.response_format.type == "text":
            names.remove("response_format")
        if len(names) > 1:
            raise InvalidRequestError(f"{' and '.join(names)} cannot be asked for together", param=names[1])
        return self
