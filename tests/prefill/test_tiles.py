"""Attention in tiles against the formula, with a kernel of the CPU's in cuDNN's place; with cuDNN on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from services.prefill import engine as engine_module
from services.prefill.cudnn import tiles_for
from services.prefill.engine import PrefillEngine
from services.prefill.outputs import KeptLayer, Output, PromptEnd
from services.prefill.tiles import Tiles, merge
from tests.families import tiny_model

gpu = pytest.mark.gpu
SCALING = 0.3


def flash_for_cpu(query: Tensor, key: Tensor, value: Tensor, scaling: float, causal: bool) -> tuple[Tensor, Tensor]:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, logsumexp = flash(query, key, value, 0.0, causal, scale=scaling)
    return output, logsumexp[..., None]


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """The formula, causal from the last key, in the dtype given: [1, H, T, d]."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    hidden = torch.ones(scores.shape[2:], dtype=torch.bool, device=query.device).triu_(
        1 + key.shape[2] - query.shape[2]
    )
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ value


def random_heads(heads: int, tokens: int, head_dim: int, **options: object) -> Tensor:
    """[1, heads, tokens, d] as a model's projections lie: by token."""
    return torch.randn(1, tokens, heads, head_dim, **options).transpose(1, 2)  # type: ignore[call-overload]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 8), (3, 3, 16), (6, 1, 24)])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 16, 33])
def test_tiles_are_the_formula(chunk_tokens: int, heads: int, kv_heads: int, head_dim: int) -> None:
    torch.manual_seed(chunk_tokens)
    tiles = Tiles(flash_for_cpu, chunk_tokens)
    for chunks in range(1, 12):  # two tiles of four chunks and three of one, and all that is less
        tokens = chunks * chunk_tokens
        query = 3 * random_heads(heads, chunk_tokens, head_dim)  # sharp: a few keys matter, wherever they are
        key, value = (random_heads(kv_heads, tokens + 7, head_dim)[:, :, :tokens] for _ in range(2))
        assert tiles.fit(chunk_tokens, tokens)
        expected = attend(*(x.double() for x in (query, key, value)), SCALING).float()
        torch.testing.assert_close(tiles(query, key, value, SCALING), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [0, 1, 4, 6])
@pytest.mark.parametrize("filled", [12, 13, 15])
def test_a_chunk_that_is_nearly_full_is_filled_up(filled: int, chunks: int) -> None:
    torch.manual_seed(filled)
    tiles, tokens = Tiles(flash_for_cpu, 16), 16 * chunks + filled
    query = 3 * random_heads(4, filled, 8)
    key, value = (random_heads(2, tokens, 8) for _ in range(2))
    assert tiles.fit(filled, tokens)
    expected = attend(*(x.double() for x in (query, key, value)), SCALING).float()
    torch.testing.assert_close(tiles(query, key, value, SCALING), expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_of_any_length_has_the_same_shapes() -> None:
    shapes, strides = set(), set()

    def kernel(query: Tensor, key: Tensor, value: Tensor, scaling: float, causal: bool) -> tuple[Tensor, Tensor]:
        shapes.add((query.shape[2], key.shape[2], causal))
        strides.add(query.stride())
        return flash_for_cpu(query, key, value, scaling, causal)

    for tokens in (*range(3, 80, 4), *range(4, 80, 4)):
        query, key = random_heads(2, 4 - tokens % 4 // 3, 8), random_heads(1, tokens, 8)
        Tiles(kernel, 4)(query, key, key, SCALING)
    assert shapes == {(4, 4, True), (4, 4, False), (4, 16, False)}
    assert len(strides) == 1


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 9), (8, 9), (8, 23), (7, 16), (9, 9), (16, 16)])
def test_other_chunks_do_not_fit(queries: int, keys: int) -> None:
    assert not Tiles(flash_for_cpu, 8).fit(queries, keys)


def test_parts_far_apart_are_merged_without_overflow() -> None:
    """One part's scores are above the other's by more than float32's exponent reaches."""
    output, logsumexp = torch.zeros(1, 1, 2, 3), torch.tensor([300.0, -300.0])[None, None, :, None]
    merge(output, logsumexp, torch.ones(1, 1, 2, 3), -logsumexp)
    torch.testing.assert_close(output[0, 0, :, 0], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(logsumexp, torch.full_like(logsumexp, 300.0))


def test_a_cpu_has_no_tiles(tiny: Callable[[str], DecoderModel]) -> None:
    model = tiny("llama")
    assert tiles_for(model.spec, model.device, 1024) is None


def run(model: DecoderModel, num_tokens: int, chunk_tokens: int, selection: Selection) -> list[Output]:
    prompt = [3 + i % 200 for i in range(num_tokens)]
    outputs = PrefillEngine(model, chunk_tokens=chunk_tokens).run(prompt, selection)
    return [output for output in outputs if output is not None]


@pytest.mark.parametrize("method", ["full", "structkv", "pyramid_infer"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("num_tokens", [31, 32, 300, 320])
def test_an_engine_with_tiles_gives_what_one_without_gives(
    num_tokens: int, family: str, method: str, tiny: Callable[[str], DecoderModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = Selection.of({"method": method, "kv_retention": 0.3, "struct_retention": 0.5, "window_tokens": 16})
    expected = run(tiny(family), num_tokens, 32, selection)
    monkeypatch.setattr(engine_module, "tiles_for", lambda spec, device, chunk: Tiles(flash_for_cpu, chunk))
    for output, other in zip(run(tiny(family), num_tokens, 32, selection), expected, strict=True):
        for name in ("keys", "values", "places", "hidden_state"):
            torch.testing.assert_close(getattr(output, name, None), getattr(other, name, None), rtol=1e-4, atol=1e-4)


def distance(ours: Tensor, true: Tensor) -> float:
    """||ours - true|| / ||true||."""
    ours, true = ours.double().cpu(), true.double().cpu()
    return float((ours - true).norm() / true.norm())


def needs_cudnn(heads: int, kv_heads: int, head_dim: int, chunk_tokens: int) -> Tiles:
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("cuDNN is not the quickest here")
    config = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    model = DecoderModel(tiny_model("llama", **config).to("cuda:0", torch.bfloat16), "tiny")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    tiles = tiles_for(model.spec, model.device, chunk_tokens)
    assert tiles is not None
    assert not torch.backends.cuda.cudnn_sdp_enabled(), "it was only asked"
    return tiles


@gpu
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (8, 8, 64), (8, 1, 128)])
@pytest.mark.parametrize("queries", [1024, 800])
@pytest.mark.parametrize("chunks", [0, 2, 5])
def test_cudnn_tiles_against_float32(chunks: int, queries: int, heads: int, kv_heads: int, head_dim: int) -> None:
    torch.manual_seed(chunks)
    options = {"device": "cuda:0", "dtype": torch.bfloat16}
    tiles = needs_cudnn(heads, kv_heads, head_dim, 1024)
    query, tokens = 2 * random_heads(heads, queries, head_dim, **options), chunks * 1024 + queries
    # Cut out of a longer prompt's, by head and by token.
    by_head = torch.randn(1, kv_heads, tokens + 300, head_dim, **options)[:, :, :tokens]
    by_token = random_heads(kv_heads, tokens + 300, head_dim, **options)[:, :, :tokens]
    scaling = head_dim**-0.5
    expected = attend(query.float(), by_head.float(), by_token.float(), scaling)
    output = tiles(query, by_head, by_token, scaling)
    assert output.dtype == torch.bfloat16
    assert output.transpose(1, 2).flatten(2).is_contiguous(), "as the next projection takes it"
    assert distance(output, expected) < 1e-2


@gpu
@pytest.mark.parametrize("num_tokens", [3 * 1024, 3 * 1024 + 5, 6 * 1024 + 1000])
def test_an_engine_on_a_gpu_is_as_exact_with_tiles_as_without(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"num_hidden_layers": 2, "head_dim": 64, "max_position_embeddings": 8192}
    needs_cudnn(4, 2, 64, 1024)
    selection = Selection(method="full")
    own = tiny_model("llama", **size)
    true = run(DecoderModel(own.to("cuda:0"), "tiny"), num_tokens, 1024, selection)
    model = DecoderModel(own.to(torch.bfloat16), "tiny")
    tiled = run(model, num_tokens, 1024, selection)
    monkeypatch.setattr(engine_module, "tiles_for", lambda spec, device, chunk: None)
    plain = run(model, num_tokens, 1024, selection)
    for ours, others, trues in zip(tiled, plain, true, strict=True):
        assert distance(_numbers(ours), _numbers(trues)) < 1.5 * distance(_numbers(others), _numbers(trues)) + 1e-3


def _numbers(output: Output) -> Tensor:
    assert isinstance(output, KeptLayer | PromptEnd)
    return output.values if isinstance(output, KeptLayer) else output.hidden_state


@gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_no_layer_waits_for_the_device(family: str) -> None:
    """Once the prompt is there, what is kept is chosen without a word from the device."""
    model = DecoderModel(tiny_model(family).to("cuda:0", torch.bfloat16), "tiny")
    ends = torch.arange(model.spec.vocab_size) % 25 == 0
    engine = PrefillEngine(model, sentence_ends=ends, chunk_tokens=256)
    steps = engine.run([3 + i % 200 for i in range(700)], Selection(method="snapkv", kv_retention=0.3))
    outputs = [next(steps)]  # the prompt is sent
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs += list(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(outputs[-1], PromptEnd)
