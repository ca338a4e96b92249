"""The in-process backend: the engines' own answers, whatever runs beside them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from evaluation.backend import Answer
from evaluation.local import LocalBackend
from evaluation.prompt import PromptFormat
from evaluation.sample import Sample
from evaluation.variants import parse
from services.gateway.text_model import TextModel
from tests.evaluation.conftest import WORDS
from tests.families import tiny_model

METHODS = ["full", "structkv", "structkv:variant=paper", "snapkv", "gemfilter", "h2o"]
SAMPLES = [
    Sample(
        "vt", 400, index, " ".join(str((i * i + 7 * index) % 199) for i in range(300 + 9 * index)), "", ("none",), 12
    )
    for index in range(3)
]
ANSWERS_AT_ONCE = 7


def backend(folder: Path, batch: int) -> LocalBackend:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = PromptFormat(TextModel(tokenizer, None, 1024, 256, (2,)), chat=False)
    return LocalBackend(model=str(folder), device="cpu", dtype="float32", threads=None, batch=batch, prompts=prompts)


def answers(folder: Path, batch: int, methods: list[str]) -> dict[tuple[int, str], Answer]:
    variants = parse(methods, [0.2], [])
    jobs = [(sample, variants) for sample in SAMPLES]
    return {(sample.index, v.label): answer for sample, v, answer in backend(folder, batch).run(jobs)}


def test_an_answer_is_the_same_alone_and_in_company(folder: Path) -> None:
    together = answers(folder, ANSWERS_AT_ONCE, METHODS)
    assert len(together) == len(SAMPLES) * len(METHODS)
    for method in METHODS:
        for place, alone in answers(folder, 1, [method]).items():
            assert together[place].text == alone.text
            assert together[place].kept_tokens == alone.kept_tokens


def test_an_answer_says_what_it_cost(folder: Path) -> None:
    labels = ["full", "snapkv", "snapkv:codec=int4", "snapkv:codec=raw", "structkv:pivot_layer=4"]
    found = answers(folder, ANSWERS_AT_ONCE, labels)
    full, snapkv, int4, raw, structkv = (found[0, label] for label in labels)
    assert (full.prompt_tokens, full.kept_tokens, snapkv.kept_tokens) == (300, 300, 60)
    per_token = 6 * 2 * 2 * 16  # layers, keys and values, KV heads, head size
    assert full.skeleton_bytes == 300 * per_token * 4, "whole prompts cross exactly"
    assert raw.skeleton_bytes == 60 * per_token * 2, "in bfloat16"
    # Of 60 tokens, 5 stay in bfloat16. Scale and zero: one for 55 of a channel's keys, one for a token's 16 values.
    assert snapkv.skeleton_bytes == 5 * per_token * 2 + 55 * per_token + 6 * 2 * (16 + 55) * 4
    assert int4.skeleton_bytes == 5 * per_token * 2 + 55 * per_token // 2 + 6 * 2 * (16 + 55) * 4
    assert (full.pivot_layer, structkv.pivot_layer) == (None, 4)
    assert full.prefill_seconds > 0
    assert full.decode_seconds > 0


def test_an_answer_loses_what_the_wire_loses(folder: Path) -> None:
    found = answers(folder, ANSWERS_AT_ONCE, [f"structkv:codec={codec}" for codec in ("raw", "int8", "int4")])
    texts = [{answer.text for (index, label), answer in found.items() if label.endswith(c)} for c in ("raw", "int4")]
    assert texts[0] != texts[1], "random weights notice four bits"


def test_full_answers_as_transformers_does(folder: Path) -> None:
    model = tiny_model("llama")
    for sample in SAMPLES:
        prompt = torch.tensor([[int(word) for word in sample.prompt.split()]])
        generated = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, eos_token_id=2
        )
        words = [WORDS[token] for token in generated[0, prompt.shape[1] :].tolist() if token != 2]
        assert answers(folder, ANSWERS_AT_ONCE, ["full"])[sample.index, "full"].text.split() == words
