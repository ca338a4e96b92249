"""Token ids are a prompt in another alphabet: the workers do not log them either."""

import logging
from collections.abc import Callable

import grpc
import pytest

from common.model.decoder import DecoderModel
from tests.conftest import StartWorkers

PROMPT = [71, 83, 97, 61, 53]


async def test_no_token_ids_are_logged(
    start_workers: StartWorkers, tiny: Callable[[str], DecoderModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    workers = await start_workers(tiny("llama"))
    answer = await workers.tokens(workers.request(PROMPT, 4))
    with pytest.raises(grpc.aio.AioRpcError):
        await workers.generate(workers.request([*PROMPT, 10**6], 4))
    workers.prefill_engine.check = _fail  # type: ignore[method-assign]
    with pytest.raises(grpc.aio.AioRpcError):
        await workers.generate(workers.request(PROMPT, 4))
    assert "request failed" in caplog.text
    for tokens in (PROMPT, answer):
        assert str(tokens)[1:-1] not in caplog.text


def _fail(token_ids: list[int]) -> None:
    raise RuntimeError("no such kernel")
