"""Attention within a sliding window against the formula; on a GPU, by each kernel there."""

import pytest
import torch
from torch import Tensor

from common.model import sliding_attention
from common.model.attention import sequence_attention
from common.model.positions import Positions

GAPS = torch.tensor([0, 1, 2, 3, 9, 10, 11, 30, 31, 32, 33, 34, 35, 60, 61, 62])
gpu = pytest.mark.gpu


def attend(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, window: int, scaling: float) -> Tensor:
    """The formula: queries [1, H, T, d] of the last T positions [N], keys and values [1, G, N, d]."""
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    own = positions[len(positions) - query.shape[2] :, None]
    seen = (positions <= own) & (positions > own - window)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1) @ value


@pytest.mark.parametrize("window", [1, 5, 16, 1000])
@pytest.mark.parametrize("places", [GAPS, torch.arange(7, 23)], ids=["gaps", "none"])
def test_a_window_counts_in_positions(window: int, places: Tensor) -> None:
    torch.manual_seed(window)
    query, key, value = torch.randn(1, 4, 16, 8), torch.randn(1, 2, 16, 8), torch.randn(1, 2, 16, 8)
    expected = attend(query, key, value, places, window, 0.3)
    torch.testing.assert_close(sequence_attention(query, key, value, Positions(places), window, 0.3), expected)
    for start, end in ((0, 3), (3, 10), (10, 16)):  # the keys are the first of all that the sequence has
        part = sequence_attention(
            query[:, :, start:end], key[:, :, :end], value[:, :, :end], Positions(places), window, 0.3
        )
        torch.testing.assert_close(part, expected[:, :, start:end])


def test_positions_know_their_gaps() -> None:
    positions = Positions(torch.arange(5, 30))
    assert positions.span(25) == 25
    going_on = positions.at(torch.tensor([0, 1, 4, 24]))
    assert [going_on.span(tokens) for tokens in (1, 2, 3, 4)] == [1, 2, 5, 25]
    assert len(going_on) == 4


def test_what_the_host_was_given_is_not_asked_of_the_device() -> None:
    positions = Positions(torch.empty(3, device="meta"), torch.tensor([4, 5, 9]))
    assert positions.span(3) == 6


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the ways that were taken."""
    taken: list[str] = []
    for name in ("_by_flash", "_in_blocks"):
        way = getattr(sliding_attention, name)

        def noted(*args: object, name: str = name, way: object = way) -> Tensor:
            taken.append(name)
            return way(*args)  # type: ignore[operator]

        monkeypatch.setattr(sliding_attention, name, noted)
    return taken


@gpu
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 4, 256), (8, 2, 128), (4, 1, 64)])
@pytest.mark.parametrize(("queries", "keys"), [(3000, 3000), (1024, 3072), (17, 2500), (1, 1500)])
@pytest.mark.parametrize("window", [1, 512, 1024])
def test_flash_attention_slides_as_the_formula(
    window: int, queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, ways: list[str]
) -> None:
    assert _error(torch.arange(5, 5 + keys), queries, window, (heads, kv_heads, head_dim), torch.bfloat16) < 1e-2
    assert ways == ["_by_flash"]


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("queries", [2000, 500])
def test_masks_slide_over_gaps_on_a_gpu(queries: int, dtype: torch.dtype, ways: list[str]) -> None:
    torch.manual_seed(queries)
    places = torch.randperm(8000)[:2000].sort().values
    limit = 1e-2 if dtype == torch.bfloat16 else 1e-4
    assert _error(places, queries, 512, (8, 4, 256), dtype) < limit
    assert ways == ["_in_blocks"]


@gpu
def test_a_masked_block_needs_no_scores_in_memory() -> None:
    """The fused kernel takes it: what is allocated is less than one block's scores."""
    places = torch.arange(0, 16384, 2)
    query, key = (torch.randn(1, heads, 8192, 64, device="cuda:0", dtype=torch.bfloat16) for heads in (16, 4))
    positions = Positions(places.to("cuda:0"), places)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sequence_attention(query, key, key, positions, 4096, 0.125)
    assert torch.cuda.max_memory_allocated() - before < 4 * query.nbytes + 8 * 4096 * 8192


def _error(places: Tensor, queries: int, window: int, shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """Return ||ours - true|| / ||true|| for keys cut out of a longer buffer."""
    torch.manual_seed(window)
    heads, kv_heads, head_dim = shape
    options = {"device": "cuda:0", "dtype": dtype}
    query = torch.randn(1, queries, heads, head_dim, **options).transpose(1, 2)
    key, value = (torch.randn(1, kv_heads, len(places) + 64, head_dim, **options)[:, :, :-64] for _ in range(2))
    ours = sequence_attention(query, key, value, Positions(places.to("cuda:0"), places), window, head_dim**-0.5)
    exact = (x.double() for x in (query, key, value))
    true = attend(*exact, places.to("cuda:0"), window, head_dim**-0.5)
    return float((ours.double() - true).norm() / true.norm())
