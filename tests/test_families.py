"""With `full`, prefill and decode together are transformers' own greedy `generate`, for every family."""

import asyncio
from collections.abc import Callable

import pytest
import torch

from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from tests.conftest import StartWorkers
from tests.families import FAMILIES, SLIDING_WINDOW, tiny_model

NEW_TOKENS = 24


def prompts(count: int) -> list[list[int]]:
    """Return prompts of different lengths, the longer ones past any sliding window."""
    generator = torch.Generator().manual_seed(7)
    lengths = [19 + 23 * i for i in range(count)]
    return [torch.randint(3, 256, (length,), generator=generator).tolist() for length in lengths]


def reference(family: str, prompt: list[int]) -> list[int]:
    """Return the tokens of transformers' own greedy generation."""
    output = tiny_model(family).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
async def test_eight_requests_at_once_answer_like_generate(
    family: str, tiny: Callable[[str], DecoderModel], start_workers: StartWorkers
) -> None:
    workers = await start_workers(tiny(family))
    requests = [workers.request(prompt, NEW_TOKENS, stop_token_ids=[2]) for prompt in prompts(8)]
    answers = await asyncio.gather(*(workers.tokens(request) for request in requests))
    assert answers == [reference(family, prompt) for prompt in prompts(8)]
    assert len({tuple(answer) for answer in answers}) > 4, "answers that are all alike prove nothing"
    await workers.until_idle()


@pytest.mark.parametrize("method", ["full", "structkv"])
async def test_sliding_window_layers_keep_exactly_their_window(
    method: str, tiny: Callable[[str], DecoderModel], start_workers: StartWorkers
) -> None:
    workers = await start_workers(tiny("gemma3_text"))
    prompt = prompts(8)[7]
    selection = Selection(method=method, floor_tokens=16, struct_retention=1.0)
    first, *_ = await workers.generate(workers.request(prompt, 4, selection))
    windowed = [tokens for layer, tokens in enumerate(first.skeleton.kept_tokens_per_layer) if layer % 3 != 2]
    assert windowed == [SLIDING_WINDOW] * 4
