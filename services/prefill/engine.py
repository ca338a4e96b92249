"""Prefill of one prompt as a generator: each step runs one layer over the whole sequence.

Full keys and values exist for one layer at a time. What a layer keeps is handed out as soon as the layer is done.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import ContextLengthError, InvalidRequestError
from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from services.prefill.attention import sequence_attention
from services.prefill.structkv.config import StructKVConfig
from services.prefill.structkv.method import Budget, StructKV


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What one layer keeps of the prompt.

    Attributes:
        layer: its index.
        keys: rotated, [kept, G, d].
        values: [kept, G, d].
        positions: [kept], int64, for a sliding-window layer, whose tokens expire one day; else None, since with
            one set per KV head there is no single position.
    """

    layer: int
    keys: Tensor
    values: Tensor
    positions: Tensor | None


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """The prompt's last token after the last layer, [D] before the final norm, and L* if a cut was made."""

    hidden_state: Tensor
    pivot_layer: int | None


class _CapturingAttention:
    """Attention over the sequence that keeps hold of one layer's inputs until they are selected from."""

    def __init__(self, windows: tuple[int | None, ...]) -> None:
        self._windows = windows
        self.positions: Tensor
        self.query: Tensor
        self.key: Tensor
        self.value: Tensor
        self.scaling: float

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        self.query, self.key, self.value, self.scaling = query[0], key[0], value[0], scaling
        return sequence_attention(query, key, value, self.positions, self._windows[layer], scaling)

    def release(self) -> None:
        """Let go of the layer's tensors."""
        del self.query, self.key, self.value


class PrefillEngine:
    """Runs prompts on one model."""

    def __init__(self, model: DecoderModel, config: StructKVConfig) -> None:
        self.model = model
        self._config = config

    def check(self, token_ids: list[int]) -> None:
        """Raise for a prompt that cannot be run: empty, too long, or with ids outside the vocabulary."""
        spec = self.model.spec
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if len(token_ids) > spec.max_tokens:
            raise ContextLengthError(f"the prompt has {len(token_ids)} tokens, the model's length is {spec.max_tokens}")
        if max(token_ids) >= spec.vocab_size:
            raise InvalidRequestError(f"token id {max(token_ids)} is outside the vocabulary", param="prompt")

    def run(self, token_ids: list[int], selection: Selection) -> Generator[KeptLayer | PromptEnd, None, None]:
        """Yield every layer's kept K/V in order, then the prompt's end. Each step runs one layer."""
        model, spec = self.model, self.model.spec
        method = self._method(len(token_ids), selection)
        positions = torch.arange(len(token_ids), device=model.device)
        hidden = model.embed(torch.tensor([token_ids], device=model.device))
        rotary = model.rotary(positions[None])
        attention = _CapturingAttention(spec.windows)

        for layer in range(spec.num_layers):
            attention.positions = positions
            hidden = model.layer(layer, hidden, rotary, positions[None], attention)
            kept, going_on = self._select(method, layer, attention, selection)
            yield _gather(layer, attention, kept, positions if spec.windows[layer] else None)
            attention.release()
            if going_on is not None:
                hidden, positions = hidden[:, going_on], positions[going_on]
                rotary = {kind: (cos[:, going_on], sin[:, going_on]) for kind, (cos, sin) in rotary.items()}

        yield PromptEnd(hidden[0, -1].clone(), method.pivot_layer if method else None)

    def _method(self, num_tokens: int, selection: Selection) -> StructKV | None:
        """Return the prompt's selection method; None leaves it whole."""
        if selection.keeps_everything(num_tokens):
            return None
        budget = Budget(
            kv_tokens=selection.kv_budget(num_tokens),
            struct_tokens=selection.struct_budget(num_tokens),
            struct_retention=selection.struct_retention,
            window=selection.window_tokens,
            sinks=selection.sink_tokens,
        )
        windows = self.model.spec.windows
        full_layers = [layer for layer, window in enumerate(windows) if window is None]
        return StructKV(self._config, budget, full_layers=full_layers, num_layers=len(windows))

    def _select(
        self, method: StructKV | None, layer: int, attention: _CapturingAttention, selection: Selection
    ) -> tuple[Tensor | slice, Tensor | None]:
        """Return what the layer keeps, and which tokens go on if the sequence shrinks after it."""
        window = self.model.spec.windows[layer]
        if window is not None:  # its memory is bounded as it is: exactly the window is kept
            last, positions = attention.positions[-1], attention.positions
            return slice(int(torch.searchsorted(positions, last - window + 1)), None), None
        if method is None:
            return slice(None), None
        window_query = attention.query[:, -selection.window_tokens :]
        return method.keep(layer, window_query, attention.key, attention.scaling)


def _gather(layer: int, attention: _CapturingAttention, kept: Tensor | slice, positions: Tensor | None) -> KeptLayer:
    """Take the kept tokens out of [G, N, d]: one set for all groups, or [G, kept], one for each."""

    def take(full: Tensor) -> Tensor:
        if isinstance(kept, Tensor) and kept.dim() == 2:
            index = kept[:, :, None].expand(-1, -1, full.shape[-1])
            return full.gather(1, index).transpose(0, 1).contiguous()
        return full[:, kept].transpose(0, 1).contiguous()

    return KeptLayer(layer, take(attention.key), take(attention.value), None if positions is None else positions[kept])
