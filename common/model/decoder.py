"""A decoder-only transformers model, driven layer by layer.

The layers, norms, experts and rotary embeddings are transformers' own; only the loop over them is ours, and the layers
of Llama's and Gemma's shape are called by a shorter way. Whether this does what the model's own forward does is checked
at load, so an architecture that needs something more is refused instead of served wrongly.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from common.errors import ModelLoadError
from common.model.attention import IMPLEMENTATION, LayerAttention, causal_attention
from common.model.direct_layer import direct_layers
from common.model.linear import quicken
from common.model.precision import choose_dtype
from common.model.source import fingerprint, resolve

_PROBE_TOKENS = 12
_PROBE_SPLIT = 7
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")

Rotary = dict[str, tuple[Tensor, Tensor]]
"""Rotary cosines and sines, each [B, T, d], by layer type."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's geometry: what prefill and decode must agree on, and what sizes follow from.

    `windows[l]` is layer l's sliding window in tokens (the query's own included), None for full attention.
    """

    fingerprint: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_tokens: int
    windows: tuple[int | None, ...]
    dtype: torch.dtype

    def full_kv_bytes(self, prompt_tokens: int) -> int:
        """Return the size of a whole prompt's K/V over all layers in bfloat16."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim * prompt_tokens


class DecoderModel:
    """A model on one device, with the steps of its forward pass as methods."""

    def __init__(self, model: PreTrainedModel, model_fingerprint: str) -> None:
        """Take a loaded transformers causal model; raise ModelLoadError if it cannot be driven faithfully."""
        model.requires_grad_(False)
        self._model: Any = model.eval()
        self._config: Any = self._model.config.get_text_config(decoder=True)
        self._decoder: Any = self._model.get_decoder()
        self.device: torch.device = self._model.device
        if self.device.type == "cuda":  # torch might choose it, and it plans for 0.1 to 0.9 s at each new length
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.spec = _read_spec(self._config, self._model.dtype, model_fingerprint)
        self._layer_types = tuple(
            getattr(self._config, "layer_types", None) or ["full_attention"] * self.spec.num_layers
        )
        self._rotary_by_type = hasattr(self._decoder.rotary_emb, "layer_types")
        self._rotary_per_row = _rope_types(self._config) & set(_LENGTH_DEPENDENT_ROPE)
        quicken(self._model)
        self._direct = direct_layers(self._decoder.layers, self.device)
        if self._direct is None:
            logger.info("layers are called through transformers", extra={"model_type": self._config.model_type})
        self._verify()

    @property
    def rotary_depends_on_length(self) -> bool:
        """Whether `rotary` has to look at the positions on the host."""
        return bool(self._rotary_per_row)

    @property
    def has_experts(self) -> bool:
        """Whether layers send tokens to experts of their choice."""
        return any(name.endswith("experts") for name, _ in self._decoder.named_modules())

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [B, T] to hidden states [B, T, D]."""
        hidden: Tensor = self._decoder.embed_tokens(token_ids)
        return hidden * getattr(self._config, "embedding_multiplier", 1.0)  # Granite's

    @torch.inference_mode()
    def rotary(self, positions: Tensor) -> Rotary:
        """Rotary embeddings for positions [B, T], each row as if it were alone."""
        if self._rotary_per_row and positions.shape[0] > 1:
            # These scale by the largest position of the call: one sequence must not bend another's.
            rows = [self.rotary(row) for row in positions.split(1)]
            return {
                kind: (torch.cat([row[kind][0] for row in rows]), torch.cat([row[kind][1] for row in rows]))
                for kind in rows[0]
            }
        like = torch.empty(0, dtype=self.spec.dtype, device=self.device)
        if self._rotary_by_type:
            return {kind: self._decoder.rotary_emb(like, positions, kind) for kind in set(self._layer_types)}
        return dict.fromkeys(self._layer_types, self._decoder.rotary_emb(like, positions))

    @torch.inference_mode()
    def layer(self, layer: int, hidden: Tensor, rotary: Rotary, positions: Tensor, attention: LayerAttention) -> Tensor:
        """Run one decoder layer over hidden states [B, T, D] at positions [B, T]."""
        if self._direct is not None:
            return self._direct[layer](hidden, rotary[self._layer_types[layer]], attention)
        output: Tensor = self._decoder.layers[layer](
            hidden,
            attention_mask=None,
            position_embeddings=rotary[self._layer_types[layer]],
            position_ids=positions,
            past_key_values=None,
            use_cache=False,
            layer_attention=attention,
        )
        return output

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states [B, D], before the final norm, to float32 logits [B, V]."""
        logits: Tensor = self._model.lm_head(self._decoder.norm(hidden)) / getattr(self._config, "logits_scaling", 1.0)
        if (softcap := getattr(self._config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return logits.float()

    def _verify(self) -> None:
        """Refuse a model that is not driven faithfully; if it is the shorter way that is not, take the longer one."""
        error, tolerance = self._deviation()
        if not error <= tolerance and self._direct is not None:
            logger.warning("layers are called through transformers", extra={"error": error, "tolerance": tolerance})
            self._direct = None
            error, tolerance = self._deviation()
        if not error <= tolerance:
            raise ModelLoadError(
                f"{self._config.model_type} is not driven faithfully: logits differ by {error:.3g} from its own forward"
            )

    @torch.inference_mode()
    def _deviation(self) -> tuple[float, float]:
        """Return by how much the driven layers, fed in two chunks, differ from the model's own forward, and may."""
        # Spread over the vocabulary: its first ids are special tokens, on which rounding errors grow.
        token_ids = (torch.arange(_PROBE_TOKENS, device=self.device)[None] + 1) * 7919 % self.spec.vocab_size
        self._model.set_attn_implementation("sdpa")
        expected = self._model(input_ids=token_ids, use_cache=False).logits[0].float()
        self._model.set_attn_implementation(IMPLEMENTATION)

        positions = torch.arange(_PROBE_TOKENS, device=self.device)[None]
        hidden, rotary = self.embed(token_ids), self.rotary(positions)
        for layer in range(self.spec.num_layers):
            attention = _ProbeAttention(self.spec)
            for chunk in (slice(0, _PROBE_SPLIT), slice(_PROBE_SPLIT, None)):
                part = {kind: (cos[:, chunk], sin[:, chunk]) for kind, (cos, sin) in rotary.items()}
                hidden[:, chunk] = self.layer(layer, hidden[:, chunk], part, positions[:, chunk], attention)
        error = (self.logits(hidden[0]) - expected).abs().max().item()
        return error, 200 * torch.finfo(self.spec.dtype).eps * max(1.0, expected.abs().max().item())


class _ProbeAttention:
    """One layer's causal attention over chunks that checks the geometry it is called with."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._past: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        expected = (1, self._spec.num_kv_heads, key.shape[2], self._spec.head_dim)
        if tuple(key.shape) != expected or tuple(value.shape) != expected:
            raise ModelLoadError(
                f"layer {layer} has keys {tuple(key.shape)} and values {tuple(value.shape)}, not {expected}"
            )
        self._past.append((key, value))
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*self._past, strict=True))
        return causal_attention(query, keys, values, scaling)


def load(model: str, *, device: str, dtype: str, step_tokens: int = 1) -> DecoderModel:
    """Load a model by hub id, folder or GGUF file.

    `device` "auto" takes a GPU if there is one; `dtype` "auto" is what `choose_dtype` finds for steps of `step_tokens`.
    Raises ModelLoadError if it is not there, too large, or not an architecture that can be driven.
    """
    started = time.monotonic()
    disable_progress_bar()  # the log is for lines
    folder = resolve(model, weights=True)
    chosen = _choose_device(device)
    try:
        chosen_dtype = _choose_dtype(folder, dtype, chosen, step_tokens)
        weights: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen_dtype, attn_implementation="sdpa")
        loaded = DecoderModel(weights.to(chosen), fingerprint(folder))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelLoadError(f"cannot load {model}: {error}") from error
    logger.info(
        "model loaded",
        extra={
            "model": model,
            "fingerprint": loaded.spec.fingerprint,
            "device": str(chosen),
            "dtype": str(chosen_dtype),
            "seconds": round(time.monotonic() - started, 3),
        },
    )
    return loaded


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ModelLoadError(f"no such device: {device}") from error


def _choose_dtype(folder: Path, dtype: str, device: torch.device, step_tokens: int) -> torch.dtype:
    config: Any = AutoConfig.from_pretrained(folder).get_text_config(decoder=True)
    return choose_dtype(
        dtype,
        device,
        config.dtype or torch.float32,
        hidden_size=config.hidden_size,
        inner_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        step_tokens=step_tokens,
    )


def _read_spec(config: Any, dtype: torch.dtype, model_fingerprint: str) -> ModelSpec:
    num_heads = config.num_attention_heads
    return ModelSpec(
        fingerprint=model_fingerprint,
        num_layers=config.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_tokens=config.max_position_embeddings,
        windows=_read_windows(config),
        dtype=dtype,
    )


def _read_windows(config: Any) -> tuple[int | None, ...]:
    """Each layer's sliding window: by layer type where the architecture has types, else one for all."""
    window: int | None = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        num_layers: int = config.num_hidden_layers
        return (window,) * num_layers
    if unknown := set(layer_types) - {"full_attention", "sliding_attention"}:
        raise ModelLoadError(f"layers of type {', '.join(sorted(unknown))} are not supported")
    if getattr(config, "use_bidirectional_attention", None):
        raise ModelLoadError("bidirectional attention is not supported")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _rope_types(config: Any) -> set[str]:
    """Return the kinds of rotary embedding, which are given once or per layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    return {str(p.get("rope_type", "default")) for p in nested}
