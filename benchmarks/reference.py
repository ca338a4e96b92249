"""transformers alone, as its users run it: its own model and cache, SDPA attention, greedy steps."""

import time
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from benchmarks.engines import synchronise
from common.model.attention import IMPLEMENTATION
from common.model.source import resolve


def load_reference(model: str, dtype: str, device: str = "cpu") -> PreTrainedModel:
    """Load a model for transformers' own forward pass."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        resolve(model, weights=True), dtype=dtype, attn_implementation="sdpa"
    )
    reference: PreTrainedModel = loaded.to(device).eval()
    return reference


class ReferencePrefill:
    """Runs prompts to their first token's logits, with a whole cache behind them."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a model; it may be one that our engine drives, and gets its attention back then."""
        self._model: Any = model
        self._shared = model.config._attn_implementation == IMPLEMENTATION

    def __call__(self, token_ids: list[int]) -> float:
        """Run a prompt; return the seconds."""
        if self._shared:
            self._model.set_attn_implementation("sdpa")
        synchronise(self._model.device)
        started = time.perf_counter()
        logits, _ = self.run(token_ids)
        logits.argmax(dim=-1).cpu()
        seconds = time.perf_counter() - started
        if self._shared:
            self._model.set_attn_implementation(IMPLEMENTATION)
        return seconds

    @torch.inference_mode()
    def run(self, token_ids: list[int]) -> tuple[Tensor, DynamicCache]:
        """Return a prompt's last logits, [1, V], and its cache."""
        cache = DynamicCache(config=self._model.config)
        ids = torch.tensor([token_ids], device=self._model.device)
        output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], cache


class ReferenceDecode:
    """A batch of equal prompts on its way, greedy."""

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, logits: Tensor, batch: int) -> None:
        """Take a prompt's cache, which is used up, and its last logits, [1, V]."""
        self._model: Any = model
        cache.batch_repeat_interleave(batch)
        self._cache = cache
        self._tokens = logits.argmax(dim=-1, keepdim=True).expand(batch, 1).contiguous()

    @torch.inference_mode()
    def step(self) -> None:
        """Give every sequence its next token."""
        output = self._model(input_ids=self._tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._tokens = output.logits[:, -1].argmax(dim=-1, keepdim=True)
