"""Penalties, min_tokens and log probabilities through the workers, against transformers."""

from collections.abc import Callable

import grpc
import pytest
import torch

from common.errors import InvalidRequestError, from_rpc
from common.model.decoder import DecoderModel
from tests.conftest import StartWorkers
from tests.families import tiny_model

PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(201)]


@pytest.fixture
def model(tiny: Callable[[str], DecoderModel]) -> DecoderModel:
    return tiny("llama")


@pytest.mark.parametrize("penalty", [1.3, 0.8])
async def test_a_penalised_answer_is_that_of_transformers(
    penalty: float, model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model)
    prompt = torch.tensor([PROMPT])
    theirs = tiny_model("llama").generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        repetition_penalty=penalty,
        max_new_tokens=40,
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = await workers.tokens(workers.request(PROMPT, 40, repetition_penalty=penalty))
    assert ours == theirs[0, len(PROMPT) :].tolist()
    assert ours != await workers.tokens(workers.request(PROMPT, 40))


async def test_log_probabilities_are_the_models_own(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model)
    request = workers.request(PROMPT, 12, temperature=1.3, presence_penalty=1.5, logit_bias={9: 3.0}, top_logprobs=4)
    events = await workers.generate(request)
    tokens = [token for event in events for token in event.token_ids]
    with torch.inference_mode():
        logits = tiny_model("llama")(torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 : -1]
    expected = logits.float().log_softmax(dim=-1)
    for event, row, token in zip(events, expected, tokens, strict=True):
        (found,) = event.logprobs
        values, top = row.topk(4)
        assert found.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert list(found.top_token_ids) == top.tolist()
        assert list(found.top_logprobs) == pytest.approx(values.tolist(), abs=1e-4)
    request.sampling.ClearField("top_logprobs")
    silent = await workers.generate(request)
    assert not any(event.logprobs for event in silent)
    assert [token for event in silent for token in event.token_ids] == tokens


async def test_stop_tokens_wait_for_min_tokens(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model)
    plain = await workers.tokens(workers.request(PROMPT, 30))
    stop = plain[0]
    assert await workers.tokens(workers.request(PROMPT, 30, stop_token_ids=[stop])) == [stop]
    held_back = await workers.tokens(workers.request(PROMPT, 30, stop_token_ids=[stop], min_tokens=6))
    assert stop not in held_back[:6]
    assert len(held_back) > 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_tokens", 6),
        ("frequency_penalty", 2.5),
        ("presence_penalty", float("nan")),
        ("repetition_penalty", -1.0),
        ("logit_bias", {5: 101.0}),
        ("logit_bias", {256: 1.0}),
        ("stop_token_ids", [256]),
        ("top_logprobs", 21),
    ],
)
async def test_what_is_out_of_range_is_refused_by_name(
    name: str, value: object, model: DecoderModel, start_workers: StartWorkers
) -> None:
    workers = await start_workers(model)
    with pytest.raises(grpc.aio.AioRpcError, match=name) as refused:
        await workers.tokens(workers.request(PROMPT, 5, **{name: value}))
    assert isinstance(from_rpc(refused.value), InvalidRequestError)
