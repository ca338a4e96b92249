"""What one decode step reads besides weights and keys, in tensors that stay where they are from step to step."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.decode.pool import SequenceKV


class _Mirrored:
    """A tensor on the device, and the host memory it is filled from with one copy."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        host = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self._host = host
        self.host = host.numpy()
        self.device = torch.zeros(shape, dtype=dtype, device=device)

    def upload(self, start: int = 0, end: int | None = None) -> None:
        """Copy the rows from `start` to `end` to the device, in the order of its work, without waiting."""
        self.device[start:end].copy_(self._host[start:end], non_blocking=True)


class StepPlan:
    """The inputs of a step over up to B sequences of L layers, with tables of up to M blocks.

    Rows without a sequence are padding: token 0 at position 0, of length 0 in every layer.

    `fill` rewrites host memory that the copies of the last step have left, because a step ends when its tokens
    are on the host.
    """

    def __init__(self, rows: int, blocks: int, num_layers: int, device: torch.device) -> None:
        self._token_ids = _Mirrored((rows, 1), torch.int64, device)
        self._positions = _Mirrored((rows, 1), torch.int64, device)
        self._extents = _Mirrored((2, num_layers, rows), torch.int32, device)
        # Sequences outermost: what changes is one sequence's, and so is one piece of memory.
        self._tables = _Mirrored((rows, num_layers, blocks), torch.int32, device)
        self._written = [_WrittenTables(num_layers) for _ in range(rows)]

    @property
    def token_ids(self) -> Tensor:
        """Newest tokens, int64 [B, 1]."""
        return self._token_ids.device

    @property
    def positions(self) -> Tensor:
        """Their positions, int64 [B, 1]."""
        return self._positions.device

    def first(self, layer: int) -> Tensor:
        """Slots before these have slid out of the window, int32 [B]."""
        return self._extents.device[0, layer]

    def length(self, layer: int) -> Tensor:
        """Slots in use, the newest tokens' included, int32 [B]."""
        return self._extents.device[1, layer]

    def tables(self, layer: int) -> Tensor:
        """A layer's blocks, int32 [B, M]; what is behind a row's blocks has no meaning."""
        return self._tables.device[:, layer]

    def fill(self, token_ids: list[int], positions: list[int], batch: list[SequenceKV]) -> None:
        """Take up a step: a token and its position for each sequence, which has a slot for it in every layer."""
        used = len(batch)
        for mirrored, column in ((self._token_ids, token_ids), (self._positions, positions)):
            mirrored.host[:used, 0] = column
            mirrored.host[used:] = 0
            mirrored.upload()
        self._extents.host[:, :, used:] = 0
        changed = []
        for row, (kv, written) in enumerate(zip(batch, self._written, strict=False)):
            self._extents.host[0, :, row] = [table.first for table in kv.tables]
            self._extents.host[1, :, row] = [table.length for table in kv.tables]
            if written.update(kv, self._tables.host[row]):
                changed.append(row)
        self._extents.upload()
        if changed:
            self._tables.upload(changed[0], changed[-1] + 1)


class _WrittenTables:
    """Which block tables a row of the plan holds already."""

    def __init__(self, num_layers: int) -> None:
        self._kv: SequenceKV | None = None
        self._losses = [0] * num_layers
        self._num_blocks = [0] * num_layers

    def update(self, kv: SequenceKV, row: NDArray[np.int32]) -> bool:
        """Write what is new of a sequence's tables into its row [L, M]; tell whether anything was."""
        losses = [table.losses for table in kv.tables]
        num_blocks = [len(table.blocks) for table in kv.tables]
        if kv is self._kv and losses == self._losses and num_blocks == self._num_blocks:
            return False
        for layer, table in enumerate(kv.tables):
            only_grown = kv is self._kv and losses[layer] == self._losses[layer]
            start = self._num_blocks[layer] if only_grown else 0
            row[layer, start : num_blocks[layer]] = table.blocks[start:]
        self._kv, self._losses, self._num_blocks = kv, losses, num_blocks
        return True
