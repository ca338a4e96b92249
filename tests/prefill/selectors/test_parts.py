"""Each part of the methods against its formula, on random input."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from services.prefill.blocks import block_ids, sentence_ends
from services.prefill.selectors.saliency import attention_received, peak_saliency, window_saliency
from services.prefill.selectors.top import blocked, keep_top, pooled
from services.prefill.structkv.centrality import Centrality
from services.prefill.structkv.pivot import WEIGHTS, LayerMetrics, PivotDetector, layer_metrics, transition_scores
from tests.prefill.selectors import naive


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (9, 3), (8, 1)])
@pytest.mark.parametrize("window", [1, 8, 40])
def test_window_saliency(heads: int, groups: int, window: int) -> None:
    torch.manual_seed(heads * window)
    query, key = torch.randn(heads, 40, 16), torch.randn(groups, 40, 16)
    expected = naive.saliency(query, key, 0.3, window)
    torch.testing.assert_close(window_saliency(query[:, -window:], key, 0.3), expected)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (9, 3), (8, 1)])
@pytest.mark.parametrize("window", [1, 8, 40])
def test_peak_saliency(heads: int, groups: int, window: int) -> None:
    torch.manual_seed(heads * window)
    query, key = torch.randn(heads, 40, 16), torch.randn(groups, 40, 16)
    expected = naive.peaks(query, key, 0.3, window)
    torch.testing.assert_close(peak_saliency(query[:, -window:], key, 0.3), expected)


@pytest.mark.parametrize("tokens", [5, 128, 300])
def test_attention_received(tokens: int) -> None:
    torch.manual_seed(tokens)
    query, key = torch.randn(6, tokens, 16), torch.randn(2, tokens, 16)
    expected = naive.attention(query, key, 0.3).sum(dim=1).view(2, 3, tokens).sum(dim=1)
    torch.testing.assert_close(attention_received(query, key, 0.3), expected, rtol=1e-4, atol=1e-4)


def test_a_row_of_saliency_sums_to_the_heads_of_its_group() -> None:
    saliency = window_saliency(torch.randn(6, 8, 16), torch.randn(2, 100, 16), 0.25)
    torch.testing.assert_close(saliency.sum(dim=1), torch.tensor([3.0, 3.0]))


@pytest.mark.parametrize("decay", [0.5, 0.9, 1.0])
def test_centrality_is_the_sum_it_abbreviates(decay: float) -> None:
    saliencies = [torch.rand(50) for _ in range(7)]
    centrality = Centrality(decay)
    for saliency in saliencies:
        centrality.add(saliency)
    torch.testing.assert_close(centrality.value, naive.centrality(saliencies, decay))


def test_centrality_leaves_what_it_is_given_alone() -> None:
    saliency = torch.ones(3)
    centrality = Centrality(0.5)
    centrality.add(saliency)
    centrality.add(saliency)
    assert saliency.tolist() == [1, 1, 1]


@pytest.mark.parametrize("retention", [0.05, 0.2, 1.0])
def test_layer_metrics(retention: float) -> None:
    saliency = torch.rand(123).pow(4)
    expected = naive.metrics(saliency.tolist(), retention)
    assert layer_metrics(saliency, retention) == pytest.approx(expected, rel=1e-4)


def test_layer_metrics_of_a_single_peak_are_finite() -> None:
    saliency = torch.zeros(100)
    saliency[3] = 1
    assert layer_metrics(saliency, 0.1) == pytest.approx((0, 1, 99))


def test_transition_scores() -> None:
    torch.manual_seed(3)
    layers = [LayerMetrics(*row) for row in torch.rand(9, 3).tolist()]
    assert transition_scores(layers) == pytest.approx(naive.transition(layers, WEIGHTS), rel=1e-6)


def settle_layer(
    variances: list[float],
    *,
    patience: int = 99,
    layers: list[int] | None = None,
    known: int | None = None,
) -> int | None:
    """Return the layer after which the sequence shrinks, for layers whose variance alone differs."""
    observed = layers or list(range(len(variances)))
    detector = PivotDetector(observed, len(variances), known=known, patience=patience)
    for layer in observed:
        metrics = LayerMetrics(1.0, 0.5, variances[layer]) if detector.watches(layer) else None
        if detector.settled(layer, metrics):
            return layer
    return None


def test_the_pivot_is_believed_after_patience() -> None:
    variances = [0.1 * layer**2 for layer in range(9)] + [50.0] * 11  # ever steeper, then a jump at 9, then flat
    assert settle_layer(variances, patience=2) == 11


def test_an_early_spike_outside_the_band_does_not_win() -> None:
    variances = [0.0, 900.0, 0.0, 1.0, 1.0, 1.0, 1.5, 9.0] + [9.0] * 12  # the band starts at layer 6
    assert settle_layer(variances, patience=1) == 8


def test_the_end_of_the_band_forces_a_decision() -> None:
    assert settle_layer([float(i**2) for i in range(20)]) == 13


def test_a_known_pivot_needs_no_metrics() -> None:
    assert settle_layer([0.0] * 20, known=12) == 11


def test_with_few_full_attention_layers_the_last_of_the_band_is_taken() -> None:
    assert settle_layer([0.0] * 18, layers=[5, 11, 17]) == 11


@pytest.mark.parametrize("budget", [12, 13, 30, 99, 100])
def test_keep_top(budget: int) -> None:
    scores = torch.rand(100)
    kept = keep_top(scores, budget, sinks=4, window=8)
    assert kept.tolist() == naive.top(scores.tolist(), budget, 4, 8)


def test_keep_top_chooses_for_each_head() -> None:
    scores = torch.rand(3, 60)
    kept = keep_top(scores, 20, sinks=2, window=5)
    assert kept.tolist() == [naive.top(row, 20, 2, 5) for row in scores.tolist()]


@pytest.mark.parametrize("tokens", [1, 5, 11, 12])
def test_a_prompt_shorter_than_what_is_always_kept_stays_whole(tokens: int) -> None:
    assert keep_top(torch.rand(tokens), 3, sinks=4, window=8).tolist() == list(range(tokens))


@pytest.mark.parametrize("width", [1, 2, 7, 15])
def test_pooling(width: int) -> None:
    scores = torch.rand(2, 40)
    expected = [naive.max_pooled(row, width) for row in scores.tolist()]
    torch.testing.assert_close(pooled(scores, width), torch.tensor(expected))


@pytest.mark.parametrize("longest", [1, 3, 8, 100])
def test_blocks_end_with_a_sentence_or_at_their_longest(longest: int) -> None:
    torch.manual_seed(longest)
    ends = torch.rand(200) < 0.1
    assert block_ids(ends, longest).tolist() == naive.block_of_each(ends.tolist(), longest)


def test_a_block_counts_as_its_best_token() -> None:
    scores, blocks = torch.rand(3, 50), block_ids(torch.rand(50) < 0.2, 6)
    expected = [naive.blocked(row, blocks.tolist()) for row in scores.tolist()]
    torch.testing.assert_close(blocked(scores, blocks, len(blocks)), torch.tensor(expected))


class TestSentenceEnds:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        words = ["end.", "what?", "no", "\n", "Mr", "ok!", " ", "."]
        tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token=" "))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    def test_marks_and_line_breaks_end_a_sentence(self, folder: Path) -> None:
        assert sentence_ends(folder, 8).tolist() == [True, True, False, True, False, True, False, True]

    def test_a_vocabulary_may_be_larger_than_the_tokenizers(self, folder: Path) -> None:
        assert sentence_ends(folder, 12).tolist()[8:] == [False] * 4

    def test_without_a_tokenizer_blocks_have_a_fixed_length(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert not sentence_ends(tmp_path, 12).any()
        assert "tokenizer.json" in caplog.text
