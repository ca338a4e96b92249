"""The prefill engine: memory, input, sliding windows."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from common.errors import ContextLengthError, InvalidRequestError
from common.model.decoder import DecoderModel
from common.skeleton.selection import METHODS, Selection
from services.prefill.attention import SequenceAttention
from services.prefill.engine import PrefillEngine
from services.prefill.outputs import KeptLayer
from tests.families import tiny_model

PROMPT = [3 + i % 200 for i in range(300)]


@pytest.mark.parametrize("chunk_tokens", [64, 1000])
@pytest.mark.parametrize("method", ["full", "structkv"])
@pytest.mark.parametrize("num_layers", [4, 12])
def test_full_keys_and_values_exist_for_one_layer_at_a_time(
    method: str, num_layers: int, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DecoderModel(tiny_model("llama", num_hidden_layers=num_layers), "deep")
    whole_caches: list[tuple[int, weakref.ref[torch.Tensor]]] = []
    layers_alive = 0
    attend = SequenceAttention.__call__

    def watched(self: SequenceAttention, layer: int, *tensors: torch.Tensor) -> torch.Tensor:
        nonlocal layers_alive
        output = attend(self, layer, *tensors)
        whole_caches.extend((layer, weakref.ref(whole)) for whole in (self.key, self.value))
        gc.collect()
        layers_alive = max(layers_alive, len({layer for layer, ref in whole_caches if ref() is not None}))
        return output

    monkeypatch.setattr(SequenceAttention, "__call__", watched)
    for _ in PrefillEngine(model, chunk_tokens=chunk_tokens).run(PROMPT, Selection(method=method)):
        pass  # what is handed out is dropped, as if it were sent
    assert {layer for layer, _ in whole_caches} == set(range(num_layers))
    assert layers_alive == 1, "when a layer attends, no earlier layer's whole K/V is left"


@pytest.mark.parametrize("method", [m for m in METHODS if m != "full"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_chunks_change_nothing(family: str, method: str, tiny: Callable[[str], DecoderModel]) -> None:
    selection = Selection.of({"method": method, "kv_retention": 0.3, "struct_retention": 0.5, "window_tokens": 16})
    whole, *chunked = (
        [
            output
            for output in PrefillEngine(tiny(family), chunk_tokens=chunk_tokens).run(PROMPT, selection)
            if output is not None
        ]
        for chunk_tokens in (300, 150, 41)
    )
    for outputs in chunked:
        assert len(outputs) == len(whole)
        for output, expected in zip(outputs, whole, strict=True):
            for name in ("keys", "values", "positions", "hidden_state"):
                torch.testing.assert_close(
                    getattr(output, name, None), getattr(expected, name, None), rtol=1e-4, atol=1e-4
                )


def test_a_step_runs_at_most_a_chunk(tiny: Callable[[str], DecoderModel]) -> None:
    outputs = list(PrefillEngine(tiny("llama"), chunk_tokens=100).run(PROMPT, Selection(method="full")))
    assert [isinstance(output, KeptLayer) for output in outputs] == [False, False, True] * 6 + [False]


def test_what_is_kept_does_not_hold_on_to_the_whole_layer() -> None:
    model = DecoderModel(tiny_model("llama"), "tiny")
    first, *_ = PrefillEngine(model).run(PROMPT, Selection(kv_retention=0.2))
    assert first.keys.untyped_storage().nbytes() == first.keys.numel() * 4
    assert first.keys.shape[0] == 60


@pytest.mark.parametrize(
    ("prompt", "error"),
    [([], InvalidRequestError), ([5, 256], InvalidRequestError), ([5] * 1025, ContextLengthError)],
)
def test_a_prompt_that_cannot_be_run_is_refused(
    prompt: list[int], error: type[Exception], tiny: Callable[[str], DecoderModel]
) -> None:
    with pytest.raises(error):
        PrefillEngine(tiny("llama")).check(prompt)
