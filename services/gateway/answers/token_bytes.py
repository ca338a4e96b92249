"""What a single token stands for, in bytes: a token may be a part of a character."""

import re
from collections.abc import Callable
from functools import lru_cache

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_CACHED_TOKENS = 2**16


def _byte_level_alphabet() -> dict[str, int]:
    """Return which character stands for which byte in the vocabularies of byte-level tokenizers.

    Printable Latin-1 stands for itself, all other bytes in their order for the characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


class TokenBytes:
    """The bytes of a vocabulary's tokens, special tokens included, as they stand within a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Behind another token, or many tokenizers would drop a leading space as that of a text's beginning.
        self._anchor = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor_text = self._decode(self._anchor)
        self._of: Callable[[int], bytes] = lru_cache(_CACHED_TOKENS)(self._find)

    def of(self, token_id: int) -> bytes:
        """Return a token's bytes."""
        return self._of(token_id)

    def _find(self, token_id: int) -> bytes:
        text = self._decode([*self._anchor, token_id]).removeprefix(self._anchor_text)
        if _REPLACEMENT not in text:
            return text.encode()
        token = self._tokenizer.id_to_token(token_id) or ""
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        if all(character in _ALPHABET for character in token):
            return bytes(_ALPHABET[character] for character in token)
        return text.encode()

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
