"""Bias, penalties and min_tokens against their formulas, token by token and row by row."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from common.errors import InvalidRequestError
from services.decode.answer import Answer
from services.decode.choice import choose_tokens
from services.decode.logits import adjust
from tests.decode.test_sampling import sampling

VOCAB = 23
TOKENS = st.integers(0, VOCAB - 1)
PENALTIES = st.one_of(st.just(0.0), st.floats(-2, 2))


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[float], dict[str, object], list[int], list[int]]:
    """Return logits, parameters, a prompt and an answer so far."""
    options: dict[str, object] = {
        "logit_bias": draw(st.dictionaries(TOKENS, st.floats(-100, 100, width=32), max_size=4)),
        "repetition_penalty": draw(st.one_of(st.just(1.0), st.floats(0.1, 10))),
        "frequency_penalty": draw(PENALTIES),
        "presence_penalty": draw(PENALTIES),
        "stop_token_ids": frozenset(draw(st.lists(TOKENS, max_size=3))),
        "min_tokens": draw(st.integers(0, 8)),
    }
    logits = draw(st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB))
    return logits, options, draw(st.lists(TOKENS, max_size=30)), draw(st.lists(TOKENS, max_size=90))


def expected(logits: list[float], options: dict, prompt: list[int], answer: list[int]) -> list[float]:
    """Apply the formulas, one token after the other."""
    result, counts = [], Counter(answer)
    for token, logit in enumerate(logits):
        value = logit + options["logit_bias"].get(token, 0.0)
        if token in prompt or token in answer:
            value = value / options["repetition_penalty"] if value > 0 else value * options["repetition_penalty"]
        value -= options["frequency_penalty"] * counts[token]
        value -= options["presence_penalty"] if counts[token] else 0.0
        if len(answer) < options["min_tokens"] and token in options["stop_token_ids"]:
            value = -math.inf
        result.append(value)
    return result


def state(options: dict, prompt: list[int], answer: list[int], at_once: bool = False) -> Answer:
    """Return an answer that came to its tokens one by one, or by a replay."""
    result = Answer(sampling(max_tokens=200, **options), frozenset(prompt))
    for taken in [answer] if at_once else [[token] for token in answer]:
        result.take(taken)
    return result


@settings(max_examples=150, deadline=None)
@given(batch=st.lists(rows(), min_size=1, max_size=5), at_once=st.booleans())
def test_every_row_follows_the_formulas(batch: list, at_once: bool) -> None:
    logits = torch.tensor([row for row, *_ in batch])
    adjust(logits, [state(*rest, at_once=at_once) for _, *rest in batch])
    for row, given_row in zip(logits, batch, strict=True):
        torch.testing.assert_close(row, torch.tensor(expected(*given_row)), rtol=1e-5, atol=1e-4)


def test_logits_that_lie_column_by_column_are_changed_as_well() -> None:
    """A product of few tokens is computed as W x^T, and its transpose is no contiguous tensor."""
    logits = torch.zeros(VOCAB, 3).T
    adjust(logits, [state({"logit_bias": {row: 1.0 + row}}, [], []) for row in range(3)])
    assert logits.nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert logits.amax(dim=1).tolist() == [1.0, 2.0, 3.0]


def test_repetition_is_transformers_own() -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    seen = [1, 5, 5, 9, 22]
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([seen]), logits.clone())
    adjust(logits, [state({"repetition_penalty": 1.7}, seen[:3], seen[3:])])
    torch.testing.assert_close(logits, theirs)


def test_the_prompt_counts_for_repetition_only() -> None:
    logits = torch.ones(1, VOCAB)
    adjust(logits, [state({"frequency_penalty": 1.0, "presence_penalty": 1.0}, [1, 2, 3], [])])
    assert logits.eq(1).all()


def test_rows_without_any_of_it_stay_bit_for_bit() -> None:
    logits = torch.randn(3, VOCAB)
    before = logits.clone()
    plain = {"stop_token_ids": frozenset([4])}
    adjust(logits, [state(plain, [1], [2]), state({"presence_penalty": 2.0}, [], [7]), state(plain, [], [])])
    assert logits[[0, 2]].equal(before[[0, 2]])
    assert not logits[1].equal(before[1])


@pytest.mark.parametrize("penalty", [5e-324, 1e-30, 1e30, 1.7e308])
def test_no_penalty_makes_a_logit_infinite(penalty: float) -> None:
    logits = torch.tensor([[3.0, -3.0, 0.0, 1.0]])
    adjust(logits, [state({"repetition_penalty": penalty}, [0, 1, 2], [])])
    assert logits.isfinite().all()
    assert 0 <= choose_tokens(logits, [Answer(sampling())])[0] < 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_are_not_chosen_before_min_tokens(temperature: float) -> None:
    options = {"temperature": temperature, "stop_token_ids": frozenset([0, 1]), "min_tokens": 3}
    answer, chosen = state(options, [], []), []
    for _ in range(4):
        chosen += choose_tokens(torch.tensor([[50.0, 49.0, 0.0, 0.0]]), [answer])
        answer.take(chosen[-1:])
    assert not {0, 1} & set(chosen[:3])
    assert chosen[3] in {0, 1}


def test_a_bias_decides_and_forbids() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0]] * 2)
    answers = [state({"temperature": 0.0, "logit_bias": bias}, [], []) for bias in ({2: 100.0}, {0: -100.0})]
    assert choose_tokens(logits, answers) == [2, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"presence_penalty": -2.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": float("inf")},
        {"repetition_penalty": float("nan")},
        {"logit_bias": {3: 100.5}},
        {"logit_bias": {3: 1.0, 4: float("nan")}},
        {"min_tokens": 9},
        {"top_logprobs": 21},
    ],
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(options))) as refused:
        sampling(**options)
    assert refused.value.param == next(iter(options))


@pytest.mark.parametrize("options", [{"stop_token_ids": frozenset([23])}, {"logit_bias": {2**32 - 1: 1.0}}])
def test_ids_outside_the_vocabulary_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="outside the vocabulary of 23") as refused:
        sampling(**options).check_vocabulary(VOCAB)
    assert refused.value.param == next(iter(options))
    sampling(stop_token_ids=frozenset([22]), logit_bias={0: 1.0, 22: 1.0}).check_vocabulary(VOCAB)
