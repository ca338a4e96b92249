"""A tiny random model of each supported family, with grouped KV heads."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SLIDING_WINDOW = 24

_SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "gemma3_text": {
        "sliding_window": SLIDING_WINDOW,
        "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2,
        "query_pre_attn_scalar": 16,
    },
    "granite": {
        "embedding_multiplier": 6.0,
        "logits_scaling": 4.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
    },
    "olmo2": {},
    "smollm3": {"no_rope_layer_interval": 3},
    "mixtral": _EXPERTS,
    "qwen3_moe": _EXPERTS,
}


def tiny_model(family: str, **overrides: object) -> PreTrainedModel:
    """Return a family's tiny model: float32, the same weights at every call."""
    config = AutoConfig.for_model(family, **(_SIZES | FAMILIES[family] | overrides))
    torch.manual_seed(len(family))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    # The initialisation's small weights make all logits alike; larger ones make choices distinct.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()
