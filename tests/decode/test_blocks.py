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


def test_a_shared_block_is_free_when_everyone_has_given_it_back() -> None:
    allocator = BlockAllocator(8)
    blocks = allocator.allocate(5)
    allocator.share(blocks[:3])
    allocator.share(blocks[:2])
    allocator.audit(blocks + blocks[:3] + blocks[:2])
    for missing in (blocks[:1], blocks[2:3]):
        with pytest.raises(RuntimeError, match=rf"block {missing[0]} is held by"):
            allocator.audit([block for block in blocks + blocks[:3] + blocks[:2] if [block] != missing] + missing)
    allocator.free(blocks[:3])
    assert allocator.num_free == 3
    allocator.free(blocks)
    assert allocator.num_free == 6, "one still has the first two"
    allocator.audit(blocks[:2])
    allocator.free(blocks[:2])
    assert allocator.allocate(8) == list(range(8))
    allocator.free(list(range(8)))
    with pytest.raises(RuntimeError, match="not all blocks from 0 to 0 are in use"):
        allocator.free(blocks[:1])


def test_any_sequence_of_calls_keeps_the_books_of_shared_blocks() -> None:
    rng = random.Random(2)
    allocator = BlockAllocator(100)
    held: list[list[int]] = []
    for _ in range(2000):
        if held and (rng.random() < 0.5 or allocator.num_free < 20):
            allocator.free(held.pop(rng.randrange(len(held))))
        elif held and rng.random() < 0.5:
            common = rng.choice(held)[: rng.randint(0, 5)]
            allocator.share(common)
            held.append(common + allocator.allocate(rng.randint(1, 5)))
        else:
            held.append(allocator.allocate(rng.randint(1, 20)))
        allocator.audit([block for blocks in held for block in blocks])
    for blocks in held:
        allocator.free(blocks)
    assert allocator.num_free == 100
