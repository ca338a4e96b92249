"""KV memory: one pool of blocks for all layers of all sequences.

Layers keep different numbers of tokens, so each has its own block table; a block belongs to one layer of one
sequence at a time, or, when it is full, of several that begin alike. Keys are stored rotated, [tokens, G, d]: the
format in which they crossed the network.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from common.model.decoder import ModelSpec
from services.decode.blocks import BlockAllocator

BLOCK_TOKENS = 16


@dataclass(slots=True)
class LayerTable:
    """One layer's tokens of one sequence.

    Attributes:
        window: the layer's sliding window in tokens, None for full attention.
        blocks: the pool's blocks, in order; slot i is in blocks[i // BLOCK_TOKENS].
        first: slots before this one have slid out of the window.
        length: slots in use.
        positions: each slot's position, for a sliding window only.
        contiguous: whether the blocks are one run.
        losses: how often blocks have left the table. As long as it stays, the table has only grown at its end.
    """

    window: int | None
    blocks: list[int] = field(default_factory=list)
    first: int = 0
    length: int = 0
    positions: list[int] = field(default_factory=list)
    contiguous: bool = True
    losses: int = 0

    @property
    def capacity(self) -> int:
        """Slots that the blocks hold."""
        return len(self.blocks) * BLOCK_TOKENS

    def slot(self, index: int) -> int:
        """Return where in the pool a slot lies."""
        return self.blocks[index // BLOCK_TOKENS] * BLOCK_TOKENS + index % BLOCK_TOKENS

    def live_positions(self) -> Tensor:
        """Return the positions of a sliding window's live slots, int64."""
        return torch.tensor(self.positions[self.first : self.length])

    def slots(self, start: int, end: int) -> Tensor:
        """Return where in the pool the slots from `start` to `end` lie, int64."""
        return _slots(self.blocks).flatten()[start:end]


class SequenceKV:
    """The block tables of one sequence, a layer each."""

    def __init__(self, windows: Sequence[int | None]) -> None:
        self.tables = [LayerTable(window) for window in windows]

    def rewind(self) -> None:
        """Forget what was written, keep the blocks: another worker sends the skeleton again."""
        for table in self.tables:
            table.first, table.length, table.positions = 0, 0, []


@dataclass(frozen=True, slots=True)
class SwappedKV:
    """A sequence outside the pool.

    Attributes:
        layers: its keys and values, [tokens, G, d] each, on the CPU.
        positions: of the tokens of layers with a sliding window.
    """

    layers: list[tuple[Tensor, Tensor]]
    positions: list[list[int]]


class KVPool:
    """The memory of a decode worker. What it allocates it gets back through `free`."""

    def __init__(self, spec: ModelSpec, num_blocks: int, device: torch.device) -> None:
        self._spec = spec
        self.allocator = BlockAllocator(num_blocks)
        shape = (num_blocks * BLOCK_TOKENS, spec.num_kv_heads, spec.head_dim)
        self.keys = torch.empty(shape, dtype=spec.dtype, device=device)
        self.values = torch.empty(shape, dtype=spec.dtype, device=device)

    @staticmethod
    def block_bytes(spec: ModelSpec) -> int:
        """Return the size of one block, keys and values."""
        return 2 * BLOCK_TOKENS * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize

    @staticmethod
    def blocks_needed(tokens_per_layer: Sequence[int]) -> int:
        """Return the blocks for so many tokens in each layer."""
        return sum(_blocks(tokens) for tokens in tokens_per_layer)

    def fits(self, tokens_per_layer: Sequence[int]) -> bool:
        """Tell whether there is room now."""
        return self.blocks_needed(tokens_per_layer) <= self.allocator.num_free

    def allocate(self, tokens_per_layer: Sequence[int]) -> SequenceKV:
        """Return block tables for a new sequence; the caller has asked `fits`.

        Room for all layers is looked for at once: requests come and go by the hundred.
        """
        kv = SequenceKV(self._spec.windows)
        blocks = iter(self.allocator.allocate(self.blocks_needed(tokens_per_layer)))
        for table, tokens in zip(kv.tables, tokens_per_layer, strict=True):
            table.blocks = list(islice(blocks, _blocks(tokens)))
            table.contiguous = _is_run(table.blocks)
        return kv

    def free(self, kv: SequenceKV) -> None:
        """Take a sequence's blocks back; its tables are empty afterwards."""
        for table in kv.tables:
            self.allocator.free(table.blocks)
            table.blocks, table.contiguous = [], True
            table.losses += 1
        kv.rewind()

    def write(self, table: LayerTable, keys: Tensor, values: Tensor, positions: Sequence[int]) -> None:
        """Append tokens, [tokens, G, d], to a layer that has room for them."""
        start, end = table.length, table.length + keys.shape[0]
        if end > table.capacity:
            raise RuntimeError(f"{end} tokens written to a table for {table.capacity}")
        slots = table.slots(start, end).to(self.keys.device)
        self.keys.index_copy_(0, slots, keys.to(self.keys))
        self.values.index_copy_(0, slots, values.to(self.values))
        table.length = end
        table.positions.extend(positions)

    def share(self, source: SequenceKV, targets: Sequence[SequenceKV]) -> None:
        """Have all `targets`, which are empty, begin with all that `source` holds.

        Full blocks, which nobody writes to any more, they get in common; the tokens behind them are copied, to all
        targets at once: one by one, sixty answers would keep the event loop for a tenth of a second.
        """
        for layer, table in enumerate(source.tables):
            num_full = table.length // BLOCK_TOKENS
            common, tokens = table.blocks[:num_full], num_full * BLOCK_TOKENS
            begun = [target.tables[layer] for target in targets]
            for its in begun:
                self.allocator.share(common)
                its.blocks = common + its.blocks
                its.contiguous = _is_run(its.blocks)
                its.first, its.length, its.positions = table.first, table.length, table.positions.copy()
            if behind := table.length - tokens:
                slots = _slots([its.blocks[num_full] for its in begun])[:, :behind].flatten().to(self.keys.device)
                copied = table.slots(tokens, table.length).repeat(len(begun)).to(self.keys.device)
                self.keys.index_copy_(0, slots, self.keys[copied])
                self.values.index_copy_(0, slots, self.values[copied])

    def view(self, table: LayerTable) -> tuple[Tensor, Tensor]:
        """Return a layer's live keys and values, [tokens, G, d]; a copy only if its blocks are scattered."""
        if table.contiguous:
            offset = table.blocks[0] * BLOCK_TOKENS
            live = slice(offset + table.first, offset + table.length)
            return self.keys[live], self.values[live]
        slots = table.slots(table.first, table.length).to(self.keys.device)
        # Unlike indexing, it copies rows whole: five times as quick on a CPU.
        return self.keys.index_select(0, slots), self.values.index_select(0, slots)

    def blocks_to_append(self, kv: SequenceKV, tokens: int = 1) -> int:
        """Return how many blocks the sequence needs for so many more tokens in every layer."""
        return sum(max(0, _blocks(table.length + tokens - table.capacity)) for table in kv.tables)

    def append_slots(self, kv: SequenceKV, position: int, tokens: int = 1) -> None:
        """Give every layer slots for the tokens from `position` on; drop what slides out of the first one's window."""
        for table in kv.tables:
            if table.window is not None:
                self._slide(table, position)
                table.positions.extend(range(position, position + tokens))
            missing = table.length + tokens - table.capacity
            if missing > 0:
                self._extend(table, _blocks(missing))
            table.length += tokens

    def audit(self, live: Iterable[SequenceKV]) -> None:
        """Raise RuntimeError unless every block is either free or in one table of each live sequence that has it."""
        self.allocator.audit([block for kv in live for table in kv.tables for block in table.blocks])

    def copy_out(self, kv: SequenceKV) -> SwappedKV:
        """Return a copy of a sequence's live tokens, on the CPU."""
        layers = []
        for table in kv.tables:
            keys, values = self.view(table)
            layers.append((keys.to("cpu", copy=True), values.to("cpu", copy=True)))
        return SwappedKV(layers, [table.positions[table.first :] for table in kv.tables])

    def swap_out(self, kv: SequenceKV) -> SwappedKV:
        """Move a sequence's live tokens out of the pool and free its blocks; if there is no memory, nothing changes."""
        swapped = self.copy_out(kv)
        self.free(kv)
        return swapped

    def swap_in(self, kv: SequenceKV, swapped: SwappedKV) -> None:
        """Bring back a sequence, whose tables are empty; the caller has asked `fits` for its tokens."""
        for table, (keys, values), positions in zip(kv.tables, swapped.layers, swapped.positions, strict=True):
            self._extend(table, _blocks(keys.shape[0] + 1))
            self.write(table, keys, values, positions)

    def _extend(self, table: LayerTable, count: int) -> None:
        last = table.blocks[-1] if table.blocks else None
        table.blocks += self.allocator.allocate(count, after=last)
        table.contiguous = _is_run(table.blocks)

    def _slide(self, table: LayerTable, position: int) -> None:
        """Drop what the query at `position` no longer sees."""
        assert table.window is not None
        while table.first < table.length and table.positions[table.first] <= position - table.window:
            table.first += 1
        dead = table.first // BLOCK_TOKENS
        if dead:
            self.allocator.free(table.blocks[:dead])
            table.blocks = table.blocks[dead:]
            table.losses += 1
            table.positions = table.positions[dead * BLOCK_TOKENS :]
            table.first -= dead * BLOCK_TOKENS
            table.length -= dead * BLOCK_TOKENS


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _slots(blocks: list[int]) -> Tensor:
    """Return where in the pool the slots of each block lie, int64 [blocks, BLOCK_TOKENS]."""
    return torch.tensor(blocks)[:, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)


def _is_run(blocks: list[int]) -> bool:
    return not blocks or blocks == list(range(blocks[0], blocks[0] + len(blocks)))
