"""How large everything is: as on a GPU of 80 GB, or tiny, so that the command can be tried without one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class Scale:
    """What the parts measure.

    Attributes:
        device: torch device.
        dtype: of weights, keys and values.
        llama: overrides of Llama-3.1-8B's configuration, for the whole model.
        llama_1b: of Llama-3.2-1B's, for both services on one device.
        gemma: of Gemma-3-12B's.
        truth_layers: of the models that are held against transformers in float32.
        truth_tokens: their prompt.
        prompts: lengths in tokens.
        pivot_layer: L* of the whole model; 14 of 32 lies where the paper's pivots do.
        longest_prompt: for which the memory has room.
        batches: running requests.
        kept: tokens that each keeps.
        streams: at once, through HTTP.
        stream_prompt: tokens of each one's prompt.
        stream_tokens: of each one's answer.
    """

    device: str
    dtype: torch.dtype = torch.bfloat16
    llama: Mapping[str, object] = field(default_factory=dict)
    llama_1b: Mapping[str, object] = field(default_factory=dict)
    gemma: Mapping[str, object] = field(default_factory=dict)
    truth_layers: int = 4
    truth_tokens: int = 8192
    prompts: tuple[int, ...] = (32768, 131072)
    pivot_layer: int = 14
    longest_prompt: int = 1 << 20
    batches: tuple[int, ...] = (1, 16, 64, 256)
    kept: tuple[int, ...] = (512, 3328, 13312)
    streams: int = 64
    stream_prompt: int = 4096
    stream_tokens: int = 256


_TINY: dict[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 512,
}


def scale_of(device: str) -> Scale:
    """Return what is measured on a device."""
    if device != "cpu":
        return Scale(device)
    return Scale(
        device,
        dtype=torch.float32,  # as which Triton interprets its kernels
        llama=_TINY,
        llama_1b=_TINY,
        gemma={**_TINY, "query_pre_attn_scalar": 16, "sliding_window": 64},
        truth_tokens=512,
        prompts=(1024, 2048),
        pivot_layer=2,
        longest_prompt=8192,
        batches=(1, 4),
        kept=(64, 300),
        streams=4,
        stream_prompt=256,
        stream_tokens=16,
    )
