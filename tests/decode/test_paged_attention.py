"""The paged kernels against the formula, and decoding with them against decoding with SDPA.

On the CPU the kernels are interpreted, and compiled for GPUs without being run. Tests marked `gpu` run them.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from common.errors import ModelLoadError
from common.model import direct_layer
from common.model.decoder import DecoderModel
from services.decode.answer import Answer
from services.decode.backend import Backend
from services.decode.engine import DecodeEngine, Sequence
from services.decode.pool import BLOCK_TOKENS, SequenceKV
from services.decode.sampling import Sampling
from tests.conftest import poisoned_pool
from tests.families import tiny_model

if find_spec("triton") is None:
    pytest.skip("Triton is not there for this platform", allow_module_level=True)

from common.model.fused import FusedElementwise
from services.decode.paged_attention import num_splits, paged_attention, store_newest
from services.decode.step_plan import StepPlan

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU")
gpu = pytest.mark.gpu
DEVICES = [pytest.param("cpu", marks=interpreted), pytest.param("cuda:0", marks=gpu)]
NAN = float("nan")


class Case(NamedTuple):
    """A pool of NaN in which only live slots hold numbers, and the tables of three sequences."""

    keys: Tensor
    values: Tensor
    tables: Tensor
    first: Tensor
    length: Tensor
    query: Tensor

    def slots(self, row: int) -> Tensor:
        places = self.tables[row].long()[:, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS, device=self.keys.device)
        return places.flatten()[self.first[row] : self.length[row]]

    def expected(self, scaling: float) -> Tensor:
        """The formula in float32, [B, H, d]."""
        rows = []
        for row, query in enumerate(self.query.float()):
            group = query.shape[0] // self.keys.shape[1]
            keys, values = (
                pool[self.slots(row)].float().repeat_interleave(group, dim=1) for pool in (self.keys, self.values)
            )
            weights = torch.einsum("hd,thd->ht", query, keys).mul(scaling).softmax(dim=-1)
            rows.append(torch.einsum("ht,thd->hd", weights, values))
        return torch.stack(rows)

    def attend(self, scaling: float, splits: int) -> Tensor:
        return paged_attention(
            self.query, self.keys, self.values, self.tables, self.first, self.length, scaling, splits
        )


def make_case(
    device: str, group: int, head_dim: int, lengths: list[int], firsts: list[int], dtype: torch.dtype = torch.float32
) -> Case:
    generator = torch.Generator().manual_seed(group * head_dim)
    rows, blocks, kv_heads = len(lengths), -(-max(lengths) // BLOCK_TOKENS), 2
    shape = ((rows * blocks + 3) * BLOCK_TOKENS, kv_heads, head_dim)
    scattered = torch.randperm(rows * blocks + 3, generator=generator)[: rows * blocks]
    case = Case(
        torch.full(shape, NAN, dtype=dtype, device=device),
        torch.full(shape, NAN, dtype=dtype, device=device),
        scattered.reshape(rows, blocks).int().to(device),
        torch.tensor(firsts, dtype=torch.int32, device=device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        torch.randn(rows, kv_heads * group, head_dim, generator=generator).to(device, dtype),
    )
    for row, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        for pool in (case.keys, case.values):
            numbers = torch.randn(length - first, kv_heads, head_dim, generator=generator)
            pool[case.slots(row)] = numbers.to(device, dtype)
        # No block of a padded table is ever looked up: one outside the pool would show.
        case.tables[row, -(-length // BLOCK_TOKENS) :] = 2**30
    return case


class TestKernels:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("head_dim", [16, 64, 80])
    @pytest.mark.parametrize("group", [1, 3, 8])
    @pytest.mark.parametrize("splits", [1, 4])
    def test_attention_is_the_formulas(self, device: str, head_dim: int, group: int, splits: int) -> None:
        case = make_case(device, group, head_dim, [150, 1, 90], [0, 0, 37])
        torch.testing.assert_close(case.attend(0.3, splits), case.expected(0.3), rtol=1e-4, atol=1e-5)

    # The interpreter cannot multiply bfloat16 matrices.
    @pytest.mark.parametrize(
        ("device", "dtype"),
        [
            pytest.param("cpu", torch.float16, marks=interpreted),
            pytest.param("cuda:0", torch.float16, marks=gpu),
            pytest.param("cuda:0", torch.bfloat16, marks=gpu),
        ],
    )
    def test_half_precision_is_summed_in_float32(self, device: str, dtype: torch.dtype) -> None:
        case = make_case(device, 4, 64, [100, 33], [0, 16], dtype)
        attended = case.attend(0.1, 2)
        assert attended.dtype == dtype
        error = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(attended.float(), case.expected(0.1), rtol=error, atol=error)

    @pytest.mark.parametrize("device", DEVICES)
    def test_large_scores_do_not_overflow(self, device: str) -> None:
        case = make_case(device, 2, 16, [70, 40], [0, 0])
        torch.testing.assert_close(case.attend(100.0, 2), case.expected(100.0), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("splits", [1, 4])
    def test_padding_comes_out_as_zeros(self, device: str, splits: int) -> None:
        case = make_case(device, 2, 16, [40, 0], [0, 0])
        attended = case.attend(0.3, splits)
        torch.testing.assert_close(attended[0], case.expected(0.3)[0])
        assert attended[1].count_nonzero() == 0

    @pytest.mark.parametrize("device", DEVICES)
    def test_a_query_need_not_be_contiguous(self, device: str) -> None:
        case = make_case(device, 2, 16, [40, 20], [0, 0])
        spread = torch.full((2, 7, 16), NAN, device=device)
        spread[:, 1:5] = case.query
        torch.testing.assert_close(case._replace(query=spread[:, 1:5]).attend(0.3, 1), case.expected(0.3))

    @pytest.mark.parametrize("device", DEVICES)
    def test_the_newest_token_is_stored_in_the_last_slot_and_nowhere_else(self, device: str) -> None:
        case = make_case(device, 1, 80, [33, 0, 16], [0, 0, 3])
        keys, values = case.keys.clone(), case.values.clone()
        fused = torch.randn(3, 4, 80, device=device)  # as of one projection: rows are apart
        key, value = fused[:, :2], fused[:, 2:]
        store_newest(case.keys, case.values, key, value, case.tables, case.length)
        for row in (0, 2):
            newest = case.slots(row)[-1]
            keys[newest], values[newest] = key[row], value[row]
        torch.testing.assert_close(case.keys, keys, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(case.values, values, rtol=0, atol=0, equal_nan=True)

    def test_a_sequence_alone_is_cut_into_as_many_shares_as_its_length_allows(self) -> None:
        assert [num_splits(blocks, 1, 8, 132) for blocks in (16, 32, 256, 1024, 8192)] == [1, 2, 16, 64, 64]

    def test_a_batch_is_cut_into_no_more_than_keep_the_gpu_busy(self) -> None:
        assert [num_splits(1024, rows, 8, 132) for rows in (2, 4, 8)] == [32, 16, 8]
        assert [num_splits(64, rows, 8, 132) for rows in (8, 16, 64)] == [4, 4, 1]

    def test_long_tables_are_cut_in_a_large_batch_too(self) -> None:
        assert [num_splits(blocks, 64, 8, 132) for blocks in (16, 256, 2048, 8192)] == [1, 2, 16, 64]

    @interpreted
    def test_the_kernels_compile_for_gpus(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        script = Path(__file__).parent / "compile_kernels.py"
        result = subprocess.run(
            [sys.executable, "-m", "tests.decode.compile_kernels"],
            cwd=script.parents[2],
            env=environment | {"TRITON_INTERPRET": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr


class TestPlan:
    @pytest.fixture
    def model(self, tiny: Callable[[str], DecoderModel]) -> DecoderModel:
        return tiny("gemma3_text")  # windows of 24 in four of six layers

    def test_it_follows_sequences_that_grow_slide_swap_and_change_places(self, model: DecoderModel) -> None:
        pool = poisoned_pool(model, 200)
        plan = StepPlan(4, 16, 6, torch.device("cpu"))
        first, second, third = (pool.allocate([tokens] * 6) for tokens in (16, 20, 3))
        for kv, tokens in ((first, 16), (second, 20), (third, 3)):
            zeros = torch.zeros(tokens, 2, 16)
            for table in kv.tables:
                pool.write(table, zeros, zeros, range(tokens) if table.window else ())
        position = {id(first): 16, id(second): 20, id(third): 3}

        def step(*batch: SequenceKV) -> None:
            for kv in batch:
                pool.append_slots(kv, position[id(kv)])
                position[id(kv)] += 1
            plan.fill([7] * len(batch), [position[id(kv)] - 1 for kv in batch], list(batch))
            self.check(plan, list(batch), [position[id(kv)] - 1 for kv in batch])

        for _ in range(40):
            step(first, second)
        step(third, second, first)
        swapped = pool.swap_out(second)
        step(third, first)
        squatter = pool.allocate([20] * 6)
        pool.swap_in(second, swapped)
        for _ in range(20):
            step(second, first)
        step(first)
        for kv in (first, second, third, squatter):
            pool.free(kv)
        pool.audit(())

    def check(self, plan: StepPlan, batch: list[SequenceKV], positions: list[int]) -> None:
        padding = 4 - len(batch)
        assert plan.token_ids[:, 0].tolist() == [7] * len(batch) + [0] * padding
        assert plan.positions[:, 0].tolist() == positions + [0] * padding
        for layer in range(6):
            tables = [kv.tables[layer] for kv in batch]
            assert plan.first(layer).tolist() == [table.first for table in tables] + [0] * padding
            assert plan.length(layer).tolist() == [table.length for table in tables] + [0] * padding
            for row, table in enumerate(tables):
                assert plan.tables(layer)[row, : len(table.blocks)].tolist() == table.blocks


def decode(model: DecoderModel, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[int]], Tensor]:
    """Three sequences that join and leave, from prompts of their own, and one that shares the first one's.

    Returns their tokens, and all logits, [steps, V].
    """
    pool = poisoned_pool(model, 500)
    engine = DecodeEngine(model, pool, backend=backend)
    num_layers = model.spec.num_layers
    logits: list[Tensor] = []
    compute = DecoderModel.logits.__get__(model)
    monkeypatch.setattr(model, "logits", lambda hidden: logits.append(compute(hidden)) or logits[-1])
    sequences = []
    for seed, length in enumerate((40, 22, 5)):
        kv = pool.allocate([length] * num_layers)
        hidden = engine.run_tokens(kv, [3 + (i * 31 + length) % 250 for i in range(length)], 0)
        sampling = Sampling(1.0, 0, 1.0, 0.0, seed, 60, frozenset())
        sequences.append(Sequence(length, kv, Answer(sampling), hidden[-1]))
    shared = pool.allocate([BLOCK_TOKENS] * num_layers)
    pool.share(sequences[0].kv, [shared])
    sequences.append(Sequence(40, shared, Answer(sequences[0].answer.sampling, number=3), sequences[0].hidden_state))
    answers: list[list[int]] = [[] for _ in sequences]
    for members in ([0], [0, 1], [0, 1, 3], [2, 0, 1, 3], [2, 1, 3], [2, 1], [2]):
        batch = [sequences[member] for member in members]
        for sequence in batch:
            engine.append_slots(sequence)
        for member, token in zip(members, engine.step(batch), strict=True):
            answers[member].append(token)
    for sequence in sequences:
        pool.free(sequence.kv)
    pool.audit(())
    return answers, torch.cat(logits)


def model_on(device: str, family: str) -> DecoderModel:
    return DecoderModel(tiny_model(family, num_hidden_layers=3, **LAYERS.get(family, {})).to(device), f"tiny-{family}")


LAYERS = {"gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}}


class TestEngine:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("family", ["llama", "gemma3_text"])
    def test_answers_are_those_of_sdpa(self, device: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_on(device, family)
        expected, expected_logits = decode(model, "sdpa", monkeypatch)
        answers, logits = decode(model, "paged", monkeypatch)
        assert answers == expected
        torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
    def test_answers_of_fused_layers_are_those_of_transformers_layers(
        self, device: str, family: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(direct_layer, "elementwise_for", lambda device: FusedElementwise())
        model = model_on(device, family)
        assert model._direct is not None
        answers, logits = decode(model, "paged", monkeypatch)
        monkeypatch.setattr(model, "_direct", None)
        expected, expected_logits = decode(model, "sdpa", monkeypatch)
        assert answers == expected
        torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("device", DEVICES)
    def test_rotary_embeddings_that_depend_on_the_length(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
        tiny = tiny_model("llama", num_hidden_layers=2, max_position_embeddings=24, rope_parameters=rope)
        model = DecoderModel(tiny.to(device), "dynamic")
        assert model.rotary_depends_on_length
        expected, expected_logits = decode(model, "sdpa", monkeypatch)
        answers, logits = decode(model, "paged", monkeypatch)
        assert answers == expected
        torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-3)

    @gpu
    @pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3", "phi3"])
    def test_a_replayed_graph_computes_what_its_layers_do(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_on("cuda:0", family)
        replayed, replayed_logits = decode(model, "paged", monkeypatch)
        monkeypatch.setattr(DecoderModel, "has_experts", True)  # those run without a graph
        eager, eager_logits = decode(model, "paged", monkeypatch)
        assert replayed == eager
        torch.testing.assert_close(replayed_logits, eager_logits)

    @gpu
    def test_experts_run_without_a_graph(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_on("cuda:0", "qwen3_moe")
        assert decode(model, "paged", monkeypatch)[0] == decode(model, "sdpa", monkeypatch)[0]


class TestBackend:
    def test_a_cpu_takes_sdpa(self, tiny: Callable[[str], DecoderModel]) -> None:
        model = tiny("llama")
        assert DecodeEngine(model, poisoned_pool(model, 8))._paged is None

    @interpreted
    def test_paged_on_a_cpu_is_refused(
        self, tiny: Callable[[str], DecoderModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        model = tiny("llama")
        with pytest.raises(ModelLoadError, match="do not run on cpu"):
            DecodeEngine(model, poisoned_pool(model, 8), backend="paged")

    @gpu
    def test_a_gpu_takes_the_paged_kernels(self) -> None:
        model = model_on("cuda:0", "llama")
        assert DecodeEngine(model, poisoned_pool(model, 8))._paged is not None
