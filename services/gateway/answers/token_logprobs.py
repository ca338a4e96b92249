"""Log probabilities of an answer's tokens, held back for as long as the text that they belong to."""

from collections.abc import Iterator
from dataclasses import dataclass

from common.pb import decode_pb2
from services.gateway.answers.token_bytes import TokenBytes

_LEAST_LOGPROB = -9999.0
"""JSON knows no infinity; other servers write the same."""

ScoredToken = tuple[bytes, float]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer.

    Attributes:
        token: its bytes.
        logprob: the natural logarithm of its probability.
        top: the likeliest tokens in its place, best first.
        offset: characters of the answer before it.
    """

    token: bytes
    logprob: float
    top: tuple[ScoredToken, ...]
    offset: int


class HeldLogprobs:
    """Lets a token's log probability go together with the token's text."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._held: list[TokenLogprob] = []

    def push(self, token_id: int, logprobs: decode_pb2.TokenLogprobs, offset: int) -> None:
        """Take a token whose text begins at the offset."""
        top = zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True)
        scored = tuple(self._scored(candidate, logprob) for candidate, logprob in top)
        token, logprob = self._scored(token_id, logprobs.logprob)
        self._held.append(TokenLogprob(token, logprob, scored, offset))

    def release(self, length: int) -> list[TokenLogprob]:
        """Return what belongs to the answer's first `length` characters and has not been returned yet."""
        free = [entry for entry in self._held if entry.offset < length]
        self._held = self._held[len(free) :]
        return free

    def flush(self) -> list[TokenLogprob]:
        """Return all that is left."""
        held, self._held = self._held, []
        return held

    def _scored(self, token_id: int, logprob: float) -> ScoredToken:
        return self._token_bytes.of(token_id), max(_LEAST_LOGPROB, logprob)


def alternatives(entry: TokenLogprob) -> Iterator[ScoredToken]:
    """Yield the likeliest tokens, and the chosen one where it is not among them."""
    yield from entry.top
    if (entry.token, entry.logprob) not in entry.top:
        yield entry.token, entry.logprob
