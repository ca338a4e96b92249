"""How a prompt's KV cache is reduced, and to how much. Prefill and decode derive the same budgets from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from common.errors import InvalidRequestError
from common.pb import skeleton_pb2

_RELATIVE: Mapping[str, Any] = {
    "window_tokens": 8,
    "saliency": "sum",
    "ranked_by": "saliency",
    "granularity": "head",
    "pool_tokens": 1,
    "block_tokens": 0,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "structkv": {},
    "full": {},
    "streaming_llm": _RELATIVE,
    "h2o": _RELATIVE,
    "snapkv": {**_RELATIVE, "window_tokens": 32, "pool_tokens": 7},
    "pyramid_infer": {**_RELATIVE, "granularity": "layer"},
    "gemfilter": {**_RELATIVE, "window_tokens": 1, "pool_tokens": 5, "granularity": "layer"},
    "fastkv": {**_RELATIVE, "pool_tokens": 7},
    "keydiff": _RELATIVE,
}
"""What each method's own paper or code takes where it differs from `Selection`'s defaults."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {**_RELATIVE, "granularity": "layer", "decay": 0.9},
}
"""StructKV as we serve it, and as arXiv 2604.06746 has it."""

METHODS = tuple(PRESETS)
SALIENCIES = ("peak", "sum")
RANKINGS = ("centrality", "saliency")
GRANULARITIES = ("head", "layer")
PIVOTS = ("calibrated", "online")
CODECS = ("raw", "int8", "int4")
MAX_POOL_TOKENS = 1024
"""Pooling takes as many steps for every token as it is wide; methods use 5 to 15."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A request's method, its two budgets, and the method's parameters.

    Attributes:
        method: one of `METHODS`; `full` keeps everything and is the reference.
        variant: of structkv, one of `VARIANTS`.
        kv_retention: R_KV, the share of the prompt's N tokens whose K/V a layer keeps.
        kv_tokens: the same as a number of tokens; 0 leaves it to `kv_retention`.
        struct_retention: R_struct, the share of N that the layers from the pivot on see.
        window_tokens: w, the last queries; their attention scores the other tokens. Always kept.
        sink_tokens: first tokens of the prompt; always kept, never scored.
        floor_tokens: prompts up to this length are left whole.
        saliency: a token's is the largest attention ("peak") or all the attention ("sum") that the window pays to it.
        ranked_by: what structkv chooses the kept tokens by: the layer's own saliency, as in the paper, or the
            centrality so far.
        granularity: one kept set per KV head ("head"), or one for the layer ("layer").
        pool_tokens: width of the max pooling that smooths scores along the tokens; 1 is none.
        block_tokens: sentences and lines, up to so many tokens long, stay together: all of a block's tokens count as
            its best one; 0 is off.
        decay: lambda of Global In-Degree Centrality.
        pivot: where structkv takes L* from: the model's calibration, or each prompt's own layers as they run.
        pivot_layer: the layers that see the whole prompt, for the methods that cut; 0 leaves it to `pivot`, or
            to the share of the layers that the method's paper takes.
        codec: the form in which the kept keys and values cross the network: bfloat16 ("raw"), or quantised. A prompt
            that is left whole crosses exactly, whatever this says.
    """

    method: str = "structkv"
    variant: str = "default"
    kv_retention: float = 0.10
    kv_tokens: int = 0
    struct_retention: float = 0.20
    window_tokens: int = 32
    sink_tokens: int = 4
    floor_tokens: int = 128
    saliency: str = "peak"
    ranked_by: str = "centrality"
    granularity: str = "layer"
    pool_tokens: int = 1
    block_tokens: int = 64
    decay: float = 1.0
    pivot: str = "calibrated"
    pivot_layer: int = 0
    codec: str = "int8"

    def __post_init__(self) -> None:
        """Refuse values outside their range, by name."""
        self._one_of("method", METHODS)
        self._one_of("variant", tuple(VARIANTS))
        self._one_of("saliency", SALIENCIES)
        self._one_of("ranked_by", RANKINGS)
        self._one_of("granularity", GRANULARITIES)
        self._one_of("pivot", PIVOTS)
        self._one_of("codec", CODECS)
        for name in ("kv_retention", "struct_retention", "decay"):
            self._require(0.0 < getattr(self, name) <= 1.0, name, "must be above 0 and at most 1")
        for name in ("window_tokens", "pool_tokens"):
            self._require(getattr(self, name) >= 1, name, "must be at least 1")
        self._require(self.pool_tokens <= MAX_POOL_TOKENS, "pool_tokens", f"must be at most {MAX_POOL_TOKENS}")
        for name in ("kv_tokens", "sink_tokens", "floor_tokens", "block_tokens", "pivot_layer"):
            self._require(getattr(self, name) >= 0, name, "must not be negative")
        self._require(self.variant == "default" or self.method == "structkv", "variant", "is structkv's alone")

    def keeps_everything(self, prompt_tokens: int) -> bool:
        """Tell whether a prompt of N tokens is left whole."""
        return self.method == "full" or prompt_tokens <= self.floor_tokens

    def kv_budget(self, prompt_tokens: int) -> int:
        """Return how many of N tokens a full-attention layer keeps on average, sinks and window included."""
        if self.kv_tokens and not self.keeps_everything(prompt_tokens):
            return min(prompt_tokens, max(self.kv_tokens, self._always))
        return self._share(prompt_tokens, self.kv_retention)

    def layer_budgets(self, prompt_tokens: int, num_layers: int) -> list[int]:
        """Return how many of N tokens each layer keeps if it has full attention: prefill's aim, decode's bound."""
        budget = self.kv_budget(prompt_tokens)
        if self.method != "pyramid_infer" or budget == prompt_tokens or num_layers == 1:
            return [budget] * num_layers
        # PyramidInfer: falling evenly with depth around the same mean.
        spread = min(budget - self._always, prompt_tokens - budget) * 0.8
        slope = [1 - 2 * layer / (num_layers - 1) for layer in range(num_layers)]
        return [round(budget + spread * part) for part in slope]

    def max_kept_tokens(self, prompt_tokens: int, windows: Sequence[int | None]) -> list[int]:
        """Return the most that each layer's skeleton can hold, known before the prompt runs.

        `windows` has each layer's sliding window in tokens, None for full attention.
        """
        budgets = self.layer_budgets(prompt_tokens, len(windows))
        return [
            budget if window is None else min(prompt_tokens, window)
            for budget, window in zip(budgets, windows, strict=True)
        ]

    def struct_budget(self, prompt_tokens: int) -> int:
        """Return |I_struct|: how many of N tokens the layers from the pivot on see; never fewer than they keep."""
        return max(self._share(prompt_tokens, self.struct_retention), self.kv_budget(prompt_tokens))

    def next_position(self, prompt_tokens: int) -> int:
        """Return the position of the answer's first token: N, but GemFilter's chosen tokens are a new prompt."""
        return self.kv_budget(prompt_tokens) if self.method == "gemfilter" else prompt_tokens

    @property
    def _always(self) -> int:
        return self.sink_tokens + self.window_tokens

    def _share(self, prompt_tokens: int, rate: float) -> int:
        if self.keeps_everything(prompt_tokens):
            return prompt_tokens
        return min(prompt_tokens, max(math.ceil(prompt_tokens * rate), self._always))

    def _one_of(self, name: str, known: tuple[str, ...]) -> None:
        self._require(getattr(self, name) in known, name, f"must be one of {', '.join(known)}")

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise InvalidRequestError(f"{name} {rule}, not {getattr(self, name)!r}", param=f"structkv.{name}")

    @classmethod
    def of(cls, options: Mapping[str, Any], defaults: Self | None = None) -> Self:
        """Return the selection that `options` ask for, by field name.

        What they leave open comes from `defaults`; but a method or variant other than the defaults' brings its
        own parameters, and only the budgets and the codec are taken over. Raises InvalidRequestError for values out
        of range.
        """
        base = defaults or cls()
        method = options.get("method", base.method)
        variant = options.get("variant", base.variant if method == base.method else "default")
        if (method, variant) != (base.method, base.variant):
            base = cls(
                kv_retention=base.kv_retention,
                kv_tokens=base.kv_tokens,
                struct_retention=base.struct_retention,
                floor_tokens=base.floor_tokens,
                codec=base.codec,
            )
        own = {**PRESETS.get(method, {}), **VARIANTS.get(variant, {})}
        if "kv_retention" in options:  # a request's rate is meant, whatever the defaults count in
            own["kv_tokens"] = 0
        return replace(base, **{**own, **options, "method": method, "variant": variant})

    @classmethod
    def from_pb(cls, message: skeleton_pb2.Selection) -> Self:
        """Read a message; raise InvalidRequestError for values out of range."""
        return cls(**{name: getattr(message, name) for name in cls.__dataclass_fields__})

    def to_pb(self) -> skeleton_pb2.Selection:
        """Return the message that `from_pb` reads."""
        return skeleton_pb2.Selection(**asdict(self))
