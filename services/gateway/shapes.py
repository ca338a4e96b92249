"""OpenAI's response objects, to the letter."""

import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from services.gateway.answer import Answer

JsonObject = dict[str, object]


class Shape(ABC):
    """What differs between the two endpoints' answers."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    @abstractmethod
    def whole(self, text: str, finish_reason: str | None) -> JsonObject:
        """Return the one choice of a plain answer."""

    @abstractmethod
    def opening(self) -> list[JsonObject]:
        """Return the choices that a stream sends before its text."""

    @abstractmethod
    def delta(self, text: str) -> JsonObject:
        """Return a stream's choice with a piece of text."""

    @abstractmethod
    def closing(self, finish_reason: str | None) -> JsonObject:
        """Return a stream's last choice."""


def model_object(name: str, context_tokens: int) -> JsonObject:
    """Return a served model as /v1/models shows it, with the context length that other servers give too."""
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "structkv",
        "max_model_len": context_tokens,
    }


def _choice(content: JsonObject, finish_reason: str | None) -> JsonObject:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}


class CompletionShape(Shape):
    """Answers of /v1/completions."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def whole(self, text: str, finish_reason: str | None) -> JsonObject:
        """Return the choice with its text."""
        return _choice({"text": text}, finish_reason)

    def opening(self) -> list[JsonObject]:
        """Return nothing: a completion begins with its text."""
        return []

    def delta(self, text: str) -> JsonObject:
        """Return a choice with a piece of text."""
        return _choice({"text": text}, None)

    def closing(self, finish_reason: str | None) -> JsonObject:
        """Return a choice with no text and the reason."""
        return _choice({"text": ""}, finish_reason)


class ChatShape(Shape):
    """Answers of /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, text: str, finish_reason: str | None) -> JsonObject:
        """Return the choice with its message."""
        return _choice({"message": {"role": "assistant", "content": text, "refusal": None}}, finish_reason)

    def opening(self) -> list[JsonObject]:
        """Return the delta that says who speaks."""
        return [_choice({"delta": {"role": "assistant", "content": ""}}, None)]

    def delta(self, text: str) -> JsonObject:
        """Return a delta with a piece of text."""
        return _choice({"delta": {"content": text}}, None)

    def closing(self, finish_reason: str | None) -> JsonObject:
        """Return an empty delta with the reason."""
        return _choice({"delta": {}}, finish_reason)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What surrounds the choices of one answer: its identity, its usage and, if asked for, its statistics."""

    shape: Shape
    model: str
    method: str
    prompt_tokens: int
    return_stats: bool
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, answer: Answer) -> JsonObject:
        """Return a plain answer's body."""
        choice = self.shape.whole(text, answer.finish_reason)
        return {**self._head(self.shape.whole_object, [choice]), "usage": self.usage(answer), **self.stats(answer)}

    def chunk(self, choice: JsonObject | None, **extra: object) -> JsonObject:
        """Return one chunk of a stream, without choices if there is none."""
        return {**self._head(self.shape.chunk_object, [] if choice is None else [choice]), **extra}

    def usage(self, answer: Answer) -> JsonObject:
        """Return OpenAI's token counts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": self.prompt_tokens + answer.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": answer.skeleton.cached_tokens},
        }

    def stats(self, answer: Answer) -> JsonObject:
        """Return the `structkv` entry with what became of the prompt, or nothing if it was not asked for."""
        if not self.return_stats:
            return {}
        skeleton = answer.skeleton
        stats = {
            "method": self.method,
            "prompt_tokens": self.prompt_tokens,
            "pivot_layer": skeleton.pivot_layer if skeleton.HasField("pivot_layer") else None,
            "kept_tokens_per_layer": list(skeleton.kept_tokens_per_layer),
            "skeleton_bytes": skeleton.skeleton_bytes,
            "full_kv_bytes": skeleton.full_kv_bytes,
            "transport": skeleton.transport,
            "prefill_seconds": skeleton.prefill_seconds,
            "transfer_seconds": skeleton.transfer_seconds,
            "queue_seconds": skeleton.queue_seconds,
            "ttft_seconds": answer.ttft_seconds,
        }
        return {"structkv": stats}

    def _head(self, kind: str, choices: list[JsonObject]) -> JsonObject:
        identity = f"{self.shape.id_prefix}{self.token}"
        return {"id": identity, "object": kind, "created": self.created, "model": self.model, "choices": choices}
