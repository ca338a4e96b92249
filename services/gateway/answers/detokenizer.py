"""Token ids to text, piece by piece, so that the pieces joined are the decoded whole."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS = 8


def special_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that are not text."""
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


class Detokenizer:
    """Decodes an answer as its tokens come. Tokens to skip are not text, characters come whole.

    A token's text depends on its neighbours: a character's bytes may be spread over tokens, and many tokenizers
    drop a space at the start of a text. So new tokens are decoded behind those whose text is already out, and
    what that adds is new. The tokenizers library's DecodeStream works alike, but gives no access to what it
    holds back, which an answer cut in the middle of a character still owes, and fails where a text shrinks.
    """

    def __init__(self, tokenizer: Tokenizer, skipped_ids: frozenset[int], prompt_token_ids: Sequence[int] = ()) -> None:
        """Start behind the prompt that the text continues, or at the start of a new text if none is given."""
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._pending: list[int] = []
        self._set_context(self._visible(prompt_token_ids[-_CONTEXT_TOKENS:]))
        if self._context_text.endswith(_REPLACEMENT):  # the prompt ends within a character: decode apart from it
            self._set_context([])

    def push(self, token_ids: Iterable[int]) -> str:
        """Take tokens; return the text that is now certain, possibly none."""
        self._pending += self._visible(token_ids)
        text = self._decode(self._context + self._pending)
        # The library writes incomplete bytes as U+FFFD: the rest of the character may be still to come.
        return "" if text.endswith(_REPLACEMENT) else self._release(text)

    def flush(self) -> str:
        """Return what is still held back, an incomplete character as U+FFFD."""
        return self._release(self._decode(self._context + self._pending))

    def _release(self, text: str) -> str:
        grew = text.startswith(self._context_text)
        new = text[len(self._context_text) :] if grew else self._decode(self._pending)
        if new:
            self._set_context(self._pending)
            self._pending = []
        return new

    def _set_context(self, token_ids: list[int]) -> None:
        self._context = token_ids
        self._context_text = self._decode(token_ids)

    def _visible(self, token_ids: Iterable[int]) -> list[int]:
        return [token_id for token_id in token_ids if token_id not in self._skipped_ids]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
