"""The PNG, and what its pixels say."""

import io
import warnings

import pytest
import torch
from matplotlib import image

from common.skeleton.selection import METHODS
from evaluation.inspection import picture
from evaluation.inspection.curves import peaks, top_of_scored
from tests.evaluation.inspection.conftest import Examine

KEPT, SEEN, LEFT = ((0xE6, 0x9F, 0x00), (0xF1, 0xF1, 0xEE), (0xC9, 0xCB, 0xD1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_method_gives_a_picture_of_the_stated_size(family: str, method: str, examined: Examine) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.draw(examined(family, method=method)).savefig(file, dpi=picture.DPI)
    file.seek(0)
    height, width, _ = image.imread(file, format="png").shape
    assert (width, height) == tuple(inches * picture.DPI for inches in picture.SIZE_INCHES)


def colours(*columns: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(columns, dtype=torch.float64) / 255


def test_kept_seen_and_left_behind_have_their_colours() -> None:
    kept = torch.tensor([[1, 0, 0], [1, 0, 0]])
    pixels = picture.heat_colours(kept, torch.tensor([2, 2, 1]))
    torch.testing.assert_close(pixels[0], colours(KEPT, SEEN, SEEN))
    torch.testing.assert_close(pixels[1], colours(KEPT, SEEN, LEFT))


def test_a_long_prompt_has_fewer_columns_and_a_single_kept_token_is_still_seen() -> None:
    kept = torch.zeros(1, 100_000)
    kept[0, 50_000] = 1
    pixels = picture.heat_colours(kept, torch.ones(100_000), most_columns=1000)
    assert pixels.shape == (1, 1000, 3)
    differs = (pixels[0] - colours(SEEN)).abs().amax(dim=1)
    assert (differs > 0.05).nonzero().flatten().tolist() == [500]


@pytest.mark.parametrize(("most", "expected"), [(9, [1, 5, 2, 9, 3]), (2, [5, 9]), (1, [9])])
def test_peaks_keep_the_largest_of_each_stretch(most: int, expected: list[float]) -> None:
    assert peaks(torch.tensor([1.0, 5, 2, 9, 3]), most).tolist() == expected


def test_peaks_have_gaps_only_where_nothing_is() -> None:
    values = torch.tensor([torch.nan, torch.nan, torch.nan, 2, torch.inf, 3])
    drawn = peaks(values, 3)
    assert drawn[0].isnan()
    assert drawn[1:].tolist() == [2, 3]


def test_the_scale_is_that_of_what_competes() -> None:
    values = torch.tensor([90.0, 1, 4, torch.inf, torch.nan, 80])
    assert top_of_scored(values, sinks=1, window=1) == 4
    assert top_of_scored(values, sinks=3, window=3) == 90, "if nothing competes, of all"
