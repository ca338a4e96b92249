"""docs/api.md is true: every parameter is in its tables, and every test that it names is there."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from services.gateway.http import errors
from services.gateway.requests import parameter_errors
from services.gateway.requests.messages import Message
from services.gateway.requests.schemas import ChatRequest, CompletionRequest, GenerationRequest, StreamOptions
from services.gateway.requests.selection_options import StructKVOptions
from services.gateway.requests.structured import JsonSchemaFormat, ResponseFormat, StructuredOutputs
from services.gateway.requests.unsupported import UNSUPPORTED
from services.gateway.tokenization import DetokenizeRequest, TokenizeRequest
from services.gateway.tools.schemas import FunctionDefinition

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/api.md").read_text()
_NAME = re.compile(r"`([a-z_]+)`")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, but its head."""
    section = TEXT.split(f"\n### {heading}\n")[1].split("\n##")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def fields(model: type[BaseModel], *others: type[BaseModel]) -> set[str]:
    names = {field.alias or name for name, field in model.model_fields.items()}
    return names - {name for other in others for name in other.model_fields}


TABLES = {
    "Both endpoints": fields(GenerationRequest),
    "Completions only": fields(CompletionRequest, GenerationRequest),
    "Chat only": fields(ChatRequest, GenerationRequest),
    "Fields of a message": fields(Message),
    "Fields of `response_format`": fields(ResponseFormat),
    "Fields of `json_schema`": fields(JsonSchemaFormat),
    "Fields of `structured_outputs`": fields(StructuredOutputs),
    "Fields of a function": fields(FunctionDefinition),
    "Fields of `stream_options`": fields(StreamOptions),
    "Fields of `structkv`": fields(StructKVOptions),
    "/tokenize": fields(TokenizeRequest),
    "/detokenize": fields(DetokenizeRequest),
}


@pytest.mark.parametrize("heading", TABLES)
def test_the_table_has_exactly_the_parameters(heading: str) -> None:
    names = [name for cells in rows(heading) for name in _NAME.findall(cells[0])]
    assert sorted(names) == sorted(TABLES[heading])


def test_what_is_refused_is_named() -> None:
    names = {name for cells in rows("Refused") for name in _NAME.findall(cells[0])}
    assert names - {"logprobs"} == set(UNSUPPORTED)


@pytest.mark.parametrize("heading", [*TABLES, "Refused"])
def test_every_parameter_names_its_test(heading: str) -> None:
    for cells in rows(heading):
        assert _TEST.search(cells[-1]), f"{cells[0]} has no test"


def test_every_test_that_is_named_exists() -> None:
    for path, name in _TEST.findall(TEXT):
        tests = (ROOT / path).read_text()
        assert re.search(rf"^(async )?def {name}\(", tests, re.MULTILINE), f"{path}::{name}"


def test_every_error_is_listed() -> None:
    section = TEXT.split("\n## Errors\n")[1].split("\n## ")[0]
    meanings = errors._MEANINGS.values()
    codes = {meaning.code for meaning in meanings if meaning.code} | set(parameter_errors._CODES.values())
    kinds = {meaning.kind for meaning in meanings}
    statuses = {str(meaning.status) for meaning in meanings}
    assert all(f"`{name}`" in section for name in codes | kinds)
    assert all(f"| {status}" in section for status in statuses)
