"""Block bookkeeping: nothing is lost, nothing is given twice, runs are kept whole where possible."""

import random

import pytest

from services.decode.blocks import BlockAllocator


def test_any_sequence_of_calls_keeps_the_books() -> None:
    rng = random.Random(1)
    allocator = BlockAllocator(200)
    held: list[list[int]] = []
    for _ in range(3000):
        if held and (rng.random() < 0.5 or allocator.num_free < 20):
            allocator.free(held.pop(rng.randrange(len(held))))
        else:
            after = held[-1][-1] if held and rng.random() < 0.5 else None
            held.append(allocator.allocate(rng.randint(1, 20), after=after))
        used = [block for blocks in held for block in blocks]
        assert len(used) == len(set(used))
        assert allocator.num_free == 200 - len(used)
    for blocks in held:
        allocator.free(blocks)
    assert allocator.allocate(200) == list(range(200)), "free runs grow together again"


def test_the_smallest_run_that_is_enough_is_taken() -> None:
    allocator = BlockAllocator(20)
    blocks = allocator.allocate(20)
    allocator.free(blocks[2:5])
    allocator.free(blocks[8:18])
    assert allocator.allocate(3) == [2, 3, 4]


def test_growth_prefers_the_block_behind() -> None:
    allocator = BlockAllocator(10)
    first = allocator.allocate(3)
    assert allocator.allocate(2, after=first[-1]) == [3, 4]
    assert allocator.allocate(1, after=first[-1]) == [5]


def test_scattered_blocks_still_serve() -> None:
    allocator = BlockAllocator(6)
    allocator.allocate(6)
    for block in (0, 2, 4):
        allocator.free([block])
    assert sorted(allocator.allocate(3)) == [0, 2, 4]


def test_misuse_is_noticed() -> None:
    allocator = BlockAllocator(4)
    blocks = allocator.allocate(2)
    with pytest.raises(RuntimeError):
        allocator.allocate(3)
    allocator.free(blocks)
    with pytest.raises(RuntimeError):
        allocator.free([blocks[0]])
    with pytest.raises(RuntimeError):
        allocator.free([4])
