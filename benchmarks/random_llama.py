"""A model in Llama-3.1-8B's shape with random weights: speed does not depend on what they say."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

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


def random_llama(device: str, dtype: torch.dtype = torch.bfloat16, **overrides: object) -> PreTrainedModel:
    """Return the model, made on the device; `overrides` are of its configuration."""
    config = LlamaConfig(**{**LLAMA_8B, **overrides})  # type: ignore[arg-type]
    torch.manual_seed(0)
    with torch.device(device):
        made: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model: PreTrainedModel = made.eval()
    return model
