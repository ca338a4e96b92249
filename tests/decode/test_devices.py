"""Prefill and decode workers on devices of their own, and a worker that decodes with the paged kernels."""

import asyncio
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from tests.conftest import FULL, StartWorkers, Workers
from tests.families import tiny_model

PROMPTS = [[3 + (i * i * 31 + i * shift) % 250 for i in range(150)] for shift in (7, 11)]
SKELETON = Selection(kv_retention=0.2, struct_retention=0.4, floor_tokens=32, pivot_layer=3, codec="int8")

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")


async def answers(workers: Workers, max_tokens: int) -> list[list[int]]:
    """Each prompt's answer, whole and from a skeleton, all four decoded together."""
    requests = [workers.request(prompt, max_tokens, selection) for prompt in PROMPTS for selection in (FULL, SKELETON)]
    tokens = await asyncio.gather(*(workers.tokens(request) for request in requests))
    await workers.until_idle()
    return tokens


@pytest.mark.skipif(torch.cuda.is_available() or find_spec("triton") is None, reason="Triton does not interpret here")
async def test_a_worker_decodes_with_paged_kernels(
    tiny: Callable[[str], DecoderModel], start_workers: StartWorkers
) -> None:
    model = tiny("llama")
    expected = await answers(await start_workers(model), 5)
    assert await answers(await start_workers(model, backend="paged"), 5) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize(
    ("prefill_device", "decode_device"),
    [
        ("cpu", "cuda:0"),
        ("cuda:0", "cpu"),
        ("cuda:0", "cuda:0"),
        pytest.param("cuda:0", "cuda:1", marks=two_gpus),
    ],
)
async def test_answers_are_the_same_wherever_the_workers_are(
    prefill_device: str,
    decode_device: str,
    family: str,
    tiny: Callable[[str], DecoderModel],
    start_workers: StartWorkers,
) -> None:
    expected = await answers(await start_workers(tiny(family)), 40)

    def on(device: str) -> DecoderModel:
        return DecoderModel(tiny_model(family).to(device), f"tiny-{family}")

    workers = await start_workers(on(decode_device), prefill_model=on(prefill_device))
    assert await answers(workers, 40) == expected
