"""One JSON object a line on stderr. Prompt and answer text are never logged.

What is logged while a request is handled carries its id, and the ids of its trace and span if it has them.

A library's exception may quote what it was given, such as `invalid literal for int(): ...`. So where text is handled,
in the gateway, exceptions are logged with their types and where they were raised, without their messages.
"""

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import TracebackType

from opentelemetry import trace

from common.output import Output, take_over_stderr

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}

_REQUEST_ID: ContextVar[str] = ContextVar("request_id")

logger = logging.getLogger(__name__)

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class JsonFormatter(logging.Formatter):
    """Formats a record with its `extra` fields, so `request_id` can be searched for."""

    def __init__(self, service: str, *, exception_messages: bool = True) -> None:
        super().__init__()
        self._service = service
        self._exception_messages = exception_messages

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _request_fields()
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self._exception(record.exc_info)
        return json.dumps(line, default=str)

    def _exception(self, exc_info: ExcInfo) -> str:
        error = exc_info[1]
        if self._exception_messages or error is None:
            return self.formatException(exc_info)
        return "\n".join(_without_message(link) for link in _chain(error))


def _request_fields() -> dict[str, object]:
    """Return the ids of the request that is being handled; a record that names them itself has the last word."""
    fields: dict[str, object] = {}
    if (request_id := _REQUEST_ID.get(None)) is not None:
        fields["request_id"] = request_id
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        fields["trace_id"] = trace.format_trace_id(span.trace_id)
        fields["span_id"] = trace.format_span_id(span.span_id)
    return fields


@contextmanager
def logged_as(request_id: str) -> Iterator[None]:
    """Have every record carry a request's id while the context lasts, in this task and those that it starts."""
    token = _REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        _REQUEST_ID.reset(token)


def _chain(error: BaseException) -> list[BaseException]:
    """Return an exception after those that led to it."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return links[::-1]


def _without_message(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{frames}{type(error).__module__}.{type(error).__qualname__}"


class _OutputHandler(logging.Handler):
    """Hands records to an output, which writes them when it can; `logging.shutdown` waits a moment for it."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written."""
        try:
            self._output.write(f"{self.format(record)}\n")
        except Exception:  # of formatting; the module's own way with it
            self.handleError(record)

    def flush(self) -> None:
        """Wait a moment for what is to be written."""
        self._output.drain()


def configure(service: str, level: str, *, exception_messages: bool = True) -> None:
    """Send every logger's records of at least `level` to stderr as JSON; also warnings, and what ends the process."""
    output = take_over_stderr()
    handler, formatter = _OutputHandler(output), JsonFormatter(service, exception_messages=exception_messages)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    output.on_dropped = partial(_dropped, formatter)
    sys.excepthook = _report_uncaught
    threading.excepthook = lambda args: _report_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    for chatty in ("httpx", "huggingface_hub", "filelock", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _dropped(formatter: logging.Formatter, num_lines: int) -> str:
    names = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
    return formatter.format(logging.makeLogRecord({**names, "msg": "lines could not be written", "lines": num_lines}))


def _report_uncaught(kind: type[BaseException], error: BaseException | None, trace_back: TracebackType | None) -> None:
    """Log what nobody caught: in the main thread it ends the process."""
    if error is not None and not issubclass(kind, SystemExit):
        logger.critical("ended by an error", exc_info=(kind, error, trace_back))
