"""Which tokens the grammars of a batch's answers leave."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.decode.answer import Answer
from services.decode.grammar import Matcher


def constrain(logits: Tensor, answers: list[Answer]) -> None:
    """Make impossible what an answer's grammar does not allow, in its row of logits [B, V], in place.

    A batch without grammars costs a look at each row.
    """
    rows = [(row, answer, answer.matcher) for row, answer in enumerate(answers) if answer.matcher is not None]
    if rows:
        allowed = np.stack([_allowed(answer, matcher, logits.shape[1]) for _, answer, matcher in rows])
        mask = torch.from_numpy(allowed).to(logits.device)  # [R, V]
        places = [row for row, _, _ in rows]
        logits[places] = logits[places].masked_fill(~mask, float("-inf"))


def _allowed(answer: Answer, matcher: Matcher, vocab_size: int) -> NDArray[np.bool_]:
    """Return which tokens may come next, [V]."""
    bits = np.frombuffer(matcher.mask, dtype=np.uint8)
    allowed = np.unpackbits(bits, count=vocab_size, bitorder="little").astype(bool)
    held_back = [token for token in _held_back(answer, matcher) if token < vocab_size and allowed[token]]
    if len(held_back) < np.count_nonzero(allowed):  # an answer that can only end, ends
        allowed[held_back] = False
    return allowed


def _held_back(answer: Answer, matcher: Matcher) -> set[int]:
    """Return the tokens that would end the answer before it is wanted: below min_tokens, or with ignore_eos."""
    stops = answer.sampling.stop_token_ids
    held_back = set(matcher.eos_token_ids) - stops
    return held_back | stops if answer.num_generated < answer.sampling.min_tokens else held_back
