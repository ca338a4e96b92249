"""Texts that are far too long are refused before all of them is tokenised, which takes time and memory."""

from tokenizers import Tokenizer

from common.errors import ContextLengthError, InvalidRequestError

MAX_TEXT_BYTES = 2**20
_BYTES_PER_TOKEN = 8
"""More than in any language: up to as many for each token of the context, a text is simply tokenised."""
_PIECE_CHARACTERS = 2**16


def check_fits(text: str, tokenizer: Tokenizer, context_tokens: int, param: str) -> None:
    """Raise ContextLengthError for a text that has more tokens than the model reads, if that is soon seen.

    The pieces of a text have a few tokens more than the whole, one or two at each cut. So only twice as many as there
    may be are a proof; with fewer the whole is tokenised, and its tokens counted.
    """
    if len(text) <= max_text_characters(context_tokens):
        return
    num_tokens = 0
    for start in range(0, len(text), _PIECE_CHARACTERS):
        piece = text[start : start + _PIECE_CHARACTERS]
        num_tokens += len(tokenizer.encode(piece, add_special_tokens=False))
        if num_tokens > 2 * context_tokens:
            raise ContextLengthError(
                f"the prompt is too long: this model's maximum context length is {context_tokens} tokens, and the "
                f"prompt has at least {num_tokens // 2}",
                param=param,
            )


def max_text_characters(context_tokens: int) -> int:
    """Return how long a text may be to be tokenised at once."""
    return max(MAX_TEXT_BYTES, _BYTES_PER_TOKEN * context_tokens)


def check_length(text: str, context_tokens: int) -> None:
    """Raise InvalidRequestError for a text that is too long to be tokenised for its tokens' sake."""
    limit = max_text_characters(context_tokens)
    if len(text) > limit:
        raise InvalidRequestError(
            f"the text has {len(text)} characters, and up to {limit} are tokenised at once; ask for it in parts",
            param="prompt",
        )
