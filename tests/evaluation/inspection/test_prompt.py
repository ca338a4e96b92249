"""A prompt's text and its tokens' pieces."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from evaluation.inspection.prompt import read_text, tokenise
from evaluation.prompt import PromptFormat
from services.gateway.chat_template import ChatTemplate
from services.gateway.text_model import TextModel


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer with a token for each byte: every character beyond ASCII is split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def prompts(tokenizer: Tokenizer, template: str | None = None) -> PromptFormat:
    chat = None if template is None else ChatTemplate(template, {})
    return PromptFormat(TextModel(tokenizer, chat, 4096, 300, ()), chat is not None)


@given(st.text(min_size=1))
def test_the_pieces_are_the_text(text: str) -> None:
    prompt = tokenise(text, prompts(byte_tokenizer()))
    assert "".join(prompt.pieces) == text == prompt.text
    assert len(prompt.pieces) == len(prompt.token_ids) == len(text.encode())


def test_a_split_character_is_its_first_tokens() -> None:
    assert tokenise("a日b", prompts(byte_tokenizer())).pieces == ["a", "日", "", "", "b"]


def test_what_the_tokenizer_drops_or_adds_changes_no_text() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "two": 1, "words": 2, "?": 3}, unk_token="?"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])
    prompt = tokenise("  Two\t words  ", prompts(tokenizer))
    assert prompt.names == ["<s>", "two", "words", "<s>"]
    assert prompt.pieces == ["", "  Two", "\t words", "  "]


def test_a_chat_prompt_is_the_rendered_one_and_its_closing_tokens_are_counted() -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}</>"
    prompt = tokenise("hé", prompts(byte_tokenizer(), template))
    assert prompt.text == "<user>hé</>" == "".join(prompt.pieces)
    assert prompt.closing_tokens == 3


def test_a_text_comes_from_the_flag_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_bytes("lines\r\nné".encode())
    assert read_text("words", None) == "words"
    assert read_text(None, path) == "lines\r\nné"
    for prompt, file in (("-", None), (None, Path("-"))):
        stdin = io.TextIOWrapper(io.BytesIO("von außen".encode()))
        monkeypatch.setattr("sys.stdin", stdin)
        assert read_text(prompt, file) == "von außen"


@pytest.mark.parametrize(
    ("prompt", "content", "said"),
    [
        (None, None, "a prompt is needed"),
        ("words", b"words", "either"),
        (" \n", None, "empty"),
        (None, b"", "empty"),
        (None, b"\xff\xfe", "not UTF-8"),
        ("\udcff", None, "--prompt is not UTF-8"),
    ],
)
def test_no_text_is_refused(prompt: str | None, content: bytes | None, said: str, tmp_path: Path) -> None:
    file = None
    if content is not None:
        file = tmp_path / "text"
        file.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_text(prompt, file)
