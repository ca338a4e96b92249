"""Bookkeeping of the pool's blocks: who has which, and what is free."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator


class BlockAllocator:
    """Hands out blocks, as a contiguous run where it can.

    Any block serves any sequence and layer, so nothing is lost to fragmentation; a run is merely quicker to
    read. Free blocks are kept as maximal runs, ascending: (first, past the last). A block that is shared is free
    when everyone has given it back.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free_runs: list[tuple[int, int]] = [(0, num_blocks)] if num_blocks else []
        self.num_free = num_blocks
        self._num_holders: dict[int, int] = {}  # of shared blocks

    def allocate(self, count: int, *, after: int | None = None) -> list[int]:
        """Return `count` blocks: behind block `after` if they are free, else the smallest run that is enough,
        else whatever there is. The caller has made sure that there are as many.
        """
        if count > self.num_free:
            raise RuntimeError(f"{count} blocks asked for, {self.num_free} free")
        blocks: list[int] = []
        while len(blocks) < count:
            start = self._best_start(count - len(blocks), after)
            blocks += self._take(start, count - len(blocks))
        self.num_free -= count
        return blocks

    def share(self, blocks: list[int]) -> None:
        """Let one more have these blocks, which are in use."""
        for block in blocks:
            self._num_holders[block] = self._num_holders.get(block, 1) + 1

    def free(self, blocks: list[int]) -> None:
        """Take blocks back from one who has them; a block that is free already is an error of ours."""
        for start, end in _runs(self._let_go(blocks)):
            self._give_back(start, end)

    def num_freed(self, blocks: list[int], before: Counter[int]) -> int:
        """Return how many more blocks are free once one holder gives these back, after those who gave back `before`.

        `before` counts how often each shared block is given back; it goes on with these.
        """
        shared = self._num_holders.keys() & blocks
        before.update(shared)
        return len(blocks) - sum(before[block] < self._num_holders[block] for block in shared)

    def audit(self, held: list[int]) -> None:
        """Raise RuntimeError unless the blocks `held` and the free ones are all there are, each as often as known."""
        place = 0
        num_holders = Counter(held)
        for block, number in num_holders.items():
            if number != self._num_holders.get(block, 1):
                raise RuntimeError(f"block {block} is held by {number}, not {self._num_holders.get(block, 1)}")
        for start, end in sorted([(block, block + 1) for block in num_holders] + self._free_runs):
            if start != place:
                raise RuntimeError(f"block {min(start, place)} is {'lost' if start > place else 'held or free twice'}")
            place = end
        if place != self.num_blocks or len(num_holders) + self.num_free != self.num_blocks:
            raise RuntimeError(f"of {self.num_blocks} blocks, {len(num_holders)} are held and {self.num_free} free")

    def _best_start(self, count: int, after: int | None) -> int:
        if after is not None and self._run_at(after + 1) is not None:
            return after + 1
        enough = [(end - start, start) for start, end in self._free_runs if end - start >= count]
        if enough:
            return min(enough)[1]
        return max((end - start, start) for start, end in self._free_runs)[1]

    def _run_at(self, start: int) -> int | None:
        index = bisect_left(self._free_runs, (start, 0))
        if index < len(self._free_runs) and self._free_runs[index][0] == start:
            return index
        return None

    def _take(self, start: int, most: int) -> list[int]:
        index = self._run_at(start)
        if index is None:
            raise RuntimeError(f"no free run starts at block {start}")
        end = self._free_runs[index][1]
        taken = min(end, start + most)
        self._free_runs[index : index + 1] = [(taken, end)] if taken < end else []
        return list(range(start, taken))

    def _let_go(self, blocks: list[int]) -> list[int]:
        """Count one holder less; return the blocks that have none left."""
        unheld = []
        for block in blocks:
            num_holders = self._num_holders.pop(block, 1)
            if num_holders > 2:
                self._num_holders[block] = num_holders - 1
            elif num_holders == 1:
                unheld.append(block)
        return unheld

    def _give_back(self, start: int, end: int) -> None:
        """Add a run to the free ones, as a part of those beside it."""
        first = past = bisect_left(self._free_runs, (start, self.num_blocks + 1))
        before = self._free_runs[first - 1] if first else None
        behind = self._free_runs[first] if first < len(self._free_runs) else None
        if start < 0 or end > self.num_blocks or (before and start < before[1]) or (behind and end > behind[0]):
            raise RuntimeError(f"not all blocks from {start} to {end - 1} are in use")
        self.num_free += end - start
        if before and before[1] == start:
            start, first = before[0], first - 1
        if behind and behind[0] == end:
            end, past = behind[1], past + 1
        self._free_runs[first:past] = [(start, end)]


def _runs(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the runs in which blocks follow each other: (first, past the last)."""
    first = 0
    for place in range(1, len(blocks) + 1):
        if place == len(blocks) or blocks[place] != blocks[place - 1] + 1:
            yield blocks[first], blocks[place - 1] + 1
            first = place
