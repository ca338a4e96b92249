"""Decode attention: each sequence's newest token over its own keys and values in the pool."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.decode.pool import KVPool, SequenceKV


class PooledAttention:
    """Attention of one step over a batch of sequences, of which each has a slot for its new token."""

    def __init__(self, pool: KVPool, batch: list[SequenceKV]) -> None:
        self._pool = pool
        self._batch = batch

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store key and value [B, G, 1, d] in their slots and attend with query [B, H, 1, d]."""
        pool, tables = self._pool, [kv.tables[layer] for kv in self._batch]
        slots = torch.tensor([table.slot(table.length - 1) for table in tables], device=query.device)
        pool.keys.index_copy_(0, slots, key[:, :, 0])
        pool.values.index_copy_(0, slots, value[:, :, 0])

        output = torch.empty_like(query)
        for row, table in enumerate(tables):
            keys, values = pool.view(table)  # [tokens, G, d]
            output[row] = scaled_dot_product_attention(
                query[row, None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                scale=scaling,
                enable_gqa=True,
            )[0]
        return output
