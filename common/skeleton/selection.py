"""How much of a prompt's KV cache is kept. Prefill and decode derive the same budget from it."""

import math
from dataclasses import asdict, dataclass
from typing import Self

from common.errors import InvalidRequestError
from common.pb import skeleton_pb2

METHODS = ("structkv", "full")


@dataclass(frozen=True, slots=True)
class Selection:
    """A request's selection method and its two budgets (StructKV, arXiv 2604.06746).

    Attributes:
        method: one of `METHODS`; `full` keeps everything and is the reference.
        kv_retention: R_KV, the share of the prompt's N tokens whose K/V a layer keeps.
        struct_retention: R_struct, the share of N that the layers from the pivot on see.
        window_tokens: w, the last queries; their attention scores the other tokens. Always kept.
        sink_tokens: first tokens of the prompt; always kept, never scored.
        floor_tokens: prompts up to this length are left whole.
    """

    method: str = "structkv"
    kv_retention: float = 0.10
    struct_retention: float = 0.20
    window_tokens: int = 8
    sink_tokens: int = 4
    floor_tokens: int = 128

    def __post_init__(self) -> None:
        """Refuse values outside their range, by name."""
        if self.method not in METHODS:
            raise InvalidRequestError(
                f"method must be one of {', '.join(METHODS)}, not {self.method!r}", param="structkv.method"
            )
        for name in ("kv_retention", "struct_retention"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise InvalidRequestError(
                    f"{name} must be above 0 and at most 1, not {getattr(self, name)}",
                    param=f"structkv.{name}",
                )
        if self.window_tokens < 1:
            raise InvalidRequestError("window_tokens must be at least 1", param="structkv.window_tokens")

    def keeps_everything(self, prompt_tokens: int) -> bool:
        """Tell whether a prompt of N tokens is left whole."""
        return self.method == "full" or prompt_tokens <= self.floor_tokens

    def kv_budget(self, prompt_tokens: int) -> int:
        """Return how many of N tokens a full-attention layer keeps, sinks and window included."""
        return self._budget(prompt_tokens, self.kv_retention)

    def struct_budget(self, prompt_tokens: int) -> int:
        """Return |I_struct|: how many of N tokens the layers from the pivot on see."""
        return self._budget(prompt_tokens, self.struct_retention)

    def _budget(self, prompt_tokens: int, rate: float) -> int:
        if self.keeps_everything(prompt_tokens):
            return prompt_tokens
        always = self.sink_tokens + self.window_tokens
        return min(prompt_tokens, max(math.ceil(prompt_tokens * rate), always))

    @classmethod
    def from_pb(cls, message: skeleton_pb2.Selection) -> Self:
        """Read a message; raise InvalidRequestError for values out of range."""
        return cls(
            method=message.method,
            kv_retention=message.kv_retention,
            struct_retention=message.struct_retention,
            window_tokens=message.window_tokens,
            sink_tokens=message.sink_tokens,
            floor_tokens=message.floor_tokens,
        )

    def to_pb(self) -> skeleton_pb2.Selection:
        """Return the message that `from_pb` reads."""
        return skeleton_pb2.Selection(**asdict(self))
