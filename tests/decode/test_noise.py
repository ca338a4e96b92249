"""The noise that tokens are drawn with: its distribution, and that seeds, steps and tokens have each their own."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from services.decode.noise import gumbel

TOKENS = torch.arange(400)
DRAWS = [(seed, step) for seed in range(20) for step in range(10)]


def uniforms(draws: Iterable[tuple[int, int]], token_ids: Tensor = TOKENS) -> Tensor:
    """Return the noise as what a uniform distribution would have given."""
    return (-(-gumbel(draws, token_ids).double()).exp()).exp()


def chi_square(observed: Tensor, expected: Tensor) -> float:
    """Return by how many standard deviations the statistic is above its mean."""
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    freedom = observed.numel() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def evenly(cells: Tensor, num_cells: int) -> bool:
    observed = torch.bincount(cells.flatten(), minlength=num_cells).double()
    return chi_square(observed, torch.full_like(observed, cells.numel() / num_cells)) < 4


def test_it_is_the_gumbel_distribution() -> None:
    shares = uniforms(DRAWS)
    assert evenly((shares * 100).long(), 100)


def test_what_is_drawn_has_the_distribution_of_the_softmax() -> None:
    probabilities = torch.logspace(0, -3, 50, dtype=torch.double)
    probabilities /= probabilities.sum()
    draws = [(seed, step) for seed in range(200) for step in range(100)]
    chosen = (probabilities.log() + gumbel(draws, torch.arange(50))).argmax(dim=-1)
    assert chi_square(torch.bincount(chosen, minlength=50).double(), probabilities * len(draws)) < 4


def test_neighbouring_tokens_seeds_and_steps_have_nothing_to_do_with_each_other() -> None:
    one = uniforms(DRAWS)
    for other in (
        one.roll(1, dims=1),
        uniforms([(seed + 1, step) for seed, step in DRAWS]),
        uniforms([(seed, step + 1) for seed, step in DRAWS]),
        uniforms([(step, seed + 40) for seed, step in DRAWS]),
        uniforms([(seed + 2**63, step) for seed, step in DRAWS]),
    ):
        assert evenly((one * 20).long() * 20 + (other * 20).long(), 400)


def test_a_token_has_its_noise_whoever_else_is_asked_for() -> None:
    every = gumbel([(2**64 - 1, 7), (0, 0)], TOKENS)
    some = torch.tensor([[399, 0, 5], [4, 4, 398]])
    assert torch.equal(gumbel([(2**64 - 1, 7), (0, 0)], some), every.gather(1, some))


def test_it_is_finite_and_reaches_far() -> None:
    noise = gumbel([(1, step) for step in range(500)], TOKENS)
    assert noise.isfinite().all()
    assert noise.max() > 10
    assert noise.min() < -2.2


def test_it_never_changes() -> None:
    """Workers of two versions go on with each other's answers."""
    expected = torch.tensor([[-0.204856, -0.187179, -0.974140]])
    assert torch.allclose(gumbel([(42, 7)], torch.tensor([0, 1, 49151])), expected, atol=1e-5)
