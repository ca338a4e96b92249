"""Drawn answers of the real model: alone, side by side, of one request, and taken over, they are the same."""

import asyncio

import pytest

from common.model import decoder
from common.model.decoder import DecoderModel
from common.pb import decode_pb2
from common.settings import DEFAULT_MODEL
from tests.conftest import StartWorkers, Workers

PROMPT = list(range(4000, 4040))
ANSWERS, TOKENS = 8, 8


@pytest.fixture(scope="module")
def model() -> DecoderModel:
    return decoder.load(DEFAULT_MODEL, device="cpu", dtype="float32")


def drawn(workers: Workers, seed: int) -> decode_pb2.GenerateRequest:
    return workers.request(PROMPT, TOKENS, temperature=1.0, seed=seed)


async def test_a_drawn_answer_does_not_depend_on_the_batch(model: DecoderModel, start_workers: StartWorkers) -> None:
    workers = await start_workers(model)
    alone = [await workers.tokens(drawn(workers, seed)) for seed in range(ANSWERS)]
    together = await asyncio.gather(*(workers.tokens(drawn(workers, seed)) for seed in range(ANSWERS)))
    several = drawn(workers, 0)
    several.answers.extend(decode_pb2.AnswerSoFar() for _ in range(ANSWERS))
    of_one_request: list[list[int]] = [[] for _ in range(ANSWERS)]
    for event in await workers.generate(several):
        of_one_request[event.answer] += event.token_ids
    taken_over = [drawn(workers, seed) for seed in range(ANSWERS)]
    for request, tokens in zip(taken_over, alone, strict=True):
        request.answers.add(token_ids=tokens[: TOKENS // 2])
    rest = await asyncio.gather(*(workers.tokens(request) for request in taken_over))
    resumed = [tokens[: TOKENS // 2] + more for tokens, more in zip(alone, rest, strict=True)]
    for others in (together, of_one_request, resumed):
        assert others == alone
    assert len({tuple(tokens) for tokens in alone}) == ANSWERS
