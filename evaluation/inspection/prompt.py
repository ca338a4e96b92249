"""The prompt to be inspected: its tokens, and the part of the text that each of them stands for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import typer
from tokenizers import Encoding

from common.errors import InvalidRequestError
from evaluation.prompt import PromptFormat

STDIN = "-"


@dataclass(frozen=True, slots=True)
class TokenisedPrompt:
    """A prompt as the model reads it, and as people do.

    Attributes:
        text: the whole of it, the chat template's words included.
        token_ids: [N].
        pieces: [N], each token's part of the text; joined they are the text. Empty for a token that has no text of
            its own: one that the tokenizer adds, or that only completes the character which an earlier one began.
        names: [N], the vocabulary's own entries.
        closing_tokens: how many of the last ones are the chat template's.
    """

    text: str
    token_ids: list[int]
    pieces: list[str]
    names: list[str]
    closing_tokens: int


def read_text(prompt: str | None, file: Path | None) -> str:
    """Return the user's text, from standard input for "-". Raises ValueError unless there is exactly one, not empty."""
    if (prompt is None) == (file is None):
        raise ValueError('a prompt is needed: either --prompt TEXT or --file PATH, where "-" is standard input')
    if STDIN in (prompt, str(file)):
        text = _utf8(typer.get_binary_stream("stdin").read(), "standard input")
    elif file is not None:
        text = _utf8(file.read_bytes(), str(file))
    else:
        text = _utf8((prompt or "").encode(errors="surrogateescape"), "--prompt")  # an argument may hold any bytes
    if not text.strip():
        raise ValueError("the prompt is empty")
    return text


def _utf8(data: bytes, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8: {error}") from error


def tokenise(text: str, prompts: PromptFormat) -> TokenisedPrompt:
    """Tokenise a text as the gateway would: as a user's message, or as it is."""
    model, closing = prompts.model, 0
    if prompts.chat and model.chat_template is not None:
        messages = [{"role": "user", "content": text}]
        closing = model.chat_prompt(messages).closing_tokens
        text = model.chat_template.render(messages)
        encoding = model.tokenizer.encode(text, add_special_tokens=False)
    else:
        encoding = model.tokenizer.encode(text)
    if not encoding.ids:
        raise InvalidRequestError("the prompt has no tokens", param="prompt")
    return TokenisedPrompt(text, encoding.ids, pieces(text, encoding), encoding.tokens, closing)


def pieces(text: str, encoding: Encoding) -> list[str]:
    """Cut a text where its tokens end. What a tokenizer passes over belongs to the token that follows, or the last."""
    ends = _ascending([end for _, end in encoding.offsets])
    return [text[start:end] for start, end in pairwise([0, *ends[:-1], len(text)])]


def _ascending(ends: Sequence[int]) -> list[int]:
    """Return ends that never go back: a token that is added to the text claims to end at 0."""
    furthest, ascending = 0, []
    for end in ends:
        furthest = max(furthest, end)
        ascending.append(furthest)
    return ascending
