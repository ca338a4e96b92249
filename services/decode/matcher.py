"""An answer's way through its grammar: what may come next, and what has come."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from llguidance import LLMatcher

from common.errors import GrammarError
from common.grammar import reason_of
from services.decode.ending import EndingSearch

_LONGEST_ENDING = 256
_LEAST_WATCHED_TOKENS = 64
_MOST_SEARCHES = 32
"""Of one answer. Each takes milliseconds; after them the ending that is ready is taken."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar.

    Attributes:
        start: the matcher at its beginning, to be copied.
        endings: finds how an answer could end.
        watched_tokens: this many tokens before an answer's last, its end comes into view: twice what the shortest
            answer takes.
    """

    start: LLMatcher
    endings: EndingSearch
    watched_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """Measure the shortest answer; raise GrammarError if it leads to where nothing may follow."""
        state = self.start.deep_copy()
        shortest = self.endings.walk(state, _LONGEST_ENDING)
        if state.is_error():
            reason = reason_of(state.get_error())
            problem = "the grammar is too large" if "too many" in reason else "no answer follows the grammar to its end"
            raise GrammarError(f"{problem}: {reason}")
        watched = 0 if shortest is None else max(_LEAST_WATCHED_TOKENS, 2 * len(shortest))
        object.__setattr__(self, "watched_tokens", watched)


class Matcher:
    """One answer's state, a pure function of the grammar, max_tokens and the tokens so far.

    Towards max_tokens an ending is kept ready, and a token after which none would fit any more gives way to the
    ending's next: so the answer is whole, if shorter than the model would have had it. Used by one thread at a time.

    Attributes:
        is_complete: whether nothing may follow.
        is_cut_short: whether the last tokens there were had to be the ending's.
        failure: what went wrong, if something did; the state then has no meaning.
    """

    def __init__(self, grammar: Grammar, max_tokens: int) -> None:
        self._state = grammar.start.deep_copy()
        self._endings = grammar.endings
        self._left = max_tokens
        self._watched = grammar.watched_tokens
        self._ending: list[int] | None = None
        self._searches_left = _MOST_SEARCHES
        self.is_complete = False
        self.is_cut_short = False
        self.failure: GrammarError | None = None

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens by which an answer ends where its grammar may."""
        return self._endings.eos_token_ids

    @classmethod
    def after(cls, grammar: Grammar, max_tokens: int, token_ids: Iterable[int]) -> Self:
        """Return the state after tokens chosen elsewhere; raise GrammarError if they do not follow it."""
        matcher = cls(grammar, max_tokens)
        for token_id in token_ids:
            if matcher.take(token_id) != token_id or matcher.failure is not None or matcher.is_complete:
                raise GrammarError("the answer so far does not follow the grammar, or is complete by it")
        return matcher

    def mask(self) -> bytes:
        """Return which tokens may come next, a bit each, the lowest first."""
        mask = self._state.compute_bitmask()
        self._check()
        return mask

    def take(self, token_id: int) -> int:
        """Go on by a token, or by the one that it has to give way to; return which."""
        if self._left <= self._watched:
            token_id = self._take_watched(token_id)
        else:
            self._state.consume_token(token_id)
        self._left -= 1
        self._check()
        self.is_complete = self._state.is_stopped()
        self.is_cut_short |= self._left == len(self._ending or ()) > 0
        return token_id

    def _take_watched(self, token_id: int) -> int:
        if self._ending is None:
            self._ending = self._endings.search(self._state, self._left)
        if self._ending is None:  # nothing fits: the answer will be cut where max_tokens are over
            self._watched = 0
            self._state.consume_token(token_id)
            return token_id
        ending = self._ending_after(token_id, self._ending)
        if ending is None:
            token_id, ending = (self._ending or self.eos_token_ids)[0], self._ending[1:]
            self._state.consume_token(token_id)
        self._ending = ending
        return token_id

    def _ending_after(self, token_id: int, ending: list[int]) -> list[int] | None:
        """Go on by a token and return an ending that fits behind it; if there is none, do nothing and return None."""
        room, eos = self._left - 1, self.eos_token_ids[0]
        if ending and token_id == ending[0]:
            self._state.consume_token(token_id)
            return ending[1:]
        line = [token_id, *ending, eos]
        if len(ending) <= room and self._state.validate_tokens(line) == len(line):
            self._state.consume_token(token_id)
            return ending
        if not self._searches_left and token_id not in self.eos_token_ids:
            self.is_cut_short = True
            return None
        if not self._state.consume_token(token_id) or self._state.is_stopped():
            return []
        self._searches_left -= 1
        found = self._endings.search(self._state, room)
        if found is None:
            self._state.rollback(1)
        return found

    def _check(self) -> None:
        if self._state.is_error() and self.failure is None:
            self.failure = GrammarError(f"the grammar failed: {reason_of(self._state.get_error())}")
