"""What a request changes in its logits before a token is chosen from them.

All of it touches few tokens of few rows, so they are gathered from all rows, changed together and put back. A batch in
which nobody asks for any of it costs a look at each row's parameters.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.decode.answer import Answer, TokenCounts


def adjust(logits: Tensor, answers: list[Answer]) -> None:
    """Apply each answer's parameters to its row of logits [B, V], float32, in place."""
    _add_bias(logits, answers)
    _penalise(logits, answers)
    _hold_back_stop_tokens(logits, answers)


def _add_bias(logits: Tensor, answers: list[Answer]) -> None:
    rows = [(row, answer.sampling.logit_bias) for row, answer in enumerate(answers) if answer.sampling.logit_bias]
    if rows:
        biases = torch.tensor([value for _, bias in rows for value in bias.values()], device=logits.device)
        logits[_places(logits, ((row, list(bias)) for row, bias in rows))] += biases


def _penalise(logits: Tensor, answers: list[Answer]) -> None:
    """Apply the repetition penalty first, then frequency and presence, as transformers and vLLM do."""
    rows = [(row, answer.counts) for row, answer in enumerate(answers) if answer.counts is not None]
    if not rows:
        return
    counts = torch.from_numpy(np.concatenate([counts.counts for _, counts in rows])).to(logits.device)
    samplings = [answers[row].sampling for row, _ in rows]
    repetition, frequency, presence = (
        _spread([getattr(sampling, f"{name}_penalty") for sampling in samplings], rows).to(logits.device)
        for name in ("repetition", "frequency", "presence")
    )
    places = _places(logits, ((row, counts.token_ids) for row, counts in rows))
    # In float64, and held within float32: no penalty, however odd, makes a logit infinite.
    values = logits[places].double()
    values = torch.where(values > 0, values / repetition, values * repetition)
    values = values - frequency * counts - presence * (counts > 0)
    largest = torch.finfo(logits.dtype).max
    logits[places] = values.clamp(-largest, largest).to(logits.dtype)


def _hold_back_stop_tokens(logits: Tensor, answers: list[Answer]) -> None:
    """Make stop tokens impossible where the answer is shorter than its min_tokens; a grammar's mask sees to its own."""
    rows = [
        (row, list(answer.sampling.stop_token_ids))
        for row, answer in enumerate(answers)
        if answer.num_generated < answer.sampling.min_tokens and answer.matcher is None
    ]
    if rows:
        logits[_places(logits, rows)] = float("-inf")


def _places(logits: Tensor, rows: Iterable[tuple[int, list[int] | NDArray[np.int64]]]) -> tuple[Tensor, Tensor]:
    """Return the row and the token of everything that rows touch, int64 each."""
    listed = [(row, np.asarray(token_ids, dtype=np.int64)) for row, token_ids in rows]
    touched = np.repeat([row for row, _ in listed], [len(token_ids) for _, token_ids in listed])
    token_ids = np.concatenate([token_ids for _, token_ids in listed])
    return torch.from_numpy(touched).to(logits.device), torch.from_numpy(token_ids).to(logits.device)


def _spread(values: list[float], rows: list[tuple[int, TokenCounts]]) -> Tensor:
    """Repeat each row's value for each of its tokens, float64."""
    return torch.from_numpy(np.repeat(np.array(values), [len(counts.token_ids) for _, counts in rows]))
