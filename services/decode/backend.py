"""Which code runs a decode step: SDPA sequence by sequence, or the paged kernels in a CUDA graph."""

import logging
from importlib.util import find_spec
from typing import Literal, Protocol

from torch import Tensor

from common.errors import ModelLoadError
from common.model import triton_driver
from common.model.decoder import DecoderModel
from services.decode.pool import KVPool, SequenceKV

Backend = Literal["auto", "sdpa", "paged"]

_MAX_PAGED_HEAD_DIM = 256

logger = logging.getLogger(__name__)


class StepForward(Protocol):
    """One new token of each sequence through all layers."""

    def __call__(self, token_ids: list[int], positions: list[int], batch: list[SequenceKV]) -> Tensor:
        """Return hidden states, [B, D]; every sequence has a slot for its token."""
        ...


def paged_forward(backend: Backend, model: DecoderModel, pool: KVPool) -> StepForward | None:
    """Return the paged forward where it is asked for, or the device is a GPU and it can be had; None for SDPA.

    Raises ModelLoadError if it is asked for and cannot be had.
    """
    if backend == "sdpa" or (backend == "auto" and model.device.type != "cuda"):
        return None
    obstacle = None
    if find_spec("triton") is None:
        obstacle = "Triton is not installed"
    elif model.spec.head_dim > _MAX_PAGED_HEAD_DIM:
        obstacle = f"heads of {model.spec.head_dim} dimensions are larger than {_MAX_PAGED_HEAD_DIM}"
    elif model.device.type != "cuda" and not _interprets():
        obstacle = f"its kernels do not run on {model.device.type}"
    elif model.device.type == "cuda" and not triton_driver.prepare():
        obstacle = "Triton finds no C compiler for its link to the driver"
    if obstacle is None:
        # Not at the top: Triton is there with CUDA builds of torch only.
        from services.decode.graphs import GraphedForward  # noqa: PLC0415

        return GraphedForward(model, pool)
    if backend == "paged":
        raise ModelLoadError(f"attention_backend paged is not possible: {obstacle}")
    logger.warning("decoding without paged attention, which is slower", extra={"reason": obstacle})
    return None


def _interprets() -> bool:
    """Tell whether Triton runs kernels on the CPU, as tests have it do (`TRITON_INTERPRET=1`)."""
    import triton  # noqa: PLC0415

    return bool(triton.knobs.runtime.interpret)
