"""Sampling: the filters' definitions, and that a choice depends on nothing but its own row, seed and step."""

from collections import Counter

import pytest
import torch

from common.errors import InvalidRequestError
from services.decode.answer import Answer
from services.decode.choice import choose_tokens
from services.decode.sampling import Sampling


def sampling(**options: object) -> Sampling:
    defaults: dict[str, object] = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 1,
        "max_tokens": 8,
        "stop_token_ids": frozenset(),
    }
    return Sampling(**(defaults | options))  # type: ignore[arg-type]


def draw(logits: list[float], count: int, **options: object) -> Counter[int]:
    rows = torch.tensor([logits] * count)
    return Counter(choose_tokens(rows, [at_step(step, sampling(**options)) for step in range(count)]))


def at_step(step: int, sampling: Sampling) -> Answer:
    answer = Answer(sampling)
    answer.take([0] * step)
    return answer


LOGITS = [2.0, 1.0, 0.5, 0.0, -1.0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    counts = draw(LOGITS, 20_000, temperature=temperature)
    expected = (torch.tensor(LOGITS) / temperature).softmax(0)
    for token, share in enumerate(expected.tolist()):
        assert counts[token] / 20_000 == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.5}, {0}),  # the likeliest has 0.54
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.3}, {0, 1}),  # 1's share of 0's is 0.37, 2's is 0.22
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.9}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.75}, {0, 1}),  # of the three that top-k leaves
    ],
)
def test_filters(options: dict[str, object], allowed: set[int]) -> None:
    counts = draw(LOGITS, 4000, **options)
    assert set(counts) == allowed
    left = torch.tensor([LOGITS[token] for token in sorted(allowed)]).softmax(0)
    for token, share in zip(sorted(allowed), left.tolist(), strict=True):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


def test_temperature_zero_is_greedy() -> None:
    assert draw([0.0, 3.0, 2.9], 50, temperature=0.0) == {1: 50}


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert draw([0.0, 3.0e4, 2.9e4], 50, temperature=1e-30) == {1: 50}


def test_a_choice_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 500)
    kinds = [
        sampling(temperature=0.0),
        sampling(seed=5),
        sampling(seed=6, top_k=20),
        sampling(seed=7, top_p=0.8),
        sampling(seed=8, min_p=0.05, temperature=1.4),
    ]
    answers = [at_step(i // 5, kinds[i % 5]) for i in range(40)]
    together = choose_tokens(logits, answers)
    alone = [choose_tokens(logits[i : i + 1], [answers[i]])[0] for i in range(40)]
    assert together == alone


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 50}, {"top_p": 0.95}, {"min_p": 0.02}, {"top_k": 2000, "top_p": 0.9}]
)
def test_a_last_bit_does_not_decide(options: dict[str, object]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 4096, generator=generator)
    nearly = logits + 1e-4 * torch.randn(logits.shape, generator=generator)
    answers = [at_step(step % 16, sampling(seed=step, **options)) for step in range(len(logits))]
    chosen, again = choose_tokens(logits, answers), choose_tokens(nearly, answers)
    assert sum(token != other for token, other in zip(chosen, again, strict=True)) <= 1


def test_tokens_that_are_equal_stay_or_go_together() -> None:
    counts = draw([1.0, *[0.0] * 4, -9.0], 4000, top_k=2)
    assert set(counts) == {0, 1, 2, 3, 4}


def test_filters_may_leave_most_of_a_large_vocabulary() -> None:
    flat = [0.0] * 4000 + [-20.0] * 4000
    assert max(draw(flat, 200, top_p=0.999)) < 4000
    assert len(draw(flat, 200, top_k=3000)) > 150


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"max_tokens": 0},
    ],
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(options))):
        sampling(**options)
