"""Exceptions in the log: with their messages, or without where these may quote a prompt."""

import json
import logging
import sys

from common.logging import JsonFormatter

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
