"""OpenAI's choices, to the letter, whole and in pieces."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from services.gateway.answers.choice import Choice, Piece
from services.gateway.answers.logprob_shapes import JsonObject, chat_logprobs, completion_logprobs
from services.gateway.answers.token_logprobs import TokenLogprob
from services.gateway.tools.calls import ToolCallDelta


class Shape(ABC):
    """What differs between the two endpoints' answers."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    @abstractmethod
    def whole(self, choice: Choice, whole: Piece) -> JsonObject:
        """Return one choice of a plain answer."""

    @abstractmethod
    def opening(self, choice: Choice) -> JsonObject | None:
        """Return what a stream sends of a choice before its text, if anything."""

    @abstractmethod
    def delta(self, choice: Choice, piece: Piece) -> JsonObject:
        """Return a stream's choice with a piece of text."""

    @abstractmethod
    def closing(self, choice: Choice) -> JsonObject:
        """Return the last that a stream sends of a choice."""

    @abstractmethod
    def logprobs(self, entries: Sequence[TokenLogprob]) -> JsonObject:
        """Return log probabilities of tokens."""

    def _going_on(self, choice: Choice, content: JsonObject, entries: Sequence[TokenLogprob] = ()) -> JsonObject:
        logprobs = self.logprobs(entries) if entries else None
        return {"index": choice.index, **content, "logprobs": logprobs, "finish_reason": None}

    def _finished(self, choice: Choice, content: JsonObject, logprobs: JsonObject | None = None) -> JsonObject:
        return {
            "index": choice.index,
            **content,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _logprobs_of_all(self, choice: Choice, whole: Piece) -> JsonObject | None:
        return self.logprobs(whole.logprobs) if choice.with_logprobs else None


class CompletionShape(Shape):
    """Answers of /v1/completions."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def whole(self, choice: Choice, whole: Piece) -> JsonObject:
        """Return the choice with its text."""
        return self._finished(choice, {"text": whole.text}, self._logprobs_of_all(choice, whole))

    def opening(self, choice: Choice) -> None:
        """Return nothing: a completion begins with its text."""

    def delta(self, choice: Choice, piece: Piece) -> JsonObject:
        """Return a choice with a piece of text."""
        return self._going_on(choice, {"text": piece.text}, piece.logprobs)

    def closing(self, choice: Choice) -> JsonObject:
        """Return a choice with no text and the reason."""
        return self._finished(choice, {"text": ""})

    def logprobs(self, entries: Sequence[TokenLogprob]) -> JsonObject:
        """Return a list for each of token, log probability, likeliest tokens and offset."""
        return completion_logprobs(entries)


class ChatShape(Shape):
    """Answers of /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, choice: Choice, whole: Piece) -> JsonObject:
        """Return the choice with its message."""
        message: JsonObject = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.tool_calls:
            message |= {"content": whole.text or None, "tool_calls": [_whole_call(call) for call in whole.tool_calls]}
        return self._finished(choice, {"message": message}, self._logprobs_of_all(choice, whole))

    def opening(self, choice: Choice) -> JsonObject:
        """Return the delta that says who speaks."""
        return self._going_on(choice, {"delta": {"role": "assistant", "content": ""}})

    def delta(self, choice: Choice, piece: Piece) -> JsonObject:
        """Return a delta with a piece of text."""
        delta: JsonObject = {} if piece.tool_calls and not piece.text else {"content": piece.text}
        if piece.tool_calls:
            delta["tool_calls"] = [_call_delta(call) for call in piece.tool_calls]
        return self._going_on(choice, {"delta": delta}, piece.logprobs)

    def closing(self, choice: Choice) -> JsonObject:
        """Return an empty delta with the reason."""
        return self._finished(choice, {"delta": {}})

    def logprobs(self, entries: Sequence[TokenLogprob]) -> JsonObject:
        """Return an object for each token."""
        return chat_logprobs(entries)


def _whole_call(call: ToolCallDelta) -> JsonObject:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.identity, "type": "function", "function": function}


def _call_delta(call: ToolCallDelta) -> JsonObject:
    if call.identity is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, **_whole_call(call)}
