import pytest

from benchmarks.prefill import Prompts, measure_random_llama
from benchmarks.targets import bound_share, ttft_ratio

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 256,
}


def test_random_llama_on_a_cpu() -> None:
    record = measure_random_llama(Prompts(lengths=[200, 300], repeats=2, pivot_layer=3), **TINY)
    assert record.part == "prefill-random-llama"
    for length in (200, 300):
        for method in ("full", "structkv", "transformers"):
            row = record.find("ttft", method=method, length=length)
            assert row is not None
            assert len(row.samples) == 2
            assert min(row.samples) > 0
        share = record.find("selecting_share", length=length, pivot_layer=3)
        assert share is not None
        assert all(0 < sample < 1 for sample in share.samples)
    # 3 of 6 layers see 300 tokens, the others 60
    bound = record.median("flop_bound", length=300)
    assert bound == pytest.approx(6 / (3 + 3 * _layer(60) / _layer(300)))
    assert ttft_ratio({"prefill": record}, "structkv", "full", 300) is not None
    assert bound_share({"prefill": record}, 300) is not None


def _layer(tokens: int) -> float:
    linear = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    return 2 * tokens * linear + 2 * tokens**2 * 64


def test_lengths_beyond_the_model_are_cut_to_it() -> None:
    record = measure_random_llama(Prompts(lengths=[150, 400, 500], repeats=1), **TINY, max_position_embeddings=160)
    lengths = {row.parameters["length"] for row in record.rows}
    assert lengths == {150, 160}
