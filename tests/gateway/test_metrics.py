"""Each end of a request moves the counters that it should, and no others."""

import asyncio

import grpc
import httpx
import pytest

from common.errors import OverloadedError, PrefillFailedError
from common.settings import DEFAULT_MODEL
from services.gateway.text_model import TextModel
from tests.gateway.conftest import (
    LENGTH,
    STOP,
    Gateway,
    ScriptedDecode,
    StartGateway,
    events,
    grpc_worker,
    listening,
    until,
)
from tests.samples import Samples, changes, of_text

PROMPT_TOKENS = 1
"""Of the prompt `Once`."""


async def scrape(gateway: Gateway) -> Samples:
    return of_text((await gateway.http.get("/metrics")).text)


def answered(finish_reason: str, tokens: int, cached: int = 0) -> Samples:
    """Return what a request of one answer changes."""
    expected: Samples = {
        f"structkv_request_success_total{{finish_reason={finish_reason}}}": 1,
        "structkv_prompt_tokens_total": PROMPT_TOKENS,
        "structkv_cached_prompt_tokens_total": cached,
        "structkv_generation_tokens_total": tokens,
        "structkv_request_prompt_tokens_count": 1,
        "structkv_request_generation_tokens_count": 1,
        "structkv_time_to_first_token_seconds_count": 1,
        "structkv_inter_token_latency_seconds_count": tokens - 1,
        "structkv_e2e_request_latency_seconds_count": 1,
    }
    return {name: value for name, value in expected.items() if value}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("finish", "word"), [(STOP, "stop"), (LENGTH, "length")])
async def test_a_finished_answer(gateway: Gateway, stream: bool, finish: int, word: str) -> None:
    gateway.decode.script = events([10, 11, 12], finish)
    before = await scrape(gateway)
    assert (await gateway.complete(stream=stream)).status_code == 200
    assert changes(before, await scrape(gateway)) == answered(word, 3)


async def test_an_answer_that_ends_with_a_stop_string(gateway: Gateway, text_model: TextModel) -> None:
    before = await scrape(gateway)
    assert (await gateway.complete(stop=" a")).status_code == 200
    assert changes(before, await scrape(gateway)) == answered("stop", 2)


async def test_a_prompt_whose_skeleton_was_in_the_store(gateway: Gateway) -> None:
    gateway.decode.script = events([10])
    gateway.decode.script[0].skeleton.cached_tokens = PROMPT_TOKENS
    before = await scrape(gateway)
    await gateway.complete()
    assert changes(before, await scrape(gateway)) == answered("length", 1, cached=PROMPT_TOKENS)


def rejected(reason: str) -> Samples:
    return {f"structkv_requests_rejected_total{{reason={reason}}}": 1}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"temperature": "hot"}, "invalid"),
        ({"model": "another"}, "model_not_found"),
        ({"max_tokens": 10**6}, "context_length"),
        ({"user": "x" * 2000}, "too_large"),
    ],
)
async def test_a_refused_request(start_gateway: StartGateway, body: dict[str, object], reason: str) -> None:
    gateway = await start_gateway(max_body_bytes=1000)
    before = await scrape(gateway)
    assert (await gateway.complete(**body)).status_code in {400, 404, 413}
    assert changes(before, await scrape(gateway)) == rejected(reason)


async def test_a_request_without_a_key(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_keys="a-key-of-sixteen-or-more")
    before = await scrape(gateway)
    assert (await gateway.complete()).status_code == 401
    assert changes(before, await scrape(gateway)) == rejected("unauthorized")


async def test_a_path_that_is_none(gateway: Gateway) -> None:
    before = await scrape(gateway)
    assert (await gateway.http.get("/v1/nothing")).status_code == 404
    assert changes(before, await scrape(gateway)) == rejected("invalid")


async def test_a_gateway_that_drains(gateway: Gateway) -> None:
    before = await scrape(gateway)
    gateway.app.state.drain.begin()
    assert (await gateway.complete()).status_code == 503
    assert changes(before, await scrape(gateway)) == rejected("draining")


async def test_an_error_that_nobody_foresaw(
    gateway: Gateway, text_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("what was said")

    monkeypatch.setattr(TextModel, "completion_prompt", fail)
    before = await scrape(gateway)
    assert (await gateway.complete()).status_code == 500
    assert changes(before, await scrape(gateway)) == rejected("internal")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OverloadedError("full"), "overloaded"), (PrefillFailedError("died"), "unavailable")],
)
async def test_a_request_that_no_worker_takes(gateway: Gateway, error: Exception, reason: str) -> None:
    gateway.decode.script = [error]
    before = await scrape(gateway)
    assert (await gateway.complete()).status_code in {429, 503}
    changed = changes(before, await scrape(gateway))
    assert changed.pop("structkv_decode_failovers_total{phase=first token}") == len(gateway.decode.requests)
    assert changed == rejected(reason)


async def test_a_worker_that_fails_in_the_middle(start_gateway: StartGateway) -> None:
    script = events([10, 11, 12])
    failing = ScriptedDecode([*script[:2], grpc.StatusCode.UNAVAILABLE])
    healthy = ScriptedDecode(script)
    async with grpc_worker(failing) as first, grpc_worker(healthy) as second:
        gateway = await start_gateway(decode_workers=f"{first},{second}")
        before = await scrape(gateway)
        assert (await gateway.complete(stream=True)).status_code == 200
        changed = changes(before, await scrape(gateway))
    assert len(failing.requests) == len(healthy.requests) == 1
    workers = {name: changed.pop(name) for name in list(changed) if name.startswith("structkv_workers")}
    failed_over = {"structkv_decode_failovers_total{phase=answer}": 1, "structkv_decode_worker_rests_total": 1}
    assert changed == answered("length", 3) | failed_over
    assert workers["structkv_workers{kind=decode,state=unreachable}"] == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_the_deadline(gateway: Gateway, stream: bool) -> None:
    gateway.decode.script.insert(1, 30.0)
    before = await scrape(gateway)
    body = {"model": DEFAULT_MODEL, "prompt": "Once", "stream": stream}
    reply = await gateway.http.post("/v1/completions", json=body, headers={"X-Request-Timeout": "0.3"})
    assert "deadline_exceeded" in reply.text
    changed = changes(before, await scrape(gateway))
    assert changed.pop("structkv_generation_tokens_total") == 1
    assert changed.pop("structkv_prompt_tokens_total") == PROMPT_TOKENS
    assert changed.pop("structkv_time_to_first_token_seconds_count") == 1
    assert changed.pop("structkv_request_prompt_tokens_count") == 1
    assert changed == rejected("deadline")


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves(gateway: Gateway, stream: bool, after: int) -> None:
    gateway.decode.script.insert(after, asyncio.Event())
    before = await scrape(gateway)
    async with listening(gateway.app) as url, httpx.AsyncClient(base_url=url) as client:
        body = {"model": DEFAULT_MODEL, "prompt": "Once", "stream": stream}
        asking = asyncio.create_task(client.post("/v1/completions", json=body))

        async def running() -> bool:
            started = (await scrape(gateway))["structkv_generation_tokens_total"] > before[
                "structkv_generation_tokens_total"
            ]
            return bool(gateway.decode.requests) and started == bool(after)

        await until(running)
        assert changes(before, await scrape(gateway))["structkv_requests_in_flight"] == 1
        asking.cancel()

        async def idle() -> bool:
            return (await scrape(gateway))["structkv_requests_in_flight"] == 0

        await until(idle)
    changed = changes(before, await scrape(gateway))
    assert changed.pop("structkv_requests_cancelled_total") == 1
    assert {name for name in changed if "success" in name or "rejected" in name or "e2e" in name} == set()
    assert changed.get("structkv_generation_tokens_total", 0) == after


async def test_the_workers_that_are_known(start_gateway: StartGateway) -> None:
    async with grpc_worker(ScriptedDecode()) as serving:
        gateway = await start_gateway(decode_workers=f"{serving},127.0.0.1:1")
        samples = await scrape(gateway)
    kinds = ("prefill", "decode")
    counts = {
        kind: [samples[f"structkv_workers{{kind={kind},state={state}}}"] for state in ("serving", "unreachable")]
        for kind in kinds
    }
    assert counts == {"prefill": [1, 0], "decode": [1, 1]}


async def test_two_gateways_in_a_process_count_for_themselves(start_gateway: StartGateway) -> None:
    first, second = await start_gateway(), await start_gateway()
    await first.complete()
    assert (await scrape(first))["structkv_request_success_total{finish_reason=length}"] == 1
    assert (await scrape(second))["structkv_request_success_total{finish_reason=length}"] == 0


async def test_nothing_of_a_request_becomes_a_label(gateway: Gateway) -> None:
    word = "heliotrope"
    await gateway.complete(prompt=word, model=word, user=word)
    await gateway.http.request("HELIOTROPE", f"/v1/{word}", headers={"X-Request-Id": word})
    assert word not in (await gateway.http.get("/metrics")).text.lower()
