"""The decode worker with a real prefill worker: batching, memory, cancellation, failures."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest

from common.model.decoder import DecoderModel
from common.pb import decode_pb2
from common.skeleton.selection import METHODS, Selection
from services.prefill.engine import PrefillEngine
from services.prefill.selectors.registry import selector_for
from tests.conftest import FULL, StartWorkers, Workers
from tests.families import tiny_model

PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(201)]
SKELETON = Selection(kv_retention=0.2, struct_retention=0.4, floor_tokens=32, pivot_layer=3)


@pytest.fixture
def model(tiny: Callable[[str], DecoderModel]) -> DecoderModel:
    return tiny("llama")


def quantised_bytes(bits: int) -> int:
    """Return the size of a layer's 41 tokens: a twelfth in bfloat16, the others' scales, zeros and codes."""
    edges, rest, heads, size = 3, 38, 2, 16
    scales = size + rest  # a channel's for its keys, a token's for its values
    return heads * (2 * edges * size * 2 + scales * (2 + 2) + 2 * rest * size * bits // 8)


async def test_the_first_event_says_what_was_kept_and_sent(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model)
    first, *rest = await workers.generate(workers.request(PROMPT, 5, SKELETON))
    stats = first.skeleton
    assert stats.pivot_layer == 3
    assert list(stats.kept_tokens_per_layer) == [41] * 6
    assert stats.skeleton_bytes == 6 * quantised_bytes(8)
    assert stats.full_kv_bytes == 6 * 201 * 2 * 2 * 16 * 2
    assert stats.prefill_seconds > 0
    assert stats.transfer_seconds >= 0
    assert not any(event.HasField("skeleton") for event in rest)
    assert rest[-1].finish_reason == decode_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize(("codec", "layer_bytes"), [("raw", 41 * 2 * 2 * 16 * 2), ("int4", quantised_bytes(4))])
async def test_a_skeleton_crosses_in_the_codec_asked_for(
    codec: str, layer_bytes: int, model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model)
    events = await workers.generate(workers.request(PROMPT, 5, replace(SKELETON, codec=codec)))
    assert events[0].skeleton.skeleton_bytes == 6 * layer_bytes
    assert sum(len(event.token_ids) for event in events) == 5


async def test_a_codec_that_the_model_does_not_fit_is_refused(start_workers: StartWorkers) -> None:
    model = DecoderModel(tiny_model("llama"), "odd")
    model.spec = replace(model.spec, head_dim=15)
    workers = await start_workers(model)
    with pytest.raises(grpc.aio.AioRpcError, match="codec int4 needs heads of an even size") as refused:
        await workers.tokens(workers.request(PROMPT, 5, replace(SKELETON, codec="int4")))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await workers.until_idle()


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_answers(method: str, model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model)
    selection = Selection.of({"method": method, "kv_tokens": 60, "floor_tokens": 32})
    events = await workers.generate(workers.request(PROMPT, 5, selection))
    assert sum(len(event.token_ids) for event in events) == 5
    kept = events[0].skeleton.kept_tokens_per_layer
    assert sum(kept) / 6 == (201 if method == "full" else 60)
    await workers.until_idle()


async def test_a_codec_that_the_model_did_not_pass_with_is_refused(
    model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model, codecs=("raw", "int8"))
    with pytest.raises(grpc.aio.AioRpcError, match="codec int4 is refused") as refused:
        await workers.tokens(workers.request(PROMPT, 5, replace(SKELETON, codec="int4")))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    whole = replace(FULL, codec="int4")
    assert len(await workers.tokens(workers.request(PROMPT, 5, whole))) == 5, "a whole prompt crosses as it is"


async def test_a_new_prompt_of_chosen_tokens_goes_on_at_its_own_length(
    model: DecoderModel, start_workers: StartWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = await start_workers(model)
    selection = Selection.of({"method": "gemfilter", "kv_tokens": 200, "pivot_layer": 2, "floor_tokens": 32})
    engine, decisions = PrefillEngine(model), []
    selector = selector_for(selection, engine.scope(PROMPT))
    select = selector.select
    monkeypatch.setattr(selector, "select", lambda view: decisions.append(select(view)) or decisions[-1])
    list(engine.run_all(PROMPT, [selector]))
    chosen = decisions[-1].going_on.tolist()
    assert len(chosen) == 200
    answer = await workers.tokens(workers.request(PROMPT, 8, selection))
    assert answer == await workers.tokens(workers.request([PROMPT[i] for i in chosen], 8))


async def test_a_stop_token_ends_the_answer_and_is_its_last_token(
    model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model)
    tokens = await workers.tokens(workers.request(PROMPT, 20))
    stop = tokens[7]
    events = await workers.generate(workers.request(PROMPT, 20, stop_token_ids=[stop]))
    assert [t for event in events for t in event.token_ids] == tokens[: tokens.index(stop) + 1]
    assert events[-1].finish_reason == decode_pb2.FINISH_REASON_STOP


async def test_a_seeded_answer_is_the_same_alone_and_in_company(
    model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model)

    def request(seed: int) -> decode_pb2.GenerateRequest:
        return workers.request(PROMPT, 30, SKELETON, temperature=1.5, top_p=0.95, seed=seed)

    alone = [await workers.tokens(request(seed)) for seed in range(4)]
    together = await asyncio.gather(*(workers.tokens(request(seed)) for seed in range(4)))
    assert together == alone
    assert len({tuple(answer) for answer in alone}) == 4


@pytest.mark.parametrize("selection", [FULL, SKELETON], ids=["full", "skeleton"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
async def test_an_answer_goes_on_from_tokens_chosen_elsewhere(
    family: str, selection: Selection, tiny: Callable[[str], DecoderModel], start_workers: StartWorkers
) -> None:
    workers = await start_workers(tiny(family))
    for sampling in ({}, {"temperature": 1.2, "seed": 7}):
        whole = await workers.tokens(workers.request(PROMPT, 60, selection, **sampling))
        for delivered in (1, 10, 59):
            request = workers.request(PROMPT, 60, selection, **sampling)
            request.answers.add(token_ids=whole[:delivered])
            assert await workers.tokens(request) == whole[delivered:]
    await workers.until_idle()


@pytest.mark.parametrize("generated", [[5] * 60, [256]])
async def test_an_answer_that_cannot_go_on_is_refused(
    generated: list[int], model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model)
    request = workers.request(PROMPT, 60)
    request.answers.add(token_ids=generated)
    with pytest.raises(grpc.aio.AioRpcError, match="answer so far") as refused:
        await workers.tokens(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_answers_are_right_when_memory_runs_out_midway(model: DecoderModel, start_workers: StartWorkers) -> None:
    roomy = await start_workers(model)
    prompts = [PROMPT[i:] for i in range(0, 60, 10)]
    expected = [await roomy.tokens(roomy.request(prompt, 400)) for prompt in prompts]
    # One answer needs at most 38 blocks in each of six layers; with room for two, the others are swapped.
    tight = await start_workers(model, num_blocks=6 * 38 * 2)
    answers = await asyncio.gather(*(tight.tokens(tight.request(prompt, 400)) for prompt in prompts))
    assert answers == expected
    await tight.until_idle()


async def test_a_request_that_could_never_fit_is_refused(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model, num_blocks=30)
    with pytest.raises(grpc.aio.AioRpcError, match="lower kv_retention or max_tokens") as refused:
        await workers.tokens(workers.request(PROMPT, 4))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_prompt_that_is_too_long_is_refused(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model)
    with pytest.raises(grpc.aio.AioRpcError, match="exceed the model's length of 1024") as refused:
        await workers.tokens(workers.request(PROMPT, 1024 - 200))
    assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_requests_beyond_the_batch_wait_their_turn(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model, max_running=2)
    events = await asyncio.gather(*(workers.generate(workers.request(PROMPT, 20)) for _ in range(6)))
    assert all(event == events[0][1:] for event in [e[1:] for e in events])
    assert max(e[0].skeleton.queue_seconds for e in events) > 0


class TestLeaving:
    """A client that goes away."""

    @pytest.fixture
    async def workers(self, start_workers: StartWorkers) -> Workers:
        model = DecoderModel(tiny_model("llama", num_hidden_layers=60, max_position_embeddings=8192), "deep")
        return await start_workers(model, num_blocks=200_000)

    async def test_during_decode_frees_the_memory(self, workers: Workers) -> None:
        call = workers.stub.Generate(workers.request(PROMPT, 5000))
        assert await call.read() != grpc.aio.EOF
        allocator = workers.decode_engine.pool.allocator
        assert allocator.num_free < allocator.num_blocks
        call.cancel()
        await workers.until_idle()

    async def test_during_prefill_stops_it_and_frees_the_memory(
        self, workers: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layers = 0
        run = workers.prefill_engine.run

        def counting(*args):
            nonlocal layers
            for output in run(*args):
                layers += 1
                yield output

        monkeypatch.setattr(workers.prefill_engine, "run", counting)
        call = workers.stub.Generate(workers.request([5] * 6000, 10))
        reading = asyncio.ensure_future(call.read())
        while layers < 2:
            await asyncio.sleep(0.001)
        call.cancel()
        seen = layers
        await workers.until_idle()
        await asyncio.gather(reading, return_exceptions=True)
        assert seen < 30
        assert layers <= seen + 3, "the running layer, and what started while the cancellation travelled"

    async def test_while_waiting_for_memory_leaves_the_queue(self, workers: Workers) -> None:
        holders = [workers.stub.Generate(workers.request(PROMPT, 5000)) for _ in range(16)]
        for holder in holders:
            await holder.read()
        waiting = workers.stub.Generate(workers.request(PROMPT, 5))
        reading = asyncio.ensure_future(waiting.read())
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        for holder in holders:
            holder.cancel()
        await workers.until_idle()
        assert len(await workers.tokens(workers.request(PROMPT, 3))) == 3


class TestPrefillWorkers:
    """Prefill workers that are away or wrong."""

    async def test_the_next_one_is_tried(self, model: DecoderModel, start_workers: StartWorkers) -> None:
        workers = await start_workers(model)
        request = workers.request(PROMPT, 5)
        request.prefill_targets.insert(0, "127.0.0.1:1")
        assert len(await workers.tokens(request)) == 5

    async def test_none_is_an_error_and_the_memory_is_free(
        self, model: DecoderModel, start_workers: StartWorkers
    ) -> None:
        workers = await start_workers(model)
        request = workers.request(PROMPT, 5)
        request.prefill_targets[:] = ["127.0.0.1:1"]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await workers.tokens(request)
        assert failed.value.code() is grpc.StatusCode.ABORTED
        await workers.until_idle()

    async def test_another_model_is_refused(self, model: DecoderModel, start_workers: StartWorkers) -> None:
        workers = await start_workers(model)
        other = await start_workers(DecoderModel(tiny_model("llama"), "other"))
        request = workers.request(PROMPT, 5)
        request.prefill_targets[:] = [other.prefill_target]
        with pytest.raises(grpc.aio.AioRpcError, match="this worker's model is other") as failed:
            await workers.tokens(request)
        assert failed.value.code() is grpc.StatusCode.ABORTED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "magic"),
        ("codec", ""),
        ("codec", "int2"),
        ("kv_retention", 0.0),
        ("kv_retention", 1.5),
        ("struct_retention", -1.0),
    ],
)
async def test_a_selection_out_of_range_is_refused_by_name(
    field: str, value: object, model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model)
    request = workers.request(PROMPT, 5, FULL)
    setattr(request.selection, field, value)
    with pytest.raises(grpc.aio.AioRpcError, match=field) as refused:
        await workers.tokens(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
