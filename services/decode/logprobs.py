"""Log probabilities of the model's own distribution, for the answers that ask for them."""

from typing import NamedTuple

import torch
from torch import Tensor

from services.decode.answer import Answer


class TokenLogprobs(NamedTuple):
    """Of one chosen token, and of the likeliest in its place, best first."""

    logprob: float
    top_token_ids: list[int]
    top_logprobs: list[float]


class RawLogprobs:
    """One step's log probabilities, taken before anything changes the logits."""

    def __init__(self, logits: Tensor, answers: list[Answer]) -> None:
        """Take logits [B, V], float32."""
        self._top = {
            row: answer.sampling.top_logprobs
            for row, answer in enumerate(answers)
            if answer.sampling.top_logprobs is not None
        }
        self._logprobs = logits[list(self._top)].log_softmax(dim=-1) if self._top else None
        self._num_rows = len(answers)

    def of_row(self, row: int, token: int) -> TokenLogprobs | None:
        """Return a row's, given the token that it has in the end; None if it asks for none."""
        if row not in self._top or self._logprobs is None:
            return None
        own = self._logprobs[list(self._top).index(row)]
        values, token_ids = own.topk(min(self._top[row], len(own)))
        return TokenLogprobs(own[token].item(), token_ids.tolist(), values.tolist())

    def of(self, chosen: list[int]) -> list[TokenLogprobs | None]:
        """Return each row's, given its chosen token; None for rows that ask for none."""
        result: list[TokenLogprobs | None] = [None] * self._num_rows
        if self._logprobs is None:
            return result
        tokens = torch.tensor([[chosen[row]] for row in self._top], device=self._logprobs.device)
        own = self._logprobs.gather(1, tokens)[:, 0].tolist()
        values, token_ids = self._logprobs.topk(min(max(self._top.values()), self._logprobs.shape[1]))
        found = zip(self._top.items(), own, token_ids.tolist(), values.tolist(), strict=True)
        for (row, count), logprob, top_ids, top_values in found:
            result[row] = TokenLogprobs(logprob, top_ids[:count], top_values[:count])
        return result
