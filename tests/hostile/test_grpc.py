"""The workers under malformed requests."""

import random
from collections.abc import Callable
from typing import Any

import grpc
import psutil
import pytest

from common.model.decoder import DecoderModel
from common.pb import decode_pb2, prefill_pb2
from common.skeleton.selection import METHODS, Selection
from tests.conftest import StartWorkers, Workers

NUM_REQUESTS = 1500
GENERATE, PREFILL = "/structkv.v1.Decode/Generate", "/structkv.v1.Prefill/Prefill"
_NUMBERS = [0, 1, 2, 7, 31, 2**16, 2**31, 2**32 - 1]
_REALS = [0.0, -1.0, 0.1, 1.0, 1.5, 1e-300, 1e300, float("nan"), float("inf")]
_WORDS = ["", "raw", "peak", "head", "online", "x" * 1000, "\x00", *METHODS]
_TARGETS = ["", "nowhere", "127.0.0.1:1", "[::1", "unix:/nonexistent", "dns:///:::", "a" * 500, "127.0.0.1:99999"]
FAULTS_OF_THE_CALLER = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def bend(message: Any, dice: random.Random) -> None:
    """Set some of a message's fields, and of the messages in it, to what they may hold but should not."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() > 0.3 or field.name == "request_id":
            continue
        if field.message_type is not None:
            bend_nested(getattr(message, field.name), field, dice)
        elif field.is_repeated:
            values = _TARGETS if field.type == field.TYPE_STRING else _NUMBERS
            getattr(message, field.name)[:] = dice.choices(values, k=dice.randrange(4))
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, dice.choice(_WORDS))
        elif field.type == field.TYPE_DOUBLE:
            setattr(message, field.name, dice.choice(_REALS))
        elif field.type == field.TYPE_SINT32:
            setattr(message, field.name, dice.choice([0, 1, -1, 2**31 - 1, -(2**31)]))
        elif field.type == field.TYPE_BOOL:
            setattr(message, field.name, True)
        else:
            setattr(message, field.name, dice.choice(_NUMBERS))


def bend_nested(value: Any, field: Any, dice: random.Random) -> None:
    """Bend a message, or the entries of a map or a list."""
    if field.message_type.GetOptions().map_entry:
        for _ in range(dice.randrange(4)):
            value[dice.choice(_NUMBERS)] = dice.choice(_REALS)
    elif field.is_repeated:
        for _ in range(dice.choice([1, 2, 3, 17])):
            bend(value.add(), dice)
    else:
        bend(value, dice)


async def call(channel: grpc.aio.Channel, method: str, data: bytes) -> grpc.aio.AioRpcError | None:
    """Send bytes as they are; return the error, None if it was answered."""
    try:
        async for _ in channel.unary_stream(method)(data, timeout=20):
            pass
    except grpc.aio.AioRpcError as error:
        return error
    return None


@pytest.fixture
async def workers(start_workers: StartWorkers, tiny: Callable[[str], DecoderModel]) -> Workers:
    return await start_workers(tiny("llama"))


def requests(workers: Workers) -> dict[str, Any]:
    sound = workers.request([5, 6, 7] * 60, 3, Selection(kv_retention=0.3))
    prefill = prefill_pb2.PrefillRequest(
        request_id="test",
        model_fingerprint=workers.prefill_engine.model.spec.fingerprint,
        prompt_token_ids=sound.prompt_token_ids,
        selection=sound.selection,
    )
    return {GENERATE: sound, PREFILL: prefill}


@pytest.mark.parametrize("method", [GENERATE, PREFILL])
async def test_bent_requests_are_the_callers_fault_and_cost_nothing(method: str, workers: Workers) -> None:
    target = workers.decode_target if method == GENERATE else workers.prefill_target
    dice, process, before = random.Random(3), psutil.Process(), 0
    async with grpc.aio.insecure_channel(target) as channel:
        for number in range(NUM_REQUESTS):
            message = decode_pb2.GenerateRequest() if method == GENERATE else prefill_pb2.PrefillRequest()
            message.CopyFrom(requests(workers)[method])
            bend(message, dice)
            error = await call(channel, method, message.SerializeToString())
            assert error is None or error.code() in FAULTS_OF_THE_CALLER, f"{error.code()} {error.details()}: {message}"
            if number == NUM_REQUESTS // 3:
                before = process.memory_info().rss
        assert process.memory_info().rss - before < 32 * 2**20
        await workers.until_idle()
        assert await call(channel, method, requests(workers)[method].SerializeToString()) is None


async def test_bytes_that_are_no_message_are_refused(workers: Workers) -> None:
    dice = random.Random(5)
    for method, target in ((GENERATE, workers.decode_target), (PREFILL, workers.prefill_target)):
        async with grpc.aio.insecure_channel(target) as channel:
            for _ in range(NUM_REQUESTS // 2):
                sound = bytearray(requests(workers)[method].SerializeToString())
                for _ in range(dice.randrange(1, 20)):
                    sound[dice.randrange(len(sound))] = dice.randrange(256)
                data = bytes(sound) if dice.random() < 0.7 else dice.randbytes(dice.randrange(300))
                error = await call(channel, method, data)
                if error is not None and error.code() is grpc.StatusCode.INTERNAL:
                    assert "deserializing" in (error.details() or "")
            await workers.until_idle()
            assert await call(channel, method, requests(workers)[method].SerializeToString()) is None
