"""Tensors as the bytes they are in memory, and dtypes by name."""

import torch
from torch import Tensor

from common.errors import SkeletonError


def to_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's elements as they lie in memory, whatever its device."""
    data: bytes = tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return data


def to_host(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU. From a CUDA device it comes when the current stream gets to it, not before.

    Its memory there is pinned. torch keeps it for the next one, but not before the copy is done, even if the tensor is
    dropped; and what is copied from may be freed or overwritten, since that happens later in the same stream.
    """
    if not tensor.is_cuda:
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return a CPU tensor over a copy of `data`; raise SkeletonError if the length is not the shape's."""
    wanted = dtype.itemsize * torch.Size(shape).numel()
    if len(data) != wanted:
        raise SkeletonError(f"{len(data)} bytes for a {list(shape)} of {dtype_name(dtype)}, expected {wanted}")
    # The copy is what makes the tensor writable, as torch wants them to be.
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def dtype_from_name(name: str) -> torch.dtype:
    """Return the floating-point dtype of that name; raise SkeletonError for any other."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if dtype_name(dtype) == name:
            return dtype
    raise SkeletonError(f"unknown dtype {name!r}")
