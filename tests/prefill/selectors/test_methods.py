"""Every method in the engine against a run that materialises everything."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.errors import InvalidRequestError
from common.model.decoder import DecoderModel
from common.skeleton.selection import METHODS, Selection
from services.prefill.engine import PrefillEngine
from services.prefill.outputs import KeptLayer, Output, PromptEnd
from services.prefill.selectors.registry import SELECTORS, selector_for
from tests.families import tiny_model
from tests.prefill.selectors import naive

BUDGETS = {"kv_retention": 0.15, "struct_retention": 0.3, "floor_tokens": 32}
SELECTION = Selection.of({**BUDGETS, "window_tokens": 8})
PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(201)]
NUM_TOKENS = len(PROMPT)
PIVOT = 3
ENDS = torch.arange(256) % 11 == 5
"""Which tokens end a sentence."""


def choose(options: dict[str, object]) -> Selection:
    """Return a selection with the tests' budgets."""
    return Selection.of({**BUDGETS, **options})


def naive_scores(selection: Selection, query: Tensor, key: Tensor, scaling: float, budget: int) -> Tensor:
    """Score a layer's tokens by KV group from the method's formula: [G, N]."""
    groups, num_tokens, _ = key.shape
    if selection.method == "streaming_llm":
        return torch.arange(num_tokens).float().expand(groups, -1)
    if selection.method == "keydiff":
        anchor = torch.stack([k / k.norm() for k in key.flatten(0, 1)]).view(key.shape).mean(1)
        return torch.stack([-(key[g] @ anchor[g]) / key[g].norm(dim=1) / anchor[g].norm() for g in range(groups)])
    if selection.method == "h2o":
        received = naive.attention(query, key, scaling).sum(dim=1)  # [H, N]
        scores = received.view(groups, -1, num_tokens).sum(dim=1)
        scores[:, num_tokens - budget // 2 :] = 1e9
        return scores
    observe = naive.peaks if selection.saliency == "peak" else naive.saliency
    return observe(query, key, scaling, selection.window_tokens)


def over_heads(selection: Selection, scores: Tensor) -> Tensor:
    return scores.amax(0) if selection.saliency == "peak" else scores.sum(0)


def naive_top(selection: Selection, scores: Tensor, budget: int, blocks: list[int]) -> list[int]:
    smooth = naive.max_pooled(scores.tolist(), selection.pool_tokens)
    if selection.block_tokens:
        smooth = naive.blocked(smooth, blocks)
    return naive.top(smooth, budget, selection.sink_tokens, selection.window_tokens)


class NaiveRun:
    """A method's run, layer by layer, with the whole attention at hand."""

    def __init__(self, model: DecoderModel, selection: Selection) -> None:
        self.model, self.selection = model, selection
        self.positions = torch.arange(NUM_TOKENS)
        self.hidden: Tensor | None = None
        self.observed: list[Tensor] = []  # the reduced scores of each layer, of the tokens that are still there
        self.budgets = selection.layer_budgets(NUM_TOKENS, model.spec.num_layers)
        self.blocks = naive.block_of_each([bool(ENDS[token]) for token in PROMPT], selection.block_tokens)

    def layers(self) -> Iterator[tuple[Tensor, Tensor, list[list[int]]]]:
        """Yield each layer's keys, values and kept indices by head."""
        for layer in range(self.model.spec.num_layers):
            self.hidden, recorder = naive.run_layers(
                self.model, PROMPT, self.positions, layer + 1, start=layer, hidden=self.hidden
            )
            query, key, value, scaling = recorder.layers[0]
            scores = naive_scores(self.selection, query, key, scaling, self.budgets[layer])
            rows = scores if self.selection.granularity == "head" else over_heads(self.selection, scores)[None]
            ranked = self.rank(rows)
            kept = [self.top(row, self.budgets[layer]) for row in ranked]
            if self.selection.method == "full":
                kept = [list(range(NUM_TOKENS))]
            yield key, value, kept * (len(key) // len(kept))
            self.go_on(layer, over_heads(self.selection, rows))

    def rank(self, rows: Tensor) -> Tensor:
        if self.selection.method != "structkv":
            return rows
        self.observed.append(rows)
        central = naive.centrality(self.observed, self.selection.decay)
        return central if self.selection.ranked_by == "centrality" else rows

    def go_on(self, layer: int, saliency: Tensor) -> None:
        method, struct = self.selection.method, self.selection.struct_budget(NUM_TOKENS)
        if method == "structkv" and layer + 1 == PIVOT:
            self.drop(over_heads(self.selection, naive.centrality(self.observed, self.selection.decay)), struct)
        if method == "fastkv" and layer + 1 == PIVOT:
            self.drop(saliency, struct)
        if method == "pyramid_infer":
            share = self.selection.struct_retention ** ((layer + 1) / 6)
            self.drop(saliency, max(math.ceil(NUM_TOKENS * share), self.budgets[min(layer + 1, 5)]))

    def top(self, scores: Tensor, budget: int) -> list[int]:
        return naive_top(self.selection, scores, budget, [self.blocks[place] for place in self.positions])

    def drop(self, scores: Tensor, budget: int) -> None:
        assert self.hidden is not None
        going_on = torch.tensor(self.top(scores, budget))
        self.hidden, self.positions = self.hidden[:, going_on], self.positions[going_on]
        self.observed = [scores[:, going_on] for scores in self.observed]


CASES: list[dict[str, object]] = [
    {"method": "structkv", "pivot_layer": PIVOT},
    {"method": "structkv", "pivot_layer": PIVOT, "granularity": "head", "window_tokens": 8, "pool_tokens": 3},
    {"method": "structkv", "pivot_layer": PIVOT, "ranked_by": "saliency", "block_tokens": 4},
    {"method": "structkv", "pivot_layer": PIVOT, "saliency": "sum", "block_tokens": 0, "pool_tokens": 5},
    {"method": "structkv", "variant": "paper", "pivot_layer": PIVOT},
    {"method": "structkv", "variant": "paper", "pivot_layer": PIVOT, "granularity": "head", "decay": 0.5},
    {"method": "fastkv", "pivot_layer": PIVOT},
    {"method": "fastkv", "pivot_layer": PIVOT, "granularity": "layer", "kv_tokens": 50},
    {"method": "snapkv"},
    {"method": "snapkv", "granularity": "layer", "window_tokens": 5, "block_tokens": 9},
    {"method": "h2o"},
    {"method": "h2o", "granularity": "layer"},
    {"method": "streaming_llm"},
    {"method": "keydiff"},
    {"method": "pyramid_infer"},
    {"method": "pyramid_infer", "granularity": "head"},
    {"method": "full"},
]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("options", CASES, ids=lambda options: " ".join(map(str, options.values())))
def test_the_engine_keeps_what_the_formulas_keep(
    family: str, options: dict[str, object], tiny: Callable[[str], DecoderModel]
) -> None:
    model, selection = tiny(family), choose(options)
    expected = NaiveRun(model, selection)
    *layers, end = PrefillEngine(model, sentence_ends=ENDS).run(PROMPT, selection)
    for layer, (key, value, kept) in zip(layers, expected.layers(), strict=True):
        assert isinstance(layer, KeptLayer)
        for head, places in enumerate(kept):
            torch.testing.assert_close(layer.keys[:, head], key[head, places], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(layer.values[:, head], value[head, places], rtol=1e-4, atol=1e-4)
    assert isinstance(end, PromptEnd)
    assert end.pivot_layer == (PIVOT if "pivot_layer" in options else None)
    assert expected.hidden is not None
    # Behind all layers rounding adds up, and by how much is the processor's: 1.6e-4 on some.
    torch.testing.assert_close(end.hidden_state, expected.hidden[0, -1], rtol=1e-3, atol=5e-4)


def test_gemfilter_runs_the_chosen_tokens_as_a_new_prompt(tiny: Callable[[str], DecoderModel]) -> None:
    model, selection = tiny("llama"), choose({"method": "gemfilter", "pivot_layer": 2})
    _, recorder = naive.run_layers(model, PROMPT, torch.arange(NUM_TOKENS), 2)
    query, key, _, scaling = recorder.layers[1]
    chosen = naive_top(selection, naive.saliency(query, key, scaling, 1).sum(0), 31, [])
    hidden, again = naive.run_layers(model, [PROMPT[i] for i in chosen], torch.arange(31), 6)

    outputs = list(PrefillEngine(model).run(PROMPT, selection))
    kept = [output for output in outputs if isinstance(output, KeptLayer)]
    assert outputs[:2] == [None, None], "the first run keeps nothing"
    assert [layer.layer for layer in kept] == list(range(6))
    for layer, (_, key, value, _) in zip(kept, again.layers, strict=True):
        torch.testing.assert_close(layer.keys, key.transpose(0, 1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.values, value.transpose(0, 1), rtol=1e-4, atol=1e-4)
    assert isinstance(outputs[-1], PromptEnd)
    torch.testing.assert_close(outputs[-1].hidden_state, hidden[0, -1], rtol=1e-3, atol=5e-4)
    assert selection.next_position(NUM_TOKENS) == 31


def test_gemfilter_chooses_at_the_last_layer_that_can_be_observed(tiny: Callable[[str], DecoderModel]) -> None:
    *_, end = PrefillEngine(tiny("gemma3_text")).run(PROMPT, choose({"method": "gemfilter", "pivot_layer": 99}))
    assert isinstance(end, PromptEnd)
    assert end.pivot_layer == 6


def test_gemfilter_is_refused_where_every_layer_slides() -> None:
    model = DecoderModel(tiny_model("mistral", sliding_window=24), "sliding")
    with pytest.raises(InvalidRequestError, match="gemfilter"):
        next(PrefillEngine(model).run(PROMPT, choose({"method": "gemfilter"})))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "gemfilter"])
def test_where_every_layer_slides_exactly_the_windows_are_kept(method: str) -> None:
    model = DecoderModel(tiny_model("mistral", sliding_window=24), "sliding")
    outputs = PrefillEngine(model).run(PROMPT, choose({"method": method}))
    assert [len(output.keys) for output in outputs if isinstance(output, KeptLayer)] == [24] * 6


@pytest.mark.parametrize("seed", range(4))
def test_the_online_pivot_is_where_the_formula_says(seed: int) -> None:
    model = DecoderModel(tiny_model("llama", num_hidden_layers=20), "deep")
    prompt = [3 + (i * i * 31 + i * (7 + seed)) % 250 for i in range(NUM_TOKENS)]
    _, recorder = naive.run_layers(model, prompt, torch.arange(NUM_TOKENS), 20)
    metrics = [
        naive.metrics(naive.saliency(q, k, scaling, 8).sum(0)[4:-8].tolist(), SELECTION.struct_retention)
        for q, k, _, scaling in recorder.layers
    ]
    expected = 14  # the band of twenty layers is 6 to 13, and its end forces a decision
    for layer in range(7, 14):  # the gradient at 6 looks back to 5
        scores = naive.transition(metrics[5 : layer + 1], (0.2, 0.3, 0.5))
        if len(scores) - 1 - scores.index(max(scores)) >= 3:
            expected = layer + 1
            break
    *_, end = PrefillEngine(model).run(prompt, choose({"variant": "paper", "pivot": "online"}))
    assert isinstance(end, PromptEnd)
    assert end.pivot_layer == expected


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 4), ({"pivot": "online"}, 5), ({"pivot_layer": 2}, 2), ({"variant": "paper"}, 4)]
)
def test_a_calibrated_pivot_is_used_unless_the_request_says_otherwise(
    options: dict[str, object], expected: int, tiny: Callable[[str], DecoderModel]
) -> None:
    *_, end = PrefillEngine(tiny("llama"), calibrated_pivot=4).run(PROMPT, choose(options))
    assert isinstance(end, PromptEnd)
    assert end.pivot_layer == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [{}, {"kv_tokens": 40}, {"kv_tokens": 1000}, {"kv_tokens": 1}])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_no_layer_keeps_more_than_decode_reserves(
    method: str, budget: dict[str, object], family: str, tiny: Callable[[str], DecoderModel]
) -> None:
    model, selection = tiny(family), choose({"method": method, **budget})
    outputs = list(PrefillEngine(model).run(PROMPT, selection))
    kept = [len(output.keys) for output in outputs if isinstance(output, KeptLayer)]
    bounds = selection.layer_budgets(NUM_TOKENS, model.spec.num_layers)
    limits = [bound if window is None else window for bound, window in zip(bounds, model.spec.windows, strict=True)]
    assert all(1 <= tokens <= limit for tokens, limit in zip(kept, limits, strict=True))
    if family == "llama" and not budget and method != "full":
        assert sum(kept) / len(kept) == pytest.approx(max(31, 4 + selection.window_tokens), abs=0.5)


@pytest.mark.parametrize("tokens", [33, 100, 201])
def test_every_layer_keeps_the_stated_share_of_the_whole_prompt(
    tokens: int, tiny: Callable[[str], DecoderModel]
) -> None:
    outputs = PrefillEngine(tiny("llama")).run(PROMPT[:tokens], replace(SELECTION, pivot_layer=3))
    budget = SELECTION.kv_budget(tokens)
    assert budget == max(-(-tokens * 15 // 100), 4 + 8)
    assert [len(output.keys) for output in outputs if isinstance(output, KeptLayer)] == [budget] * 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tokens", [1, 7, 32])
def test_a_short_prompt_is_left_whole(method: str, tokens: int, tiny: Callable[[str], DecoderModel]) -> None:
    *layers, end = PrefillEngine(tiny("llama")).run(PROMPT[:tokens], choose({"method": method}))
    assert [len(layer.keys) for layer in layers if isinstance(layer, KeptLayer)] == [tokens] * 6
    assert isinstance(end, PromptEnd)
    assert end.pivot_layer is None


def test_side_by_side_is_the_same_as_alone(tiny: Callable[[str], DecoderModel]) -> None:
    engine = PrefillEngine(tiny("gemma3_text"), calibrated_pivot=4)
    selections = [choose({"method": method}) for method in METHODS]
    together: list[list[Output]] = [[] for _ in selections]
    scope = engine.scope(PROMPT)
    for index, output in engine.run_all(PROMPT, [selector_for(selection, scope) for selection in selections]):
        together[index].append(output)
    for selection, outputs in zip(selections, together, strict=True):
        for output, alone in zip(outputs, engine.run(PROMPT, selection), strict=True):
            assert type(output) is type(alone)
            if isinstance(output, KeptLayer):
                assert torch.equal(output.keys, alone.keys)
                assert torch.equal(output.values, alone.values)
            elif isinstance(output, PromptEnd):
                assert torch.equal(output.hidden_state, alone.hidden_state)


def test_every_method_has_a_selector() -> None:
    assert set(SELECTORS) == set(METHODS)
