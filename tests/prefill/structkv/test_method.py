"""The whole method in the engine against a run that materialises everything."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from services.prefill.engine import KeptLayer, PrefillEngine, PromptEnd
from services.prefill.structkv.config import StructKVConfig
from tests.prefill.structkv import naive

SELECTION = Selection(kv_retention=0.15, struct_retention=0.3, window_tokens=8, sink_tokens=4, floor_tokens=32)
PAPER = StructKVConfig(pool_tokens=1, granularity="layer", normalise=False)
PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(201)]


def expected_run(model: DecoderModel, config: StructKVConfig, pivot: int) -> tuple[list[list[list[int]]], torch.Tensor]:
    """Return each layer's kept positions by KV head, and the last hidden state, from the formulas."""
    groups, num_tokens = model.spec.num_kv_heads, len(PROMPT)
    kv, struct = SELECTION.kv_budget(num_tokens), SELECTION.struct_budget(num_tokens)
    positions = torch.arange(num_tokens)
    hidden, shallow = naive.run_layers(model, PROMPT, positions, pivot)
    saliencies = [naive.saliency(q, k, scaling, 8) for q, k, _, scaling in shallow.layers]
    totals = [s.sum(0) for s in saliencies]
    if config.normalise:
        totals = [total / total[4:-8].sum() for total in totals]
    central = naive.max_pooled(naive.centrality(totals, config.decay).tolist(), config.pool_tokens)
    skeleton = torch.tensor(naive.top(central, struct, 4, 8))
    hidden, deep = naive.run_layers(
        model, PROMPT, skeleton, model.spec.num_layers, start=pivot, hidden=hidden[:, skeleton]
    )
    saliencies += [naive.saliency(q, k, scaling, 8) for q, k, _, scaling in deep.layers]

    kept = []
    for layer, saliency in enumerate(saliencies):
        rows = saliency if config.granularity == "head" else saliency.sum(0, keepdim=True).expand(groups, -1)
        places = positions if layer < pivot else skeleton
        tops = [naive.top(naive.max_pooled(row.tolist(), config.pool_tokens), kv, 4, 8) for row in rows]
        kept.append([places[torch.tensor(top)].tolist() for top in tops])
    return kept, hidden[0, -1]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize(
    "config",
    [PAPER, replace(PAPER, granularity="head"), StructKVConfig()],
    ids=["paper", "paper by head", "default"],
)
def test_the_engine_keeps_what_the_formulas_keep(
    family: str, config: StructKVConfig, tiny: Callable[[str], DecoderModel]
) -> None:
    model, pivot = tiny(family), 3
    kept, last_hidden = expected_run(model, config, pivot)
    *layers, end = PrefillEngine(model, replace(config, pivot_layer=pivot)).run(PROMPT, SELECTION)
    assert isinstance(end, PromptEnd)
    assert end.pivot_layer == pivot
    torch.testing.assert_close(end.hidden_state, last_hidden, rtol=1e-4, atol=1e-4)

    positions = torch.arange(len(PROMPT))
    _, shallow = naive.run_layers(model, PROMPT, positions, pivot)
    for layer in layers:
        assert isinstance(layer, KeptLayer)
        assert layer.keys.shape == layer.values.shape == (len(kept[layer.layer][0]), 2, 16)
        if layer.layer < pivot:
            _, key, value, _ = shallow.layers[layer.layer]
            for head, places in enumerate(kept[layer.layer]):
                torch.testing.assert_close(layer.keys[:, head], key[head, places], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(layer.values[:, head], value[head, places], rtol=1e-4, atol=1e-4)


def test_the_online_pivot_is_where_the_formula_says(tiny: Callable[[str], DecoderModel]) -> None:
    model = tiny("llama")
    config = replace(PAPER, pivot_band=(0.3, 0.9), pivot_patience=1)
    _, recorder = naive.run_layers(model, PROMPT, torch.arange(len(PROMPT)), model.spec.num_layers)
    metrics = [
        naive.metrics(naive.saliency(q, k, scaling, 8).sum(0)[4:-8].tolist(), SELECTION.struct_retention)
        for q, k, _, scaling in recorder.layers
    ]
    expected = 6  # the band of six layers is 2 to 5; the gradient at 2 looks back to 1
    for layer in range(2, 6):
        scores = naive.transition(metrics[1 : layer + 1], config.pivot_weights) if layer > 2 else [0.0]
        if len(scores) - 1 - scores.index(max(scores)) >= 1:
            expected = layer + 1
            break
    *_, end = PrefillEngine(model, config).run(PROMPT, SELECTION)
    assert isinstance(end, PromptEnd)
    assert end.pivot_layer == expected


@pytest.mark.parametrize("tokens", [33, 100, 201])
def test_every_layer_keeps_the_stated_share_of_the_whole_prompt(
    tokens: int, tiny: Callable[[str], DecoderModel]
) -> None:
    *layers, end = PrefillEngine(tiny("llama"), StructKVConfig(pivot_layer=3)).run(PROMPT[:tokens], SELECTION)
    budget = SELECTION.kv_budget(tokens)
    assert budget == max(-(-tokens * 15 // 100), 12)
    assert [layer.keys.shape[0] for layer in layers if isinstance(layer, KeptLayer)] == [budget] * 6


@pytest.mark.parametrize("tokens", [1, 7, 32])
def test_a_short_prompt_is_left_whole(tokens: int, tiny: Callable[[str], DecoderModel]) -> None:
    *layers, end = PrefillEngine(tiny("llama"), StructKVConfig()).run(PROMPT[:tokens], SELECTION)
    assert [layer.keys.shape[0] for layer in layers if isinstance(layer, KeptLayer)] == [tokens] * 6
    assert isinstance(end, PromptEnd)
    assert end.pivot_layer is None
