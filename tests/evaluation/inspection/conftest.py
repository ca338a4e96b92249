"""Inspected prompts of tiny models."""

from collections.abc import Callable

import pytest

from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from evaluation.inspection.command import examine
from evaluation.inspection.inspection import Inspection
from evaluation.inspection.prompt import TokenisedPrompt
from services.prefill.engine import PrefillEngine

PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(201)]
OPTIONS = {"kv_retention": 0.2, "struct_retention": 0.4, "floor_tokens": 32, "window_tokens": 8, "codec": "raw"}

Examine = Callable[..., Inspection]


@pytest.fixture
def examined(tiny: Callable[[str], DecoderModel]) -> Examine:
    """Return a function that inspects PROMPT, each of whose tokens is a word, on a family's tiny model."""

    def examined(family: str = "llama", pieces: list[str] | None = None, **options: object) -> Inspection:
        words = pieces or [f" {token_id}" for token_id in PROMPT]
        prompt = TokenisedPrompt("".join(words), PROMPT, words, [*words], 0)
        selection = Selection.of({**OPTIONS, **options})
        return examine(PrefillEngine(tiny(family)), None, prompt, selection, model=family, chat=False)

    return examined
