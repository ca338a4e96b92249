"""The processes in which grammars are compiled and followed: one for each grammar, forked from one that is ready.

A grammar is a client's, and its work may take seconds, hold the interpreter's lock, or end the process. So none of it
is in the worker. `python -m services.decode.grammar_server CONTROL FOLDER VOCAB_SIZE` takes a socket's number, the
model's folder and how many tokens the model has.
"""

import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from common.errors import GrammarError
from common.grammar import LIMITS, check_cost, reason_of
from common.model.tokenizer_files import eos_token_ids
from services.decode.ending import EndingSearch
from services.decode.matcher import Grammar, Matcher

FRAME = struct.Struct("<II")
"""The lengths of a message's JSON and of the masks behind it."""
NICENESS = 5
"""A worker's steps go before what grammars cost."""

_PRIVATE_USE = 0xF0000
"""The first of 65,534 characters that mean nothing."""
_MEMORY_BYTES = 1024**3
_ANSWER_SECONDS = 3.0
_TOKEN_SECONDS = 0.01
"""What an answer may take, and what each of its tokens adds. Schemas take a tenth of it."""


class GrammarFollower:
    """One grammar, and the answers that follow it, by number."""

    def __init__(self, tokenizer: LLTokenizer, endings: EndingSearch) -> None:
        self._tokenizer = tokenizer
        self._endings = endings
        self._grammar: Grammar | None = None
        self._matchers: dict[int, Matcher] = {}
        self._seconds: dict[int, float] = {}

    def answer(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """Do what a message asks for; return the reply and its masks."""
        try:
            if "open" in message:
                return self._open(**message["open"])
            if "take" in message:
                return self._take(*message["take"])
        except GrammarError as error:
            return {"error": str(error)}, []
        for number in message["close"]:
            self._matchers.pop(number, None)
            self._seconds.pop(number, None)
        return {}, []

    def _open(self, grammar: str, max_tokens: int, answers: dict[str, list[int]]) -> tuple[dict[str, Any], list[bytes]]:
        """Begin answers, each past the tokens that it has so far. Those without any share their first mask."""
        if self._grammar is None:
            try:
                self._grammar = self._compile(grammar)
            except GrammarError as error:
                return {"refused": str(error)}, []
        begun = {int(number): Matcher.after(self._grammar, max_tokens, ids) for number, ids in answers.items()}
        first = b"" if all(answers.values()) else Matcher(self._grammar, max_tokens).mask()
        masks = [matcher.mask() if answers[str(number)] else first for number, matcher in begun.items()]
        self._matchers |= begun
        self._seconds |= dict.fromkeys(begun, 0.0)
        return {}, masks

    def _take(self, number: int, token_id: int) -> tuple[dict[str, Any], list[bytes]]:
        matcher, started = self._matchers.get(number), time.process_time()
        if matcher is None:
            raise GrammarError("the answer has been closed")
        token_id = matcher.take(token_id)
        if matcher.failure is not None:
            raise matcher.failure
        masks = [] if matcher.is_complete else [matcher.mask()]
        if matcher.failure is not None:
            raise matcher.failure
        self._seconds[number] += time.process_time() - started - _TOKEN_SECONDS
        if self._seconds[number] > _ANSWER_SECONDS:
            raise GrammarError("following the grammar takes too long: what may come next is too ambiguous")
        reply = {"token": token_id, "is_complete": matcher.is_complete, "is_cut_short": matcher.is_cut_short}
        return reply, masks

    def _compile(self, grammar: str) -> Grammar:
        check_cost(grammar)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        probe = matcher.deep_copy()
        probe.compute_bitmask()  # some are found to be too complex only then
        if probe.is_error():
            raise GrammarError(f"the grammar cannot be compiled: {reason_of(probe.get_error())}")
        return Grammar(matcher, self._endings)


def send(connection: socket.socket, reply: dict[str, Any], masks: list[bytes]) -> None:
    """Send a message."""
    text, behind = json.dumps(reply).encode(), b"".join(masks)
    connection.sendall(FRAME.pack(len(text), len(behind)) + text + behind)


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """Return the next message, None when there is nobody any more."""
    head = _read(connection, FRAME.size)
    if len(head) < FRAME.size:
        return None
    message: dict[str, Any] = json.loads(_read(connection, FRAME.unpack(head)[0]))
    return message


def _read(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count and (part := connection.recv(count - len(parts))):
        parts += part
    return bytes(parts)


def _follow(connection: socket.socket, follower: GrammarFollower) -> None:
    """Serve one grammar until its connection is closed."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what ends it may be said with the grammar's words
    while (message := _receive(connection)) is not None:
        reply, masks = follower.answer(message)
        send(connection, reply | {"seconds": time.process_time()}, masks)


def _fork(connection: socket.socket, control: socket.socket, follower: GrammarFollower) -> int:
    pid = os.fork()
    if pid:
        return pid
    control.close()
    try:
        _follow(connection, follower)
    except OSError:  # the worker has gone
        pass
    finally:
        os._exit(0)


def _read_tokenizer(folder: Path, vocab_size: int) -> LLTokenizer:
    """Return the tokenizer, with no fewer tokens than the model has logits; raise ValueError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError("the decode worker's model has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    num_tokens = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    eos = list(eos_token_ids(folder)) or None
    try:
        return LLTokenizer(
            _with_nameless_markers(tokenizer.to_str()), n_vocab=max(num_tokens, vocab_size), eos_token=eos
        )
    except ValueError as error:
        raise ValueError(f"llguidance cannot use the model's tokenizer: {reason_of(str(error))}") from None


def _with_nameless_markers(serialised: str) -> str:
    """Return a tokenizer whose special tokens have names that are in no text.

    llguidance tokenises what a grammar leaves no choice about. A special token's name in there is meant as a text, but
    would become the token, which does not follow the grammar.
    """
    tokenizer = json.loads(serialised)
    added = [token for token in tokenizer["added_tokens"] if token["special"]]
    names = {token["content"]: chr(_PRIVATE_USE + index) for index, token in enumerate(added)}
    for token in added:
        token["content"] = names[token["content"]]
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        tokenizer["model"]["vocab"] = {names.get(name, name): number for name, number in vocab.items()}
    else:  # Unigram's has a score with each name
        tokenizer["model"]["vocab"] = [[names.get(name, name), score] for name, score in vocab]
    return json.dumps(tokenizer)


def main(control_number: int, folder: Path, vocab_size: int) -> None:
    """Say that the tokenizer is ready, or why it cannot be had; then fork a process for each socket that comes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is forked
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, for the worker; its end closes the sockets
    os.nice(NICENESS)
    control = socket.socket(fileno=control_number)
    try:
        tokenizer = _read_tokenizer(folder, vocab_size)
        endings = EndingSearch(tokenizer, vocab_size)
    except ValueError as error:
        send(control, {"obstacle": str(error)}, [])
        return
    gc.freeze()  # what is shared with those who are forked stays shared
    send(control, {"eos_token_ids": endings.eos_token_ids}, [])
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            pid = _fork(connection, control, GrammarFollower(tokenizer, endings))
        send(control, {"pid": pid}, [])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
