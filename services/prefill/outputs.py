"""What the prefill engine hands out, step by step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What one layer keeps of the prompt.

    Attributes:
        layer: its index.
        keys: rotated, [kept, G, d].
        values: [kept, G, d].
        positions: [kept], int64, for a sliding-window layer, whose tokens expire one day; else None, since with
            one set per KV head there is no single position.
        places: where in the prompt the kept tokens stand, [kept], or [G, kept] with one set per KV head; int64.
        select_seconds: the time that choosing took.
    """

    layer: int
    keys: Tensor
    values: Tensor
    positions: Tensor | None
    places: Tensor
    select_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """The end of a prompt.

    Attributes:
        hidden_state: the last token after the last layer, [D] before the final norm.
        pivot_layer: L* if a cut was made.
        compute_seconds: the time its layers took, shared ones counted whole.
    """

    hidden_state: Tensor
    pivot_layer: int | None
    compute_seconds: float


Output = KeptLayer | PromptEnd | None
"""What a step gives: a layer, the end, or nothing yet, from a method that only looks at first."""
