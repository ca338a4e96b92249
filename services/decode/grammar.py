"""Compiles grammars, apart from the event loop and the compute thread, and keeps those last used."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from common.errors import InvalidRequestError
from common.grammar import LIMITS, check_cost, reason_of
from common.model.tokenizer_files import eos_token_ids
from services.decode.ending import EndingSearch
from services.decode.matcher import Grammar, Matcher

_KEPT_GRAMMARS = 32

logger = logging.getLogger(__name__)


class GrammarCompiler:
    """Makes the matchers of answers; `obstacle` says why there can be none with this model, if so."""

    def __init__(self, tokenizer: LLTokenizer | None, obstacle: str = "") -> None:
        self._tokenizer = tokenizer
        self._obstacle = obstacle
        self._search = None if tokenizer is None else EndingSearch(tokenizer)
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()
        # One thread: compiling drops the interpreter's lock, and takes no more than one core from the steps.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    @classmethod
    def of_model(cls, folder: Path, vocab_size: int) -> "GrammarCompiler":
        """Read the tokenizer from a model's folder."""
        path = folder / "tokenizer.json"
        obstacle = "the decode worker's model has no tokenizer.json"
        if path.is_file():
            try:
                return cls(_read(path, vocab_size, eos_token_ids(folder)))
            except ValueError as error:
                obstacle = f"llguidance cannot use the model's tokenizer: {reason_of(str(error))}"
        logger.warning("no grammars: structured answers and forced tools are refused", extra={"reason": obstacle})
        return cls(None, obstacle)

    async def matchers(
        self, grammar: str, max_tokens: int, answers: Sequence[Sequence[int]]
    ) -> Sequence[Matcher | None]:
        """Return a matcher for each answer, past the tokens that it has so far; None for each without a grammar.

        Raises InvalidRequestError for a grammar that cannot be compiled, or that an answer does not follow.
        """
        if not grammar:
            return [None] * len(answers)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._matchers, grammar, max_tokens, answers)

    def _matchers(self, grammar: str, max_tokens: int, answers: Sequence[Sequence[int]]) -> list[Matcher]:
        compiled = self._compiled(grammar)
        return [Matcher.after(compiled, max_tokens, tokens) for tokens in answers]

    def _compiled(self, grammar: str) -> Grammar:
        if grammar not in self._grammars:
            self._grammars[grammar] = self._compile(grammar)
        self._grammars.move_to_end(grammar)
        if len(self._grammars) > _KEPT_GRAMMARS:
            self._grammars.popitem(last=False)
        return self._grammars[grammar]

    def _compile(self, grammar: str) -> Grammar:
        if self._tokenizer is None or self._search is None:
            raise InvalidRequestError(f"this model cannot follow a grammar: {self._obstacle}")
        check_cost(grammar)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise InvalidRequestError(f"the grammar cannot be compiled: {reason_of(matcher.get_error())}")
        return Grammar(matcher, self._search)


def _read(path: Path, vocab_size: int, eos: tuple[int, ...]) -> LLTokenizer:
    """Return the tokenizer, with no fewer tokens than the model has logits."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    num_tokens = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    return LLTokenizer(tokenizer.to_str(), n_vocab=max(num_tokens, vocab_size), eos_token=list(eos) or None)
