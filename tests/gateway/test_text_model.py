"""A model's text side is read from its folder, in all the forms that folders come in."""

import json
import shutil
from pathlib import Path

import pytest

from common.errors import InvalidRequestError, ModelLoadError
from common.model.source import resolve
from common.settings import DEFAULT_MODEL
from services.gateway.text_model import TextModel, load_text_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = resolve(DEFAULT_MODEL, weights=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        shutil.copy(source / name, tmp_path)
    return tmp_path


def edit(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_the_default_model(text_model: TextModel) -> None:
    assert text_model.context_tokens == 8192
    assert text_model.vocab_size == 49152
    assert text_model.eos_token_ids == (2,)


def test_a_chat_prompt_is_rendered_and_its_closing_tokens_counted(text_model: TextModel) -> None:
    prompt = text_model.chat_prompt([{"role": "user", "content": "Hi there"}])
    text = text_model.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
    assert text.endswith("<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n")
    closing = prompt.token_ids[-prompt.closing_tokens :]
    assert text_model.tokenizer.decode(closing, skip_special_tokens=False) == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("content", ["a", "assistant", "", "x\n", " 中"])
def test_closing_tokens_do_not_depend_on_the_content(text_model: TextModel, content: str) -> None:
    assert text_model.chat_prompt([{"role": "user", "content": content}]).closing_tokens == 6


def test_a_template_without_the_content_has_no_closing_tokens(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("always the same")
    prompt = load_text_model(str(folder)).chat_prompt([{"role": "user", "content": "Hi"}])
    assert prompt.token_ids
    assert prompt.closing_tokens == 0


@pytest.mark.parametrize(
    "template", ["{{ eos_token }}{{ bos_token }}", [{"name": "default", "template": "{{ eos_token }}{{ bos_token }}"}]]
)
def test_a_template_in_the_tokenizers_config(folder: Path, template: object) -> None:
    edit(folder / "tokenizer_config.json", chat_template=template, eos_token={"content": "<|im_end|>"})
    prompt = load_text_model(str(folder)).chat_prompt([{"role": "user", "content": "Hi"}])
    assert prompt.token_ids == [2, 1]


def test_a_base_model_refuses_conversations(folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no chat template"):
        load_text_model(str(folder)).chat_prompt([{"role": "user", "content": "Hi"}])


def test_numbers_may_stand_in_the_text_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    inner = {"max_position_embeddings": 77, "vocab_size": 50000, "eos_token_id": [5, 6]}
    (folder / "config.json").write_text(json.dumps({"text_config": inner}))
    model = load_text_model(str(folder))
    assert (model.context_tokens, model.vocab_size, model.eos_token_ids) == (77, 50000, (5, 6))


def test_a_tokenizers_own_truncation_is_off(folder: Path) -> None:
    edit(
        folder / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
    )
    assert len(load_text_model(str(folder)).completion_prompt("one two three four five").token_ids) == 5


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=name):
        load_text_model(str(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(ModelLoadError, match=name):
        load_text_model(str(folder))
