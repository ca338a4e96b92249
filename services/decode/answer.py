"""One answer's state: all that the choice of its next token depends on besides the logits."""

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from services.decode.grammar import Matcher
from services.decode.sampling import Sampling

_FIRST_ROOM = 64


class Answer:
    """An answer so far. The state is a function of its tokens, wherever they were chosen.

    Attributes:
        sampling: the request's.
        number: which of the request's answers it is.
        seed: its own: an answer is that of a request with this seed.
        num_generated: tokens so far.
        counts: of its tokens, where penalties ask for them.
        matcher: its way through its grammar, if it has one, past the tokens that were chosen elsewhere.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_tokens: Collection[int] = (),
        number: int = 0,
        matcher: Matcher | None = None,
    ) -> None:
        """Begin an answer; `prompt_tokens`, each once, are only needed for a repetition penalty."""
        self.sampling = sampling
        self.number = number
        self.seed = (sampling.seed + number) % 2**64
        self.num_generated = 0
        self.counts = TokenCounts(prompt_tokens) if sampling.is_penalised else None
        self.matcher = matcher

    def take(self, token_ids: Iterable[int]) -> None:
        """Go on by tokens that are settled."""
        for token in token_ids:
            self.num_generated += 1
            if self.counts is not None:
                self.counts.add(token)


class TokenCounts:
    """Which tokens there were, and how often in the answer; the prompt's are there with a count of 0.

    Arrays of what occurs instead of the whole vocabulary: a step reads them for all rows at once.
    """

    def __init__(self, prompt_tokens: Collection[int]) -> None:
        self._num_tokens = len(prompt_tokens)
        self._places = {token: place for place, token in enumerate(prompt_tokens)}
        self._token_ids = np.zeros(self._num_tokens + _FIRST_ROOM, dtype=np.int64)
        self._token_ids[: self._num_tokens] = list(prompt_tokens)
        self._counts = np.zeros_like(self._token_ids)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """The tokens, each once."""
        return self._token_ids[: self._num_tokens]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of them is in the answer."""
        return self._counts[: self._num_tokens]

    def add(self, token: int) -> None:
        """Count a token of the answer."""
        place = self._places.setdefault(token, self._num_tokens)
        if place == self._num_tokens:
            self._append(token)
        self._counts[place] += 1

    def _append(self, token: int) -> None:
        if self._num_tokens == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._token_ids[self._num_tokens] = token
        self._num_tokens += 1
