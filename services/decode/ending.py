"""How an answer could end soon within its grammar."""

import string

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

_QUOTES = ('"}', '"]', '":', '""', '"')
_BRACES = ("}", "]")
"""What closes something in JSON. Quotes are before a brace, which inside a string closes nothing."""

_FEW_TOKENS = 64
"""Where no more are allowed, it is not a string that goes on freely."""

_SHORT = ("null", *string.digits, "false", "true", ",", ":")
"""The least there can be of JSON elsewhere. What comes behind these is mostly given, and a long token is a step."""

_MOST_PROBES = 256
"""Of one search; each takes a tenth of a millisecond. After them it goes on without: an ending so long is rare."""

_PROBES = tuple(f"@{string.punctuation}aA0 ")
"""What may lead out of a repetition: the local part of an e-mail's address, say, goes on for ever without its @."""


class EndingSearch:
    """Goes from a matcher's state to the grammar's end, always by the token that promises to end soonest.

    For JSON that is an ending as short as they come; for other grammars it is one, if it is found at all.
    """

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int) -> None:
        """Take the tokenizer, and how many of its tokens the model has."""
        texts = [tokenizer.decode_str([token]) for token in range(min(vocab_size, tokenizer.vocab_size))]
        special = [tokenizer.is_special_token(token) for token in range(len(texts))]
        tokens = {text: token for token, text in enumerate(texts) if not special[token]}
        self._rank = _ranks(texts, special)  # [V]: lower goes first
        self._quotes = {tokens[text] for text in _QUOTES if text in tokens}
        self._braces = {tokens[text] for text in _BRACES if text in tokens}
        self._probes = [tokens[text] for text in dict.fromkeys(_PROBES) if text in tokens]
        self.eos_token_ids = tokenizer.eos_tokens

    def search(self, matcher: LLMatcher, limit: int) -> list[int] | None:
        """Return up to `limit` tokens after which the answer may end; None if they are not found. The state stays."""
        return self.walk(matcher.deep_copy(), limit)

    def walk(self, state: LLMatcher, limit: int) -> list[int] | None:
        """Go to an end, or to where none is found, and return the tokens as `search` does."""
        ending, seen, num_probed = list[int](), set[bytes](), 0
        while not state.is_accepting():
            mask = state.compute_bitmask()
            seen.add(mask)
            tokens = self._likeliest_to_end(state, mask)
            if len(ending) == limit or not tokens:
                return None
            token, probed = tokens[0], 0
            if len(tokens) > 1 and num_probed < _MOST_PROBES:
                token, probed = _leading_on(state, tokens, mask, seen)
            num_probed += probed
            if not state.consume_token(token):
                return None
            ending.append(token)
        return ending

    def _likeliest_to_end(self, state: LLMatcher, mask: bytes) -> list[int]:
        """Return the token that goes first, and what to try if that one goes in circles; none if none is allowed."""
        allowed = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[: len(self._rank)].astype(bool)
        first = int(np.where(allowed, self._rank, len(self._rank)).argmin())
        if state.is_error() or not allowed[first]:
            return []
        is_given = np.count_nonzero(allowed) <= _FEW_TOKENS
        if first in self._quotes or (first in self._braces and is_given):
            return [first]
        others = sorted(np.flatnonzero(allowed), key=self._rank.__getitem__) if is_given else self._probes
        return [first, *(int(token) for token in others if allowed[token])]


def _leading_on(state: LLMatcher, tokens: list[int], mask: bytes, seen: set[bytes]) -> tuple[int, int]:
    """Return the first token behind which something else may come than ever before, else than now, else the first.

    And how many were probed for it.
    """
    behind: dict[int, bytes] = {}
    for token in tokens:
        behind[token] = _mask_behind(state, token)
        if behind[token] not in seen:
            return token, len(behind)
    return next((token for token in tokens if behind[token] != mask), tokens[0]), len(behind)


def _mask_behind(state: LLMatcher, token: int) -> bytes:
    """Return what may come behind an allowed token; nothing, which is not seen otherwise, where the answer may end."""
    state.consume_token(token)
    mask = b"" if state.is_accepting() else state.compute_bitmask()
    state.rollback(1)
    return mask


def _ranks(texts: list[str], special: list[bool]) -> NDArray[np.int64]:
    place = {text: index for index, text in enumerate((*_QUOTES, *_BRACES, *_SHORT))}

    def key(token: int) -> tuple[bool, int, bool, int]:
        text = texts[token]
        return special[token] or not text, place.get(text, len(place)), text.isspace(), -len(text)

    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[sorted(range(len(texts)), key=key)] = np.arange(len(texts))
    return ranks
