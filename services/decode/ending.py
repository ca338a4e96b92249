"""How an answer could end soon within its grammar."""

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

_FIRST = ('"}', '"]', '":', '""', '"', "}", "]", "null", *"0123456789", "false", "true", ",", ":")
"""What closes something, or is the least there can be, of JSON. Quotes are before a brace, which inside a string
closes nothing. Elsewhere the text is mostly given, and a long token is a step."""


class EndingSearch:
    """Goes from a matcher's state to the grammar's end, always by the token that promises to end soonest.

    For JSON that is an ending as short as they come; for other grammars it is one, if it is found at all.
    """

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._rank = _ranks(tokenizer)  # [V]: lower goes first
        self.eos_token_ids = tokenizer.eos_tokens

    def search(self, matcher: LLMatcher, limit: int) -> list[int] | None:
        """Return up to `limit` tokens after which the answer may end; None if they are not found. The state stays."""
        state, ending = matcher.deep_copy(), list[int]()
        while not state.is_accepting():
            token = self._likeliest_to_end(state)
            if len(ending) == limit or token is None or not state.consume_token(token):
                return None
            ending.append(token)
        return ending

    def _likeliest_to_end(self, state: LLMatcher) -> int | None:
        bits = np.frombuffer(state.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(self._rank)].astype(bool)
        token = int(np.where(allowed, self._rank, len(self._rank)).argmin())
        return token if allowed[token] and not state.is_error() else None


def _ranks(tokenizer: LLTokenizer) -> NDArray[np.int64]:
    texts = [tokenizer.decode_str([token]) for token in range(tokenizer.vocab_size)]
    special = [tokenizer.is_special_token(token) for token in range(tokenizer.vocab_size)]
    place = {text: index for index, text in enumerate(_FIRST)}

    def key(token: int) -> tuple[bool, int, bool, int]:
        text = texts[token]
        return special[token] or not text, place.get(text, len(_FIRST)), text.isspace(), -len(text)

    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[sorted(range(len(texts)), key=key)] = np.arange(len(texts))
    return ranks
