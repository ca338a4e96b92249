"""The OpenAPI document: what the routes take and answer. Bodies are read by the handler, so FastAPI cannot know."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from services.gateway.answers.answer_schemas import ChatCompletionChunk, CompletionChunk
from services.gateway.http.context import REQUEST_ID_HEADER
from services.gateway.http.deadline import TIMEOUT_HEADER
from services.gateway.requests.schemas import ChatRequest, CompletionRequest, GenerationRequest
from services.gateway.requests.unsupported import UNSUPPORTED
from services.gateway.service_schemas import ErrorBody
from services.gateway.tokenization import DetokenizeRequest, TokenizeRequest

JsonSchema = dict[str, Any]

_REF = "#/components/schemas/{model}"
_GENERATION_BODIES: tuple[type[GenerationRequest], ...] = (CompletionRequest, ChatRequest)
_BODIES: tuple[type[BaseModel], ...] = (*_GENERATION_BODIES, TokenizeRequest, DetokenizeRequest)
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
    408: {"model": ErrorBody, "description": "The body came too slowly."},
    413: {"model": ErrorBody, "description": "The body is larger than the gateway reads."},
    415: {"model": ErrorBody, "description": "The body's type, charset or packing is not read."},
    429: {"model": ErrorBody, "description": "The queues are full.", "headers": _RETRY_AFTER},
    500: {"model": ErrorBody, "description": "An error of the service's own."},
    503: {"model": ErrorBody, "description": "No worker serves, or the gateway drains.", "headers": _RETRY_AFTER},
    504: {"model": ErrorBody, "description": "The request's time is over."},
}


def generation(body: type[BaseModel], answer: type[BaseModel], chunk: type[BaseModel]) -> dict[str, Any]:
    """Return what a generation route is declared with."""
    success = {
        "model": answer,
        "description": "The answer; with `stream`, as server-sent events, and comments where there are none.",
        "content": {"text/event-stream": {"itemSchema": _event(chunk)}},
    }
    return {"responses": {200: success, **_FAILURES}, "openapi_extra": _request(body)}


def tokenization(body: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Return what a route is declared with that asks no worker."""
    return {"responses": {200: {"model": answer}, **_FAILURES}, "openapi_extra": _request(body)}


def _request(body: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(body)}}
    return {"requestBody": {"required": True, "content": content}, "parameters": _HEADERS}


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
    """Show a document of the app, with what FastAPI cannot know; to be called with all other routes there.

    It is written once, which takes as long as ten small answers.
    """

    async def document(_: Request) -> Response:
        return Response(text, media_type="application/json")

    app.add_route("/openapi.json", document, include_in_schema=False)
    bodies = _schemas(_BODIES, "validation")
    for schema in bodies.values():
        _accept_nulls(schema)
    for body in _BODIES:
        properties = bodies[body.__name__]["properties"]
        properties["model"] = {"enum": [model_name]} if body in _GENERATION_BODIES else {"enum": [model_name, None]}
    for body in _GENERATION_BODIES:
        properties = bodies[body.__name__]["properties"]
        properties |= {name: _neutral(name) for name in UNSUPPORTED if name not in body.model_fields}
    app.openapi()["components"]["schemas"] |= bodies | _schemas(_CHUNKS, "serialization")
    text = JSONResponse(app.openapi()).body


def _schemas(models: Sequence[type[BaseModel]], mode: JsonSchemaMode) -> JsonSchema:
    _, found = models_json_schema([(model, mode) for model in models], ref_template=_REF)
    schemas: JsonSchema = found["$defs"]
    return schemas


def _neutral(name: str) -> JsonSchema:
    """Return the schema of a parameter that is not supported: what asks for nothing."""
    return {"enum": [*_distinct(UNSUPPORTED[name].neutral), None]}


def _distinct(values: tuple[object, ...]) -> list[object]:
    """Return the values that JSON tells apart: 0 and 0.0 are one."""
    return [value for index, value in enumerate(values) if value not in values[:index]]


def _accept_nulls(schema: JsonSchema) -> None:
    """Let every optional property be null, which is the same as leaving it out."""
    required = schema.get("required", [])
    for name, entry in schema.get("properties", {}).items():
        if name not in required and {"type": "null"} not in entry.get("anyOf", []) and "enum" not in entry:
            schema["properties"][name] = {"anyOf": [entry, {"type": "null"}]}
