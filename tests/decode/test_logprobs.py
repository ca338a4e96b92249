"""Log probabilities are the model's own, whatever is chosen, and only for those who ask."""

import math

import torch

from services.decode.answer import Answer
from services.decode.choice import choose_tokens
from services.decode.logprobs import RawLogprobs
from tests.decode.test_sampling import sampling

LOGITS = [2.0, 1.0, 0.5, 0.0, -1.0]


def expected(token: int) -> float:
    return LOGITS[token] - math.log(sum(math.exp(logit) for logit in LOGITS))


def close(found: list[float], tokens: list[int]) -> bool:
    return all(math.isclose(value, expected(token), abs_tol=1e-5) for value, token in zip(found, tokens, strict=True))


def test_they_are_taken_before_anything_changes_the_logits() -> None:
    answer = Answer(
        sampling(temperature=0.3, top_k=1, logit_bias={4: 50.0}, presence_penalty=2.0, top_logprobs=3), {0, 1}
    )
    answer.take([0, 1])
    logits = torch.tensor([LOGITS])
    raw = RawLogprobs(logits, [answer])
    (found,) = raw.of(choose_tokens(logits, [answer]))
    assert found is not None
    assert close([found.logprob], [4]), "the bias chose it; it has the model's own probability"
    assert found.top_token_ids == [0, 1, 2]
    assert close(found.top_logprobs, [0, 1, 2])


def test_each_row_gets_as_many_as_it_asks_for() -> None:
    counts = [None, 0, 2, None, 20]
    answers = [Answer(sampling(top_logprobs=count)) for count in counts]
    found = RawLogprobs(torch.tensor([LOGITS] * 5), answers).of([4, 3, 2, 1, 0])
    assert [row is not None for row in found] == [count is not None for count in counts]
    asked = [row for row in found if row is not None]
    assert [row.top_token_ids for row in asked] == [[], [0, 1], [0, 1, 2, 3, 4]]
    assert close([row.logprob for row in asked], [3, 2, 0])
    assert all(close(row.top_logprobs, row.top_token_ids) for row in asked)


def test_nobody_asks() -> None:
    assert RawLogprobs(torch.tensor([LOGITS] * 2), [Answer(sampling())] * 2).of([1, 2]) == [None, None]
