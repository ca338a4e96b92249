"""Grammars as the worker has them: what an answer may go on with comes from the process that follows its grammar."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count

from common.errors import GrammarError, OverloadedError, UnavailableError
from common.fair_bound import FairBound
from services.decode.grammar_process import GrammarProcess, GrammarServer

_MAX_PROCESSES = 64
_IDLE_SECONDS = 60.0
"""For which a process is kept that nobody uses: the same grammar often comes again, and each takes some 15 MB."""
_MAX_REFUSED = 256


class Matcher:
    """One answer's way through its grammar.

    Attributes:
        mask: which tokens may come next, a bit each, the lowest first.
        eos_token_ids: tokens by which an answer ends where its grammar may.
        is_complete: whether nothing may follow.
        is_cut_short: whether the last tokens there were had to be an ending's, towards max_tokens.
    """

    def __init__(self, process: GrammarProcess, number: int, mask: bytes, eos_token_ids: list[int]) -> None:
        self._process = process
        self.number = number
        self.mask = mask
        self.eos_token_ids = eos_token_ids
        self.is_complete = False
        self.is_cut_short = False

    async def take(self, token_id: int) -> int:
        """Go on by a token, or by the one that it has to give way to; return which. Raises GrammarError."""
        reply, self.mask = await self._process.ask({"take": [self.number, token_id]})
        if "error" in reply:
            raise GrammarError(reply["error"])
        self.is_complete, self.is_cut_short = reply["is_complete"], reply["is_cut_short"]
        token: int = reply["token"]
        return token


class GrammarCompiler:
    """Makes the matchers of answers, a process for each grammar."""

    def __init__(self, server: GrammarServer | None) -> None:
        """Take what forks processes; without it, or where it cannot serve, there are no grammars."""
        self._server = server
        self._obstacle = "there is no grammar server" if server is None else server.obstacle
        self._processes: OrderedDict[str, GrammarProcess] = OrderedDict()
        self._refused: OrderedDict[str, str] = OrderedDict()
        self._numbers = count()
        self._in_use = FairBound(_MAX_PROCESSES)

    def close(self) -> None:
        """End all its processes."""
        for process in self._processes.values():
            process.kill(UnavailableError("the worker is going down"))

    @asynccontextmanager
    async def matchers(
        self, grammar: str, max_tokens: int, answers: Sequence[Sequence[int]], client: int = 0
    ) -> AsyncIterator[Sequence[Matcher | None]]:
        """Hold a matcher for each answer, past the tokens that it has so far; None for each without a grammar.

        Raises GrammarError for a grammar that cannot be compiled, or that an answer does not follow, and
        OverloadedError if too many are in use, of all clients or of this one.
        """
        if not grammar:
            yield [None] * len(answers)
            return
        process = await self._process(grammar)
        self._begin_use(process, client)
        opened: list[Matcher] = []
        try:
            opened = await self._open(process, grammar, max_tokens, answers)
            yield opened
        finally:
            self._end_use(process)
            if process.has_ended and self._processes.get(grammar) is process:
                del self._processes[grammar]
            elif opened:
                process.close([matcher.number for matcher in opened])

    def _begin_use(self, process: GrammarProcess, client: int) -> None:
        """Count a use; the first one is its client's among those that are in use, until the last one ends."""
        if not process.num_users:
            if self._in_use.excess(1, client):
                raise OverloadedError(
                    f"{self._in_use.total} grammars are in use, {self._in_use.held(client)} of them yours"
                )
            self._in_use.take(1, client)
            process.brought_by = client
        process.num_users += 1

    def _end_use(self, process: GrammarProcess) -> None:
        process.num_users -= 1
        if not process.num_users:
            self._forget_use(process)
            process.idle_since = time.monotonic()
            asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end_idle)

    def _end_idle(self) -> None:
        """End the processes that nobody has used for long."""
        before = time.monotonic() - 0.99 * _IDLE_SECONDS
        for grammar, process in list(self._processes.items()):
            if not process.num_users and process.idle_since < before:
                del self._processes[grammar]
                process.kill(GrammarError("nobody uses it"))

    def _forget_use(self, process: GrammarProcess) -> None:
        """Count a process no longer: nobody uses it, or it is about to end."""
        if process.brought_by is not None:
            self._in_use.give_back(1, process.brought_by)
            process.brought_by = None

    async def _open(
        self, process: GrammarProcess, grammar: str, max_tokens: int, answers: Sequence[Sequence[int]]
    ) -> list[Matcher]:
        assert self._server is not None
        begun = {next(self._numbers): list(tokens) for tokens in answers}
        message = {"grammar": grammar, "max_tokens": max_tokens, "answers": begun}
        try:
            reply, masks = await process.ask({"open": message})
        except GrammarError as error:  # it takes too long, or the process with it
            self._refuse(grammar, str(error))
            raise
        if "refused" in reply:
            self._refuse(grammar, reply["refused"])
            process.kill(GrammarError(reply["refused"]))
        if reason := reply.get("refused") or reply.get("error"):
            raise GrammarError(reason)
        size = len(masks) // len(begun)
        return [
            Matcher(process, number, masks[place * size : (place + 1) * size], self._server.eos_token_ids)
            for place, number in enumerate(begun)
        ]

    def _refuse(self, grammar: str, reason: str) -> None:
        """Keep in mind that a grammar is of no use: it is not compiled again."""
        self._refused[grammar] = reason
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)

    async def _process(self, grammar: str) -> GrammarProcess:
        """Return the grammar's process, a new one if it has none."""
        if self._server is None or self._obstacle:
            raise GrammarError(f"this model cannot follow a grammar: {self._obstacle}")
        if grammar in self._refused:
            raise GrammarError(self._refused[grammar])
        if grammar in self._processes and self._processes[grammar].has_ended:
            del self._processes[grammar]
        if grammar not in self._processes:
            self._make_room()
            process = await self._server.fork()
            if grammar in self._processes:  # somebody else's, meanwhile
                process.kill(GrammarError("not needed"))
            else:
                self._processes[grammar] = process
        self._processes.move_to_end(grammar)
        return self._processes[grammar]

    def _make_room(self) -> None:
        """With as many processes as there may be, end one that nobody uses, else a slow one."""
        if len(self._processes) < _MAX_PROCESSES:
            return
        idle = (grammar for grammar, process in self._processes.items() if not process.num_users)
        slow = (grammar for grammar, process in self._processes.items() if process.is_slow)
        grammar = next(idle, None) or next(slow, None)
        if grammar is None:
            raise OverloadedError(f"{_MAX_PROCESSES} grammars are in use")
        process = self._processes.pop(grammar)
        self._forget_use(process)
        process.kill(OverloadedError("the grammar takes long, and others wait"))
