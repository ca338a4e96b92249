"""The OpenAPI document: what the routes take and answer. Bodies are read by the handler, so FastAPI cannot know."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from services.gateway.answer_schemas import ChatCompletionChunk, CompletionChunk, ErrorBody
from services.gateway.context import REQUEST_ID_HEADER
from services.gateway.deadline import TIMEOUT_HEADER
from services.gateway.schemas import UNSUPPORTED, ChatRequest, CompletionRequest, GenerationRequest

JsonSchema = dict[str, Any]

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[GenerationRequest], ...] = (CompletionRequest, ChatRequest)
_CHUNKS = (CompletionChunk, ChatCompletionChunk)
_HEADERS = [
    {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "Seconds that the request may take; no more than the gateway's own limit.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": REQUEST_ID_HEADER,
        "in": "header",
        "description": "Under which the request is logged; one is made up if it is absent or unfit.",
        "schema": {"type": "string"},
    },
]
_RETRY_AFTER = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}}}

FAILURE: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody, "description": "No such thing here."}}
_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is wrong; `param` names the field or header."},
    401: {"model": ErrorBody, "description": "The gateway asks for an API key, and knows none such."},
    404: {"model": ErrorBody, "description": "The model is not served."},
    413: {"model": ErrorBody, "description": "The body is larger than the gateway reads."},
    429: {"model": ErrorBody, "description": "The queues are full.", "headers": _RETRY_AFTER},
    500: {"model": ErrorBody, "description": "An error of the service's own."},
    503: {"model": ErrorBody, "description": "No worker serves, or the gateway drains.", "headers": _RETRY_AFTER},
    504: {"model": ErrorBody, "description": "The request's time is over."},
}


def generation(body: type[BaseModel], answer: type[BaseModel], chunk: type[BaseModel]) -> dict[str, Any]:
    """Return what a generation route is declared with."""
    success = {
        "model": answer,
        "description": "The answer; with `stream`, as server-sent events.",
        "content": {"text/event-stream": {"itemSchema": _event(chunk)}},
    }
    content = {"application/json": {"schema": _reference(body)}}
    return {
        "responses": {200: success, **_FAILURES},
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "parameters": _HEADERS},
    }


def _event(chunk: type[BaseModel]) -> JsonSchema:
    """Return the schema of one server-sent event: a chunk, an error, or the end."""
    content = {"anyOf": [_reference(chunk), _reference(ErrorBody)]}
    data = {
        "type": "string",
        "anyOf": [{"const": "[DONE]"}, {"contentMediaType": "application/json", "contentSchema": content}],
    }
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _reference(schema: type[BaseModel]) -> JsonSchema:
    return {"$ref": _REF.format(model=schema.__name__)}


def publish(app: FastAPI, model_name: str) -> None:
    """Complete the document that the app shows with what FastAPI cannot know; to be called with all routes there."""
    bodies = _schemas(_BODIES, "validation")
    for schema in bodies.values():
        _accept_nulls(schema)
    for body in _BODIES:
        properties = bodies[body.__name__]["properties"]
        properties["model"] = {"enum": [model_name]}
        properties |= {name: {"enum": [*_distinct(neutral), None]} for name, neutral in UNSUPPORTED.items()}
    app.openapi()["components"]["schemas"] |= bodies | _schemas(_CHUNKS, "serialization")


def _schemas(models: Sequence[type[BaseModel]], mode: JsonSchemaMode) -> JsonSchema:
    _, found = models_json_schema([(model, mode) for model in models], ref_template=_REF)
    schemas: JsonSchema = found["$defs"]
    return schemas


def _distinct(values: tuple[object, ...]) -> list[object]:
    """Return the values that JSON tells apart: 0 and 0.0 are one."""
    return [value for index, value in enumerate(values) if value not in values[:index]]


def _accept_nulls(schema: JsonSchema) -> None:
    """Let every optional property be null, which is the same as leaving it out."""
    required = schema.get("required", [])
    for name, entry in schema.get("properties", {}).items():
        if name not in required and {"type": "null"} not in entry.get("anyOf", []) and "enum" not in entry:
            schema["properties"][name] = {"anyOf": [entry, {"type": "null"}]}
