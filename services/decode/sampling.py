"""How a request's tokens are chosen, and when it ends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from common.errors import InvalidRequestError
from common.pb import decode_pb2

MAX_TOP_LOGPROBS = 20
"""As many as OpenAI allows."""

_RANGES = {
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """A request's parameters.

    They apply in the order logit bias, penalties, grammar, temperature, top-k, top-p, min-p.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        seed: of answer 0; see `Answer.seed`.
        min_tokens: stop tokens are not chosen before so many others.
        frequency_penalty: subtracted for each time that the answer has a token already.
        presence_penalty: subtracted if it has it at all.
        repetition_penalty: positive logits of tokens in prompt or answer are divided by it, negative ones multiplied;
            1 is off.
        logit_bias: added, by token id.
        top_logprobs: log probabilities that are told besides the chosen token's; None: not even that one.
        grammar: that the answer follows, in llguidance's serialised form; empty: none.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    max_tokens: int
    stop_token_ids: frozenset[int]
    min_tokens: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    grammar: str = ""

    def __post_init__(self) -> None:
        """Refuse values outside their range, by name."""
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            _refuse("temperature", "at least 0", self.temperature)
        if not 0 < self.top_p <= 1:
            _refuse("top_p", "above 0 and at most 1", self.top_p)
        for name, (lowest, highest) in _RANGES.items():
            if not lowest <= getattr(self, name) <= highest:
                _refuse(name, f"between {lowest:g} and {highest:g}", getattr(self, name))
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            _refuse("repetition_penalty", "above 0", self.repetition_penalty)
        for bias in self.logit_bias.values():
            if not -100 <= bias <= 100:
                _refuse("logit_bias", "between -100 and 100", bias)
        if self.max_tokens < 1:
            _refuse("max_tokens", "at least 1", self.max_tokens)
        if self.min_tokens > self.max_tokens:
            _refuse("min_tokens", f"at most max_tokens, {self.max_tokens}", self.min_tokens)
        if self.top_logprobs is not None and self.top_logprobs > MAX_TOP_LOGPROBS:
            _refuse("top_logprobs", f"at most {MAX_TOP_LOGPROBS}", self.top_logprobs)

    @classmethod
    def from_pb(cls, message: decode_pb2.Sampling) -> Self:
        """Read a message; raise InvalidRequestError for values out of range."""
        return cls(
            temperature=message.temperature,
            top_k=message.top_k,
            top_p=message.top_p,
            min_p=message.min_p,
            seed=message.seed,
            max_tokens=message.max_tokens,
            stop_token_ids=frozenset(message.stop_token_ids),
            min_tokens=message.min_tokens,
            frequency_penalty=message.frequency_penalty,
            presence_penalty=message.presence_penalty,
            repetition_penalty=message.repetition_penalty or 1.0,
            logit_bias=dict(message.logit_bias),
            top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
            grammar=message.grammar,
        )

    @property
    def is_filtered(self) -> bool:
        """Tell whether unlikely tokens are cut off."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def is_penalised(self) -> bool:
        """Tell whether it matters which tokens there were before."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InvalidRequestError for token ids that the model does not have."""
        for name, token_ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            if token_ids and max(token_ids) >= vocab_size:
                raise InvalidRequestError(
                    f"{name} has token id {max(token_ids)}, outside the vocabulary of {vocab_size}", param=name
                )


def _refuse(name: str, expected: str, value: object) -> None:
    raise InvalidRequestError(f"{name} must be {expected}, not {value}", param=name)
