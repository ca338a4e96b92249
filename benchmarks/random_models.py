"""Models in the shape of known ones with random weights: speed does not depend on what they say."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PretrainedConfig, PreTrainedModel

LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "max_position_embeddings": 1 << 20,
    "tie_word_embeddings": False,
}

LLAMA_1B = {
    **LLAMA_8B,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}

GEMMA_12B = {
    "hidden_size": 3840,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "intermediate_size": 15360,
    "vocab_size": 262208,
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "max_position_embeddings": 1 << 17,
}


def random_llama(device: str, dtype: torch.dtype = torch.bfloat16, **overrides: object) -> PreTrainedModel:
    """Return a model in Llama-3.1-8B's shape, made on the device; `overrides` are of its configuration."""
    return _random(LlamaConfig(**{**LLAMA_8B, **overrides}), device, dtype)  # type: ignore[arg-type]


def random_gemma(device: str, dtype: torch.dtype = torch.bfloat16, **overrides: object) -> PreTrainedModel:
    """Return a model in Gemma-3-12B's shape, five layers of six with a sliding window; likewise."""
    return _random(Gemma3TextConfig(**{**GEMMA_12B, **overrides}), device, dtype)  # type: ignore[arg-type]


def _random(config: PretrainedConfig, device: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(device):
        made: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model: PreTrainedModel = made.eval()
    return model
