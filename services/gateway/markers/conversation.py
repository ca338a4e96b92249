"""Renders conversations so that no marker but the template's own reaches the model.

`<|im_end|>` in what a client writes is a word, as in a book about models: whoever writes a document must not be able to
end the user's turn and speak as the system. So a template is rendered a second time with everything broken that could
be a part of a marker. The markers that are left are the template's. If the text as it is has no others, it is tokenised
as ever. Otherwise a second tokenizer reads it, which knows the markers by aliases, and the template's are written so.
"""

import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from common.errors import InvalidRequestError
from services.gateway.chat_template import ChatMessage, ChatTemplate
from services.gateway.markers.aliases import aliases_of, with_aliases
from services.gateway.markers.breaker import Breaker, unused_character
from services.gateway.markers.pattern import is_marker, pattern_of

Tools = Sequence[dict[str, Any]] | None

_PLACEHOLDER = re.compile(r"%\w|\{[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation's text and its tokens.

    Attributes:
        text: as the tokenizer has read it.
        encoding: its tokens.
        messages: the messages that it was rendered from.
        tools: likewise.
        spelled: writes a rendered text as the tokenizer has read it.
    """

    text: str
    encoding: Encoding
    messages: Sequence[ChatMessage]
    tools: Tools
    spelled: Callable[[str], str]


class Conversations:
    """A model's conversations as text in which only its template makes markers. Nothing here changes.

    Attributes:
        parts: the tokenizer and the template that it is made of.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        markers = [
            token for token in tokenizer.get_added_tokens_decoder().values() if is_marker(token, template.source)
        ]
        names = [token.content for token in markers]
        self.parts = (tokenizer, template)
        self._template = template
        self._tokenizer = tokenizer
        self._aliases = aliases_of(names)
        self._aliased = with_aliases(tokenizer, self._aliases)
        self._markers = pattern_of(markers)
        self._spoken = pattern_of(token for token in markers if not token.special)
        self._firsts = frozenset(form for name in names for form in (name[0], name[0].lower(), name[0].upper()))
        self._ids = frozenset(tokenizer.token_to_id(name) for name in names)
        # A normaliser may make a marker of other characters: what is written does not tell then.
        self._are_normalised = tokenizer.normalizer is not None and any(token.normalized for token in markers)
        self._begins_markers = _end_within(template.literals, names)

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Tools,
        check_length: Callable[[str], None],
        *,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
    ) -> Rendering:
        """Render and tokenise a conversation. Raises as the template does, and as `check_length` does of its text."""
        whole = self._template.render(messages, tools, add_generation_prompt=add_generation_prompt)
        check_length(whole)
        sentinel = unused_character(whole)
        breaker = Breaker(sentinel, self._firsts, self._spoken, at_borders=self._begins_markers)
        try:
            broken_messages = [breaker.message(message) for message in messages]
            broken_tools = None if tools is None else breaker.value(list(tools))
        except RecursionError:
            raise InvalidRequestError("a call's arguments, or a tool's parameters, are nested too deeply") from None
        if breaker.has_broken:
            broken = self._template.render(broken_messages, broken_tools, add_generation_prompt=add_generation_prompt)
            if not self._have_the_same(whole, broken, sentinel, (messages, tools)):
                return self._aliased_rendering(broken, broken_messages, broken_tools, sentinel, add_special_tokens)
        encoding = self._tokenizer.encode(whole, add_special_tokens=add_special_tokens)
        if self._are_normalised and not self._are_written(whole, encoding):
            return self._aliased_rendering(whole, messages, tools, sentinel, add_special_tokens)
        return Rendering(whole, encoding, messages, tools, spelled=lambda text: text)

    def closing_tokens(self, rendering: Rendering) -> int:
        """Return how many of the last tokens the template has written after the last message's content.

        A unique word takes the content's place, for the content itself may be as short as a word of the template.
        """
        word = uuid.uuid4().hex
        last = {**rendering.messages[-1], "content": word}
        before, _, behind = self._template.render([*rendering.messages[:-1], last], rendering.tools).rpartition(word)
        closing = rendering.spelled(behind)
        if not before or not closing or not rendering.text.endswith(closing):
            return 0
        first_closing = rendering.encoding.char_to_token(len(rendering.text) - len(closing))
        return 0 if first_closing is None else len(rendering.encoding) - first_closing

    def _have_the_same(self, whole: str, broken: str, sentinel: str, source: object) -> bool:
        """Tell whether the markers of a text are those that are left when everything of the client's is broken."""
        if self._markers.findall(whole) != self._markers.findall(broken):
            return False
        # A template that looks at contents may have written something else. Then nothing of the client's may be one.
        return broken.replace(sentinel, "") == whole or not self._is_in(source)

    def _is_in(self, value: object) -> bool:
        if isinstance(value, dict):
            return any(map(self._is_in, (*value.keys(), *value.values())))
        if isinstance(value, list | tuple):
            return any(map(self._is_in, value))
        return isinstance(value, str) and self._markers.search(value) is not None

    def _are_written(self, text: str, encoding: Encoding) -> bool:
        """Tell whether each marker among the tokens stands in the text as such."""
        return all(
            self._markers.search(text, *span) is not None
            for token, span in zip(encoding.ids, encoding.offsets, strict=True)
            if token in self._ids and span[0] < span[1]  # what a tokenizer adds itself has no span
        )

    def _aliased_rendering(
        self, text: str, messages: Sequence[ChatMessage], tools: Tools, sentinel: str, add_special_tokens: bool
    ) -> Rendering:
        def spelled(text: str) -> str:
            aliased = self._markers.sub(lambda marker: self._aliases[marker.group()], text)
            return aliased.replace(sentinel, "")

        aliased = spelled(text)
        encoding = self._aliased.encode(aliased, add_special_tokens=add_special_tokens)
        return Rendering(aliased, encoding, messages, tools, spelled)


def _end_within(literals: Iterable[str], names: Iterable[str]) -> bool:
    """Tell whether a part of a template ends in the midst of a marker, which a client's text could complete."""
    begun = {name[:length] for name in names for length in range(1, len(name))}
    longest = max(map(len, begun), default=0)
    pieces = (piece for literal in literals for piece in _PLACEHOLDER.split(literal))
    return any(piece[-length:] in begun for piece in pieces for length in range(1, longest + 1))
