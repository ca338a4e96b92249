"""What the OpenAPI document says is what the gateway does: schemathesis sends what it allows, and what it does not."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.openapi import from_url
from schemathesis.schemas import APIOperation

from services.gateway.http.deadline import TIMEOUT_HEADER
from services.gateway.server import create_app
from services.gateway.settings import GatewaySettings
from tests.gateway.conftest import ScriptedDecode, as_asked, grpc_worker, listening

# A schema knows neither the vocabulary nor what fits into the context, and a wrong request may ask for no time at all.
CONFIG = {
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503, 504]},
        "positive_data_acceptance": {"expected-statuses": ["2xx", 400, 404]},
        "negative_data_rejection": {"expected-statuses": [400, 404, 504]},
    }
}


async def _serve(url: "asyncio.Future[str]", stop: asyncio.Event) -> None:
    decode = ScriptedDecode(script_for=as_asked)
    async with grpc_worker(decode) as decode_address, grpc_worker() as prefill_address:
        app = create_app(GatewaySettings(decode_workers=decode_address, prefill_workers=prefill_address))
        async with app.router.lifespan_context(app), listening(app) as address:
            url.set_result(address)
            await stop.wait()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return a gateway's address: in a thread, for the tests that schemathesis makes do not wait."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    url = loop.create_future()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(url, stop)))
    thread.start()
    yield asyncio.run_coroutine_threadsafe(asyncio.wait_for(asyncio.shield(url), 30), loop).result()
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def operations(address: str) -> list[APIOperation]:
    """Return all that the document describes."""
    schema = from_url(f"{address}/openapi.json", config=schemathesis.Config.from_dict(CONFIG))
    return [found.ok() for found in schema.get_all_operations()]


def send(operation: APIOperation, mode: GenerationMode) -> list[int]:
    """Send an operation's generated requests and check every answer; return the statuses."""
    statuses = []

    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE:
            case.headers.pop(TIMEOUT_HEADER, None)  # most of the times that it allows are too short for an answer
        statuses.append(case.call_and_validate().status_code)

    check()
    return statuses


def test_what_the_document_allows_is_answered_as_it_says(operations: list[APIOperation]) -> None:
    for operation in operations:
        statuses = send(operation, GenerationMode.POSITIVE)
        if operation.method == "post":
            assert statuses.count(200) > 10, "most of what is allowed asks for something"


def test_what_it_does_not_allow_is_refused(operations: list[APIOperation]) -> None:
    with_bodies = [operation for operation in operations if operation.method == "post"]
    assert {operation.path for operation in with_bodies} == {
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
    }
    for operation in with_bodies:
        send(operation, GenerationMode.NEGATIVE)
