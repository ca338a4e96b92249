"""Choosing the next token: a pure function of logits, parameters, seed and the tokens before."""

import torch
from torch import Tensor

from services.decode.answer import Answer
from services.decode.filters import likeliest
from services.decode.logits import adjust
from services.decode.noise import gumbel
from services.decode.token_mask import constrain


def choose_tokens(logits: Tensor, answers: list[Answer]) -> list[int]:
    """Return each row's next token for logits [B, V], float32, which are changed where an answer's parameters say so.

    A row's choice never depends on the other rows: they only share the call.
    """
    adjust(logits, answers)
    constrain(logits, answers)
    chosen = logits.argmax(dim=-1)
    rows = [row for row, answer in enumerate(answers) if answer.sampling.temperature > 0]
    for filtered in (False, True):
        group = [row for row in rows if answers[row].sampling.is_filtered is filtered]
        if group:
            draw = _draw_filtered if filtered else _draw
            drawing = [answers[row] for row in group]
            chosen[group] = draw(_scaled(logits[group], drawing), drawing)
    tokens: list[int] = chosen.tolist()
    return tokens


def _scaled(logits: Tensor, answers: list[Answer]) -> Tensor:
    """Divide by the temperatures. Shifted before: the largest is 0 at any temperature, so nothing overflows."""
    temperatures = torch.tensor([answer.sampling.temperature for answer in answers], device=logits.device)
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperatures.clamp_min(1e-6)[:, None]


def _draw(logits: Tensor, answers: list[Answer]) -> Tensor:
    """Take the largest of logit and noise: a logit's last bit, which depends on the batch, decides next to nothing."""
    noise = gumbel(_draws(answers), torch.arange(logits.shape[1], device=logits.device))
    return noise.add_(logits).argmax(dim=-1)


def _draw_filtered(logits: Tensor, answers: list[Answer]) -> Tensor:
    """Draw from what the filters leave. A token's noise is the same whether others stay or go."""
    left, token_ids = likeliest(logits, [answer.sampling for answer in answers])
    best = gumbel(_draws(answers), token_ids).add_(left).argmax(dim=-1, keepdim=True)
    return token_ids.gather(1, best)[:, 0]


def _draws(answers: list[Answer]) -> list[tuple[int, int]]:
    return [(answer.seed, answer.num_generated) for answer in answers]
