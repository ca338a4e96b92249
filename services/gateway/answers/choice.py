"""One of a request's answers: its tokens become text, up to where it ends."""

from collections.abc import Collection
from dataclasses import dataclass, field

from common.errors import StructKVError
from common.pb import decode_pb2
from services.gateway.answers.detokenizer import Detokenizer
from services.gateway.answers.stop_strings import StopStrings
from services.gateway.answers.token_logprobs import HeldLogprobs, TokenLogprob
from services.gateway.tools.calls import ToolCallDelta
from services.gateway.tools.parser import ToolCallParser

_FINISH_REASONS = {
    decode_pb2.FINISH_REASON_UNSPECIFIED: None,
    decode_pb2.FINISH_REASON_STOP: "stop",
    decode_pb2.FINISH_REASON_LENGTH: "length",
    decode_pb2.FINISH_REASON_GRAMMAR: "stop",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Text and calls of tools that have become certain, and the log probabilities of their tokens if asked for."""

    text: str
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self.text or self.logprobs or self.tool_calls)


@dataclass(frozen=True, slots=True)
class Ending:
    """What may end an answer, as far as the gateway has to do with it.

    Attributes:
        stop_token_ids: those that the client named; they are told as the reason.
        min_tokens: tokens in whose text no stop string counts.
        stop_included: whether what ends the answer is part of its text.
    """

    stop_token_ids: Collection[int] = ()
    min_tokens: int = 0
    stop_included: bool = False


class Choice:
    """The text of one answer, and what is known of it so far.

    Attributes:
        index: the choice's place in the response.
        prompt_tokens: of its prompt.
        echo: the prompt's text, where it goes in front of the answer.
        completion_tokens: tokens received, a stop token included.
        finish_reason: "stop", "length" or "tool_calls"; None while it runs.
        stop_reason: the stop string, or the client's own stop token, that ended it.
    """

    def __init__(
        self,
        index: int,
        prompt_tokens: int,
        detokenizer: Detokenizer,
        stop_strings: StopStrings,
        ending: Ending,
        logprobs: HeldLogprobs | None,
        echo: str = "",
        tools: ToolCallParser | None = None,
    ) -> None:
        self.index = index
        self.prompt_tokens = prompt_tokens
        self.echo = echo
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._ending = ending
        self._logprobs = logprobs
        self._tools = tools
        self._decoded_length = 0  # of the text that the tokens gave
        self._length = 0  # of the text that has gone out
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None

    @property
    def with_logprobs(self) -> bool:
        """Whether log probabilities are asked for."""
        return self._logprobs is not None

    def take(self, event: decode_pb2.GenerateEvent) -> Piece:
        """Take the next tokens; return what is certain now. Raises StructKVError for an event that makes no sense."""
        if event.finish_reason not in _FINISH_REASONS:
            raise StructKVError("the decode worker gave an unknown finish reason")
        if self._logprobs is not None and len(event.logprobs) != len(event.token_ids):
            raise StructKVError("the decode worker gave tokens without their logprobs")
        text = self._take_tokens(event)
        if self.finish_reason is None and event.finish_reason != decode_pb2.FINISH_REASON_UNSPECIFIED:
            text += self._finish(event)
        self._length += len(text)
        logprobs = self._free_logprobs()
        return Piece(text, logprobs) if self._tools is None else self._without_calls(self._tools, text, logprobs)

    def _without_calls(self, tools: ToolCallParser, text: str, logprobs: list[TokenLogprob]) -> Piece:
        """Return a piece in which calls are no longer text."""
        content, calls = tools.push(text)
        if self.finish_reason is not None:
            rest, last = tools.flush()
            content, calls = content + rest, calls + last
        if self.finish_reason == "stop" and tools.num_calls:
            self.finish_reason = "tool_calls"
        return Piece(content, logprobs, calls)

    def _take_tokens(self, event: decode_pb2.GenerateEvent) -> str:
        """Return the text of an event's tokens, one by one: where an answer ends must not depend on how they came."""
        text, shown = "", len(event.token_ids) - self._ends_unseen(event)
        for place, token_id in enumerate(event.token_ids):
            self.completion_tokens += 1
            if place < shown:
                if self._logprobs is not None:
                    self._logprobs.push(token_id, event.logprobs[place], self._decoded_length)
                text += self._advance(self._detokenizer.push([token_id]))
            if self.finish_reason is not None:
                break
        return text

    def _ends_unseen(self, event: decode_pb2.GenerateEvent) -> bool:
        """Tell whether the event's last token is a stop token that is not text."""
        return event.finish_reason == decode_pb2.FINISH_REASON_STOP and not self._ending.stop_included

    def _advance(self, decoded: str) -> str:
        """Return what of the decoded text is free to go, up to a stop string."""
        self._decoded_length += len(decoded)
        may_stop = self.completion_tokens > self._ending.min_tokens
        text, found = self._stop_strings.push(decoded, may_stop=may_stop)
        if found is not None:
            self.finish_reason, self.stop_reason = "stop", found
        return text

    def _finish(self, event: decode_pb2.GenerateEvent) -> str:
        """Return what was held back, now that decode has ended the answer."""
        text = self._advance(self._detokenizer.flush())
        if self.finish_reason is not None:
            return text
        self.finish_reason = _FINISH_REASONS[event.finish_reason]
        if event.finish_reason == decode_pb2.FINISH_REASON_STOP and event.token_ids:
            last = event.token_ids[-1]
            self.stop_reason = last if last in self._ending.stop_token_ids else None
        return text + self._stop_strings.flush()

    def _free_logprobs(self) -> list[TokenLogprob]:
        if self._logprobs is None:
            return []
        cut = isinstance(self.stop_reason, str)  # what lies behind a stop string is nobody's
        if self.finish_reason is None or cut:
            return self._logprobs.release(self._length)
        return self._logprobs.flush()
