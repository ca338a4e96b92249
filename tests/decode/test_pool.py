"""KV memory: what is written is read, wherever its blocks lie."""

from collections.abc import Callable

import pytest
import torch

from common.model.decoder import DecoderModel
from services.decode.pool import KVPool, LayerTable, SequenceKV
from tests.conftest import poisoned_pool


@pytest.fixture
def pool(tiny: Callable[[str], DecoderModel]) -> KVPool:
    model = tiny("gemma3_text")  # windows of 24 in four of six layers
    return poisoned_pool(model, 64)


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 2, 16, generator=torch.Generator().manual_seed(seed))


def fill(pool: KVPool, kv: SequenceKV, tokens: int) -> None:
    """Write different tokens to every layer, positions 0 and on."""
    for layer, table in enumerate(kv.tables):
        positions = range(tokens) if table.window is not None else ()
        pool.write(table, rows(tokens, layer), rows(tokens, layer + 100), positions)


def check(pool: KVPool, table: LayerTable, layer: int, tokens: int, live: int) -> None:
    keys, values = pool.view(table)
    torch.testing.assert_close(keys[:live], rows(tokens, layer)[tokens - live :])
    torch.testing.assert_close(values[:live], rows(tokens, layer + 100)[tokens - live :])


def test_layers_of_two_sequences_do_not_mix(pool: KVPool) -> None:
    first, second = pool.allocate([20] * 6), pool.allocate([20] * 6)
    fill(pool, first, 20)
    fill(pool, second, 17)
    for layer in range(6):
        check(pool, first.tables[layer], layer, 20, 20)
        check(pool, second.tables[layer], layer, 17, 17)
    pool.free(first)
    pool.free(second)
    assert pool.allocator.num_free == 64


def test_scattered_blocks_read_like_a_run(pool: KVPool) -> None:
    fillers = [pool.allocate([16] * 6) for _ in range(10)]
    for filler in fillers[::2]:
        pool.free(filler)
    kv = pool.allocate([100, 16, 16, 16, 16, 16])
    fillers_left = [f for f in fillers if f.tables[0].blocks]
    assert fillers_left
    table = kv.tables[2]  # full attention
    for position in range(16, 60):
        pool.append_slots(kv, position)
    for filler in fillers_left:
        pool.free(filler)
    assert not table.contiguous
    keys = rows(44, 3)
    table.length = 0
    pool.write(table, keys, keys, ())
    torch.testing.assert_close(pool.view(table)[0], keys)


def test_a_window_slides_by_position_and_gives_its_blocks_back(pool: KVPool) -> None:
    kv = pool.allocate([24] * 6)
    fill(pool, kv, 24)
    windowed, full = kv.tables[0], kv.tables[2]
    for position in range(24, 80):
        pool.append_slots(kv, position)
        live = windowed.positions[windowed.first :]
        assert live == list(range(position - 23, position + 1))
        assert pool.view(windowed)[0].shape[0] == 24
    assert full.length == 80
    assert len(windowed.blocks) <= 3
    pool.free(kv)
    assert pool.allocator.num_free == 64


def test_a_gap_in_the_positions_slides_out_by_position(pool: KVPool) -> None:
    kv = pool.allocate([24] * 6)
    table = kv.tables[0]
    pool.write(table, rows(5, 0), rows(5, 100), [3, 9, 25, 26, 27])
    table.positions.append(28)
    table.length += 1
    pool._slide(table, 40)
    assert table.positions[table.first :] == [25, 26, 27, 28]
    pool.free(kv)


def test_swapped_out_and_in_again_is_the_same(pool: KVPool) -> None:
    kv = pool.allocate([24] * 6)
    fill(pool, kv, 24)
    for position in range(24, 30):
        pool.append_slots(kv, position)
        for table in kv.tables:
            newest = table.slot(table.length - 1)
            pool.keys[newest], pool.values[newest] = float(position), -float(position)
    before = [tuple(part.clone() for part in pool.view(table)) for table in kv.tables]
    positions = [table.positions[table.first :] for table in kv.tables]
    swapped = pool.swap_out(kv)
    assert pool.allocator.num_free == 64
    squatter = pool.allocate([16] * 6)
    pool.swap_in(kv, swapped)
    for table, (keys, values), places in zip(kv.tables, before, positions, strict=True):
        torch.testing.assert_close(pool.view(table), (keys, values))
        assert table.positions == places
        assert table.capacity > table.length, "room for the next token comes with it"
    pool.free(kv)
    pool.free(squatter)
    assert pool.allocator.num_free == 64


def test_writing_past_the_reservation_is_an_error(pool: KVPool) -> None:
    kv = pool.allocate([16] * 6)
    with pytest.raises(RuntimeError, match="17 tokens written to a table for 16"):
        pool.write(kv.tables[2], rows(17, 0), rows(17, 1), ())


def test_several_slots_at_once_leave_what_the_first_of_them_sees(pool: KVPool) -> None:
    kv = pool.allocate([24] * 6)
    fill(pool, kv, 24)
    assert pool.blocks_to_append(kv, 40) == 6 * 2, "two blocks hold 32 slots, 64 are needed"
    pool.append_slots(kv, 24, 40)
    windowed, full = kv.tables[0], kv.tables[2]
    assert windowed.live_positions().tolist() == list(range(1, 64))
    assert pool.view(full)[0].shape[0] == full.length == 64
    pool.append_slots(kv, 64)
    assert windowed.live_positions().tolist() == list(range(41, 65))
    pool.free(kv)
    assert pool.allocator.num_free == 64


def test_an_audit_finds_lost_and_shared_blocks(pool: KVPool) -> None:
    first, second = pool.allocate([40] * 6), pool.allocate([20] * 6)
    pool.audit([first, second])
    with pytest.raises(RuntimeError, match="is lost"):
        pool.audit([first])
    second.tables[1].blocks[0] = first.tables[0].blocks[0]
    with pytest.raises(RuntimeError, match="held by 2, not 1"):
        pool.audit([first, second])


@pytest.mark.parametrize("tokens", [9, 32, 45])
def test_a_skeleton_is_shared_up_to_its_last_full_block(pool: KVPool, tokens: int) -> None:
    source = pool.allocate([tokens + 3] * 6)
    fill(pool, source, tokens)
    used = pool.allocator.num_blocks - pool.allocator.num_free
    answers = [pool.allocate([15 + 3] * 6) for _ in range(2)]
    pool.share(source, answers)
    assert pool.allocator.num_blocks - pool.allocator.num_free == used + 2 * 6 * 2, "two blocks each, and no more"
    pool.audit([source, *answers])
    everyone = [source, *answers]
    for number, kv in enumerate(everyone):  # each goes on by itself, past the windows of 24
        for position in range(tokens, tokens + 30):
            pool.append_slots(kv, position)
            for table in kv.tables:
                newest = table.slot(table.length - 1)
                pool.keys[newest], pool.values[newest] = float(number), float(number)
    pool.audit(everyone)
    for number, kv in enumerate(everyone):
        for layer, table in enumerate(kv.tables):
            keys, values = pool.view(table)
            assert keys[-24:].eq(number).all()
            assert values[-24:].eq(number).all()
            if table.window is None:
                torch.testing.assert_close(keys[:tokens], rows(tokens, layer))
                torch.testing.assert_close(values[:tokens], rows(tokens, layer + 100))
            else:
                assert table.positions[table.first : table.length] == list(range(tokens + 6, tokens + 30))
    for kv in everyone:
        pool.free(kv)
    assert pool.allocator.num_free == 64


def test_an_answer_that_is_swapped_leaves_the_shared_blocks_to_the_others(pool: KVPool) -> None:
    source, answer = pool.allocate([35] * 6), pool.allocate([18] * 6)
    fill(pool, source, 34)
    pool.share(source, [answer])
    before = [tuple(part.clone() for part in pool.view(table)) for table in answer.tables]
    swapped = pool.swap_out(answer)
    pool.audit([source])
    for layer, table in enumerate(source.tables):
        check(pool, table, layer, 34, 34)
    pool.swap_in(answer, swapped)
    pool.audit([source, answer])
    pool.free(source)
    for table, (keys, values) in zip(answer.tables, before, strict=True):
        torch.testing.assert_close(pool.view(table), (keys, values))
    pool.free(answer)
    assert pool.allocator.num_free == 64
