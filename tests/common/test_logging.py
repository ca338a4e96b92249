"""Exceptions in the log: with their messages, or without where these may quote a prompt."""

import asyncio
import json
import logging
import sys

from common import tracing
from common.logging import JsonFormatter, logged_as

PROMPT = "words of a prompt"


def record_of(error: Exception) -> logging.LogRecord:
    try:
        raise error
    except type(error):
        return logging.LogRecord("test", logging.ERROR, __file__, 1, "failed", None, sys.exc_info())


def caused() -> Exception:
    try:
        try:
            int(PROMPT)
        except ValueError as error:
            raise KeyError(PROMPT) from error
    except KeyError as error:
        return error
    raise AssertionError


def test_a_worker_logs_what_an_exception_says() -> None:
    line = json.loads(JsonFormatter("decode").format(record_of(RuntimeError("no such kernel"))))
    assert "RuntimeError: no such kernel" in line["exception"]


def test_the_gateway_logs_which_exceptions_came_from_where() -> None:
    line = json.loads(JsonFormatter("gateway", exception_messages=False).format(record_of(caused())))
    assert PROMPT not in line["exception"]
    assert line["exception"].index("builtins.ValueError") < line["exception"].index("builtins.KeyError")
    assert __file__ in line["exception"]


def record() -> dict[str, object]:
    return json.loads(JsonFormatter("decode").format(logging.makeLogRecord({"msg": "hello"})))


def test_what_is_logged_outside_of_a_request_has_no_ids() -> None:
    assert not {"request_id", "trace_id", "span_id"} & record().keys()


async def test_each_request_is_logged_under_its_own_id() -> None:
    async def handle(request_id: str) -> tuple[object, object]:
        with logged_as(request_id):
            await asyncio.sleep(0)
            return record()["request_id"], await asyncio.create_task(in_a_task_of_its_own())

    async def in_a_task_of_its_own() -> object:
        return record()["request_id"]

    answers = await asyncio.gather(*(handle(f"request-{number}") for number in range(3)))
    assert answers == [(f"request-{number}",) * 2 for number in range(3)]
    assert "request_id" not in record()


def test_a_record_in_a_trace_names_it() -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with tracing.current(tracing.start_span("request", parent=tracing.context_from(headers))):
        assert record()["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert record()["span_id"] == "b7ad6b7169203331"
