"""Whether every rule of a Lark grammar that an answer may get into has an end."""

import re

from common.errors import InvalidRequestError
from services.gateway.requests.productive import Needs

_TOKEN = re.compile(
    r"""(?P<blank>(?:[ \t\r]|//[^\n]*|\#[^\n]*)+)
    |(?P<newline>\n)
    |(?P<terminal>"(?:[^"\\\n]|\\.)*"i?|/(?!/)(?:[^/\\]|\\.)+/[imslux]*|<[^>\n]*>|@[\w-]+|[?!]?_*[A-Z]\w*)
    |(?P<rule>[?!]?_*[a-z]\w*)
    |(?P<optional>[?*]|\{\s*0*\s*(?:,\s*\d*\s*)?\}|~\s*0+\s*\.\.\s*\d+)
    |(?P<repeated>\+|\{\s*\d+\s*(?:,\s*\d*\s*)?\}|~\s*\d+(?:\s*\.\.\s*\d+)?)
    |(?P<name>->\s*\w+)
    |(?P<sign>[|()\[\]&]|\.\.)
    """,
    re.VERBOSE,
)
_HEAD = re.compile(r"[?!]?(\w+)[ \t]*(?:\[[^\]\n]*\])?[ \t]*:(?!:)")
_DIRECTIVE = re.compile(r"%(?:ignore|import|llguidance)\b[^\n]*")
_GOES_ON = re.compile(r"(?:\s|//[^\n]*|\#[^\n]*)*\|")
_DEEPEST = 100


class _UnknownSyntaxError(Exception):
    """Something is there that is not looked through here."""


def check_ends(lark: str, param: str) -> None:
    """Raise InvalidRequestError for a rule that can never be complete, if the start leads to it.

    What is not known of the language here counts as if it had an end; llguidance looks at the rest.
    """
    try:
        endless = _Rules(lark).endless()
    except _UnknownSyntaxError:
        return
    if endless is not None:
        reason = f"the rule {endless} requires itself, so an answer would never end"
        raise InvalidRequestError(f"{param}: {reason}", param=param)


class _Rules:
    """The rules of a grammar, and the groups within them as rules of their own."""

    def __init__(self, lark: str) -> None:
        self._lark = lark
        self._place = 0
        self._text = ""
        self._needs = Needs[str]()
        self._needs.add("", ())  # a terminal
        self._mentioned: dict[str, set[str]] = {}
        self._num_groups = 0
        while self._place < len(lark):
            if head := _HEAD.match(lark, self._place):
                self._place = head.end()
                rule = head[1]
                self._read_alternatives(rule, self._mentioned.setdefault(rule, set()), 0)
            elif passed := _DIRECTIVE.match(lark, self._place):
                self._place = passed.end()
            elif self._next() not in {"blank", "newline"}:
                raise _UnknownSyntaxError

    def endless(self) -> str | None:
        """Return a rule that can never be complete, if the start leads to it."""
        if "start" not in self._mentioned:
            return None
        for rule in set().union(*self._mentioned.values()) - self._mentioned.keys():
            self._needs.add(rule, ())  # llguidance says that it is not there
        done = self._needs.completed()
        pending, seen = ["start"], {"start"}
        while pending:
            rule = pending.pop()
            if rule not in done:
                return next(name for name in reversed(self._needs.obstacle(rule, done)) if name in self._mentioned)
            new = self._mentioned.get(rule, set()) - seen
            seen |= new
            pending += new
        return None

    def _next(self) -> str:
        """Go on by a token; return its kind, or itself if it is a sign."""
        token = _TOKEN.match(self._lark, self._place)
        if token is None:
            raise _UnknownSyntaxError
        self._place = token.end()
        self._text = token.group().lstrip("?!")
        return self._text if token.lastgroup == "sign" else str(token.lastgroup)

    def _read_alternatives(self, owner: str, mentioned: set[str], depth: int) -> None:
        """Read up to a rule's end, or a group's, and say what its owner needs."""
        if depth > _DEEPEST:
            raise _UnknownSyntaxError
        needed: list[str] = []
        while self._place < len(self._lark):
            kind = self._next()
            if kind in {")", "]"} or (kind == "newline" and depth == 0 and not _GOES_ON.match(self._lark, self._place)):
                break
            if kind == "|":
                self._needs.add(owner, needed)
                needed = []
            elif kind == "rule":
                mentioned.add(self._text)
                needed.append(self._text)
            elif kind in {"(", "["}:
                needed.append(self._read_group(mentioned, depth, is_optional=kind == "["))
            elif kind == "terminal":
                needed.append("")
            elif kind == "optional" and needed:
                needed.pop()
        self._needs.add(owner, needed)

    def _read_group(self, mentioned: set[str], depth: int, *, is_optional: bool) -> str:
        self._num_groups += 1
        group = f"({self._num_groups})"
        self._read_alternatives(group, mentioned, depth + 1)
        if is_optional:
            self._needs.add(group, ())
        return group
