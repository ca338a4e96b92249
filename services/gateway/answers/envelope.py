"""What surrounds the choices of a response: its identity, usage and statistics."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.gateway.answers.answer import Answer
from services.gateway.answers.choice import Choice, Piece
from services.gateway.answers.logprob_shapes import JsonObject
from services.gateway.answers.shapes import Shape


@dataclass(frozen=True, slots=True)
class Envelope:
    """What surrounds the choices of one answer: its identity, its usage and, if asked for, its statistics."""

    shape: Shape
    model: str
    method: str
    return_stats: bool
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer, wholes: Sequence[Piece]) -> JsonObject:
        """Return a plain answer's body."""
        choices = [self.shape.whole(choice, whole) for choice, whole in zip(answer.choices, wholes, strict=True)]
        return {**self._head(self.shape.whole_object, choices), "usage": self.usage(answer), **self.stats(answer)}

    def chunk(self, choice: JsonObject | None, **extra: object) -> JsonObject:
        """Return one chunk of a stream, without choices if there is none."""
        return {**self._head(self.shape.chunk_object, [] if choice is None else [choice]), **extra}

    def usage(self, answer: Answer) -> JsonObject:
        """Return OpenAI's token counts, over all prompts and answers."""
        cached_tokens = sum(skeleton.cached_tokens for skeleton in answer.skeletons)
        return _usage(answer.prompt_tokens, answer.completion_tokens, cached_tokens)

    def usage_so_far(self, answer: Answer, choice: Choice) -> JsonObject:
        """Return the token counts of one choice and its prompt."""
        cached_tokens = answer.skeleton_of(choice).cached_tokens
        return _usage(choice.prompt_tokens, choice.completion_tokens, cached_tokens)

    def stats(self, answer: Answer) -> JsonObject:
        """Return the `structkv` entry with what became of the prompt, or nothing if it was not asked for."""
        if not self.return_stats:
            return {}
        (skeleton,) = answer.skeletons
        stats = {
            "method": self.method,
            "prompt_tokens": answer.prompt_tokens,
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


def _usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> JsonObject:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
