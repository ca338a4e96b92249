"""What is drawn is what the engine did: held against the wire, the service, and a run that keeps everything."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.model.decoder import DecoderModel
from common.skeleton import wire
from common.skeleton.selection import METHODS, Selection
from common.skeleton.spec import SkeletonSpec
from common.skeleton.wire import SkeletonReader
from evaluation.inspection.raw import as_json
from services.prefill.engine import PrefillEngine
from services.prefill.outputs import KeptLayer
from services.prefill.selectors.base import Decision, LayerView, everything
from services.prefill.selectors.registry import SELECTORS
from tests.conftest import StartWorkers
from tests.evaluation.inspection.conftest import PROMPT, Examine

CUTTING = ["structkv", "fastkv", "pyramid_infer"]
GRANULAR = [{"granularity": "head"}, {"granularity": "layer"}]


def on_the_wire(model: DecoderModel, selection: Selection) -> list[tuple[Tensor, list[int] | None]]:
    """Return what decode reads of each layer: keys and values beside each other, [kept, G, 2 d], and positions."""
    skeleton = SkeletonSpec.of(model.spec, PROMPT, selection)
    reader = SkeletonReader(skeleton, skeleton.max_kept_tokens)
    reader.read_header(wire.header(skeleton))
    read = []
    for layer in PrefillEngine(model).run(PROMPT, selection):
        if isinstance(layer, KeptLayer):
            messages = wire.layer_chunks(reader.skeleton, layer.layer, layer.keys, layer.values, layer.positions)
            [chunk] = [reader.read_chunk(message) for message in messages]
            read.append((torch.cat((chunk.keys, chunk.values), dim=-1), chunk.positions))
    return read


def uncompressed(model: DecoderModel, selection: Selection) -> list[tuple[Tensor, list[int]]]:
    """Return every layer's keys and values of all tokens that came there, likewise, and where these stand."""
    came = [list(range(len(PROMPT)))]

    def select(self: object, view: LayerView) -> Decision:
        going_on = SELECTORS[selection.method].select(self, view).going_on  # type: ignore[arg-type]
        came.append(came[-1] if going_on is None else [came[-1][place] for place in going_on.tolist()])
        return Decision(everything(view), going_on)

    keeps_all = type("KeepsAll", (SELECTORS[selection.method],), {"select": select})
    engine = PrefillEngine(model)
    outputs = [output for _, output in engine.run_all(PROMPT, [keeps_all(selection, engine.scope(PROMPT))])]
    layers = [output for output in outputs if isinstance(output, KeptLayer)]
    return [
        (torch.cat((layer.keys, layer.values), dim=-1).to(torch.bfloat16), places)
        for layer, places in zip(layers, came, strict=False)
    ]


@pytest.mark.parametrize("options", GRANULAR, ids=["head", "layer"])
@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("full", "gemfilter")])
def test_the_places_are_those_of_the_keys_and_values_on_the_wire(
    method: str, options: dict[str, object], examined: Examine, tiny: Callable[[str], DecoderModel]
) -> None:
    inspection = examined(method=method, **options)
    selection = inspection.recording.selection
    wired, everywhere = on_the_wire(tiny("llama"), selection), uncompressed(tiny("llama"), selection)
    places = as_json(inspection)["kept_positions"]
    assert len(places) == len(wired) == len(everywhere) == 6
    for kept, (sent, _), (all_rows, came) in zip(places, wired, everywhere, strict=True):
        for group in range(2):
            own = kept[group] if isinstance(kept[0], list) else kept
            rows = all_rows[[came.index(place) for place in own], group]
            assert len(all_rows[:, group].unique(dim=0)) == len(came), "or equal rows prove nothing"
            assert torch.equal(rows, sent[:, group])


def test_gemfilters_places_are_the_tokens_that_started_again(
    examined: Examine, tiny: Callable[[str], DecoderModel]
) -> None:
    inspection = examined(method="gemfilter")
    [kept] = {tuple(places) for places in as_json(inspection)["kept_positions"]}
    again = Selection(method="full")
    first, *_ = PrefillEngine(tiny("llama")).run([PROMPT[place] for place in kept], again)
    sent, _ = on_the_wire(tiny("llama"), inspection.recording.selection)[0]
    assert torch.equal(torch.cat((first.keys, first.values), dim=-1).to(torch.bfloat16), sent)
    went = [place for place, run in enumerate(inspection.recording.layers_run.tolist()) if run == 6]
    assert tuple(went) == kept


@pytest.mark.parametrize("method", METHODS)
def test_a_sliding_layers_places_are_its_positions_on_the_wire(
    method: str, examined: Examine, tiny: Callable[[str], DecoderModel]
) -> None:
    inspection = examined("gemma3_text", method=method)
    selection = inspection.recording.selection
    wired = on_the_wire(tiny("gemma3_text"), selection)
    slides = [window is not None for window in inspection.recording.model.windows]
    assert [positions is not None for _, positions in wired] == slides
    shown = as_json(inspection)["kept_positions"]
    for kept, (_, positions) in zip(shown, wired, strict=True):
        if positions is not None:
            # GemFilter's tokens are a new prompt to the layers, with positions of their own.
            started = shown[2] if method == "gemfilter" else list(range(len(PROMPT)))
            assert kept == [started[position] for position in positions]


@pytest.mark.parametrize("codec", ["int8", "int4", "raw"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
async def test_counts_and_bytes_are_the_services_own(
    family: str,
    method: str,
    codec: str,
    examined: Examine,
    tiny: Callable[[str], DecoderModel],
    start_workers: StartWorkers,
) -> None:
    inspection = examined(family, method=method, codec=codec)
    workers = await start_workers(tiny(family))
    first, *_ = await workers.generate(workers.request(PROMPT, 1, inspection.recording.selection))
    stats = as_json(inspection)["stats"]
    assert stats["kept_tokens_per_layer"] == list(first.skeleton.kept_tokens_per_layer)
    assert stats["skeleton_bytes"] == first.skeleton.skeleton_bytes
    assert stats["full_kv_bytes"] == first.skeleton.full_kv_bytes
    assert stats["pivot_layer"] == (first.skeleton.pivot_layer if first.skeleton.HasField("pivot_layer") else None)


@pytest.mark.parametrize("method", CUTTING)
def test_a_token_that_was_left_behind_is_kept_no_deeper(method: str, examined: Examine) -> None:
    recording = examined(method=method).recording
    run = recording.layers_run
    assert 0 < int((run < 6).sum()) < len(PROMPT)
    for layer, places in enumerate(recording.kept):
        assert bool((run[places] > layer).all())
        seen = recording.scores[layer].isfinite()
        assert torch.equal(seen, run > layer), "a layer scores the tokens that it sees"


@pytest.mark.parametrize("options", GRANULAR, ids=["head", "layer"])
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_the_centrality_is_the_sum_of_the_scores_as_long_as_a_token_is_there(
    decay: float, options: dict[str, object], examined: Examine
) -> None:
    # Peaks over heads do not commute with the sum over layers, sums do.
    recording = examined(decay=decay, saliency="sum", **options).recording
    assert recording.centrality is not None
    expected = torch.zeros(len(PROMPT))
    for scores in recording.scores.values():
        expected = torch.where(scores.isnan(), expected, expected * decay + scores)
    torch.testing.assert_close(recording.centrality, expected)


def test_methods_without_centrality_or_scores_have_none(examined: Examine) -> None:
    assert examined(method="snapkv").recording.centrality is None
    whole = examined(method="full").recording
    assert whole.scores == {}
    assert whole.kept_tokens == [len(PROMPT)] * 6
    assert whole.blocks is None


def test_heads_that_choose_alone_are_counted_alone(examined: Examine) -> None:
    recording = examined(granularity="head").recording
    heads = recording.heads_keeping()
    assert heads.sum(dim=1).tolist() == [2 * tokens for tokens in recording.kept_tokens]
    assert set(heads.unique().tolist()) == {0, 1, 2}, "some tokens are one head's choice"
    assert examined(granularity="layer").recording.heads_keeping().unique().tolist() == [0, 2]
