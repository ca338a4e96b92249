"""Bookkeeping of the pool's blocks: who has which, and what is free."""

from bisect import bisect_left, insort


class BlockAllocator:
    """Hands out blocks, as a contiguous run where it can.

    Any block serves any sequence and layer, so nothing is lost to fragmentation; a run is merely quicker to
    read. Free blocks are kept as maximal runs, ascending: (first, past the last).
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free_runs: list[tuple[int, int]] = [(0, num_blocks)] if num_blocks else []
        self.num_free = num_blocks

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

    def free(self, blocks: list[int]) -> None:
        """Take blocks back; a block that is free already is an error of ours."""
        for block in blocks:
            self._give_back(block)
        self.num_free += len(blocks)

    def audit(self, held: list[int]) -> None:
        """Raise RuntimeError unless the blocks `held` and the free ones are all there are, each once."""
        place = 0
        for start, end in sorted([(block, block + 1) for block in held] + self._free_runs):
            if start != place:
                raise RuntimeError(f"block {min(start, place)} is {'lost' if start > place else 'held or free twice'}")
            place = end
        if place != self.num_blocks or len(held) + self.num_free != self.num_blocks:
            raise RuntimeError(f"of {self.num_blocks} blocks, {len(held)} are held and {self.num_free} free")

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

    def _give_back(self, block: int) -> None:
        index = bisect_left(self._free_runs, (block, self.num_blocks + 1))
        before = self._free_runs[index - 1] if index else None
        behind = self._free_runs[index] if index < len(self._free_runs) else None
        if not 0 <= block < self.num_blocks or (before and block < before[1]) or (behind and block >= behind[0]):
            raise RuntimeError(f"block {block} is not in use")
        start, end = block, block + 1
        if before and before[1] == block:
            start = before[0]
            self._free_runs.remove(before)
        if behind and behind[0] == block + 1:
            end = behind[1]
            self._free_runs.remove(behind)
        insort(self._free_runs, (start, end))
