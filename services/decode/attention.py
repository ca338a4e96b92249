"""Decode attention: new tokens over their sequence's keys and values in the pool."""

import torch
from torch import Tensor

from common.model.attention import causal_attention, sequence_attention
from common.model.positions import Positions
from services.decode.pool import KVPool, SequenceKV


class BatchAttention:
    """One step's attention over a batch of sequences, of which each has a slot for its one new token.

    Sequence by sequence, in place where its blocks are one run: on a CPU a call costs less than gathering copies.
    """

    def __init__(self, pool: KVPool, batch: list[SequenceKV]) -> None:
        self._pool = pool
        self._batch = batch
        slots = [
            [table.slot(table.length - 1) for table in layer]
            for layer in zip(*(kv.tables for kv in batch), strict=True)
        ]
        self._slots = torch.tensor(slots, device=pool.keys.device).unbind()  # by layer, [B]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store key and value [B, G, 1, d] in their slots and attend with query [B, H, 1, d]."""
        pool = self._pool
        pool.keys.index_copy_(0, self._slots[layer], key[:, :, 0])
        pool.values.index_copy_(0, self._slots[layer], value[:, :, 0])
        rows = []
        for row, kv in zip(query.split(1), self._batch, strict=True):
            keys, values = pool.view(kv.tables[layer])
            rows.append(causal_attention(row, _heads_first(keys), _heads_first(values), scaling))
        return torch.cat(rows) if len(rows) > 1 else rows[0]


class ReplayAttention:
    """Attention of one sequence's several new tokens, which have slots already."""

    def __init__(self, pool: KVPool, kv: SequenceKV) -> None:
        self._pool = pool
        self._kv = kv

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store key and value [1, G, T, d] in the last T slots and attend with query [1, H, T, d]."""
        pool, table = self._pool, self._kv.tables[layer]
        slots = table.slots(table.length - query.shape[2], table.length).to(query.device)
        pool.keys.index_copy_(0, slots, key[0].transpose(0, 1))
        pool.values.index_copy_(0, slots, value[0].transpose(0, 1))
        keys, values = (_heads_first(tensor) for tensor in pool.view(table))
        if table.window is None:
            return causal_attention(query, keys, values, scaling)
        on_host = table.live_positions()
        positions = Positions(on_host.to(query.device), on_host)
        return sequence_attention(query, keys, values, positions, table.window, scaling)


def _heads_first(tokens: Tensor) -> Tensor:
    """[tokens, G, d] to [1, G, tokens, d], without a copy."""
    return tokens.transpose(0, 1)[None]
