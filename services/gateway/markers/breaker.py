"""Breaks what of a client's texts could be a part of a marker."""

import re
from collections.abc import Set
from typing import Any

from common.errors import InvalidRequestError
from services.gateway.chat_template import ChatMessage

_SENTINEL = "\x7f"
"""No letter, no white space, and the same in JSON: a template's filters leave it where it is."""

_CODE_POINTS = 0x110000
_STRUCTURE = {"role", "type"}
"""What stands under these is one of a few words, by which templates choose."""


def unused_character(text: str) -> str:
    """Return a character that a text has not. Raises InvalidRequestError for one that has all."""
    if _SENTINEL not in text:
        return _SENTINEL
    used = set(text)
    private = (char for code in range(0xE000, _CODE_POINTS) if (char := chr(code)) not in used)
    sentinel = next(private, None)
    if sentinel is None:
        raise InvalidRequestError("the messages have every character there is", param="messages")
    return sentinel


class Breaker:
    """Puts a sentinel behind every character that could begin a marker, and where a template could have begun one.

    Attributes:
        has_broken: whether there was anything to break.
    """

    def __init__(self, sentinel: str, firsts: Set[str], spoken: re.Pattern[str], *, at_borders: bool) -> None:
        """Take the sentinel, the characters, and the markers that a model writes as a part of its answers.

        With `at_borders`, texts are broken at their beginning and end, too.
        """
        self.has_broken = False
        self._sentinel = sentinel
        self._firsts = firsts
        self._spoken = spoken
        self._at_borders = at_borders

    def message(self, message: ChatMessage) -> ChatMessage:
        """Return a message with its texts broken. What an assistant has said keeps the markers that models write."""
        broken: ChatMessage = self.value(message)
        if message["role"] == "assistant":
            broken["content"] = self._broken_answer(message["content"])
        return broken

    def value(self, value: Any, key: str = "") -> Any:
        """Return any part of a conversation with its texts broken, names of objects' members too."""
        if isinstance(value, dict):
            return {self._broken(name): self.value(entry, name) for name, entry in value.items()}
        if isinstance(value, list):
            return [self.value(entry, key) for entry in value]
        if not isinstance(value, str):
            return value
        broken = self._broken(value)
        return self._with_borders(broken) if self._at_borders and key not in _STRUCTURE else broken

    def _broken(self, text: str) -> str:
        for first in self._firsts:
            if first in text:
                self.has_broken = True
                text = text.replace(first, first + self._sentinel)
        return text

    def _broken_answer(self, text: str) -> str:
        between, place = list[str](), 0
        for spoken in self._spoken.finditer(text):
            between += [self._broken(text[place : spoken.start()]), spoken.group()]
            place = spoken.end()
        whole = "".join([*between, self._broken(text[place:])])
        return self._with_borders(whole) if self._at_borders else whole

    def _with_borders(self, text: str) -> str:
        core = text.strip()
        if not core:
            return text
        self.has_broken = True
        before, _, behind = text.partition(core)
        return f"{before}{self._sentinel}{core}{self._sentinel}{behind}"
