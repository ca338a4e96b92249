"""What a request may say of its selection, and the budgets that follow from it."""

import math
from dataclasses import replace

import pytest

from common.errors import InvalidRequestError
from common.skeleton.selection import METHODS, Selection


def test_a_method_brings_its_own_parameters_and_leaves_the_budgets() -> None:
    chosen = Selection.of({"method": "snapkv"}, Selection(kv_retention=0.3, decay=0.5))
    assert (chosen.kv_retention, chosen.window_tokens, chosen.pool_tokens, chosen.decay) == (0.3, 32, 7, 1.0)


def test_no_method_chooses_the_codec() -> None:
    assert Selection().codec == "int8"
    assert all(Selection.of({"method": method}).codec == "int8" for method in METHODS)
    assert Selection.of({"variant": "paper"}, Selection(codec="raw")).codec == "raw"
    assert Selection.of({"method": "snapkv"}, Selection(codec="int4")).codec == "int4"
    assert Selection.of({"method": "snapkv", "codec": "raw"}).codec == "raw"


def test_what_a_request_says_comes_first() -> None:
    assert Selection.of({"method": "snapkv", "window_tokens": 3}).window_tokens == 3


def test_the_paper_has_one_set_per_layer_and_neither_pooling_nor_blocks() -> None:
    paper = Selection.of({"variant": "paper"})
    assert (paper.granularity, paper.pool_tokens, paper.window_tokens, paper.decay) == ("layer", 1, 8, 0.9)
    assert (paper.saliency, paper.ranked_by, paper.block_tokens) == ("sum", "saliency", 0)


def test_a_rate_in_the_request_replaces_a_default_number_of_tokens() -> None:
    defaults = Selection(kv_tokens=500)
    assert Selection.of({}, defaults).kv_budget(1000) == 500
    assert Selection.of({"kv_retention": 0.2}, defaults).kv_budget(1000) == 200


def test_over_the_wire_and_back() -> None:
    selection = Selection.of({"variant": "paper", "kv_tokens": 99, "pivot_layer": 7, "codec": "int4", "decay": 0.25})
    assert Selection.from_pb(selection.to_pb()) == selection


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "magic"),
        ("variant", "fast"),
        ("kv_retention", 0.0),
        ("kv_retention", math.nan),
        ("struct_retention", 1.5),
        ("kv_tokens", -1),
        ("window_tokens", 0),
        ("granularity", "token"),
        ("saliency", "mean"),
        ("ranked_by", "luck"),
        ("pool_tokens", 0),
        ("decay", 0.0),
        ("pivot", "guess"),
        ("codec", "int2"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=field) as caught:
        Selection.of({field: value})
    assert caught.value.param == f"structkv.{field}"


def test_a_variant_is_structkvs_alone() -> None:
    with pytest.raises(InvalidRequestError, match="variant"):
        Selection.of({"method": "snapkv", "variant": "paper"})


def test_a_pyramids_mean_is_its_budget() -> None:
    budgets = Selection.of({"method": "pyramid_infer"}).layer_budgets(2000, 30)
    assert sum(budgets) / 30 == pytest.approx(200, abs=1)
    assert budgets == sorted(budgets, reverse=True)
    assert replace(Selection(kv_retention=0.15), method="fastkv").layer_budgets(2000, 3) == [300] * 3
