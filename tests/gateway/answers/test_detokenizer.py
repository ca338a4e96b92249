"""The pieces of an answer, joined, are what the tokenizer decodes at once."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from services.gateway.answers.detokenizer import Detokenizer, special_token_ids
from services.gateway.text_model import TextModel

TEXTS = [
    "Hello, world!",
    "  leading spaces\n\n\tand tabs ",
    "emoji 👩‍👩‍👧‍👦 🇫🇷 👍🏽 end",
    "中文字符。日本語、한국어",
    "e\u0301 combining \u200d joiner",
    "a real \N{REPLACEMENT CHARACTER} inside",
    "ends with one \N{REPLACEMENT CHARACTER}",
    "",
]


def pieces(tokenizer: Tokenizer, ids: list[int], prompt: list[int] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, special_token_ids(tokenizer), prompt)
    return [*(detokenizer.push([token_id]) for token_id in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_decoded_text_wherever_it_is_cut(text_model: TextModel, text: str) -> None:
    tokenizer = text_model.tokenizer
    ids = tokenizer.encode(text).ids
    for end in range(len(ids) + 1):
        assert "".join(pieces(tokenizer, ids[:end])) == tokenizer.decode(ids[:end], skip_special_tokens=True)


def test_random_tokens_join_to_the_decoded_text(text_model: TextModel) -> None:
    # Any ids at all: invalid UTF-8, special tokens, cut characters.
    tokenizer, dice = text_model.tokenizer, random.Random(7)
    for _ in range(200):
        ids = [dice.randrange(text_model.vocab_size) for _ in range(40)] + [dice.randrange(17) for _ in range(3)]
        ids += [dice.randrange(17, 300) for _ in range(20)]  # the vocabulary's single bytes
        dice.shuffle(ids)
        prompt = [dice.randrange(text_model.vocab_size) for _ in range(dice.randrange(12))]
        assert "".join(pieces(tokenizer, ids, prompt)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_comes_whole(text_model: TextModel) -> None:
    ids = text_model.tokenizer.encode("👩‍👩‍👧‍👦").ids
    assert len(ids) > 4
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces(text_model.tokenizer, ids))


def test_several_tokens_at_once_give_the_same_text(text_model: TextModel) -> None:
    ids = text_model.tokenizer.encode("naïve 中文 👍🏽").ids
    detokenizer = Detokenizer(text_model.tokenizer, text_model.special_token_ids)
    assert detokenizer.push(ids[:5]) + detokenizer.push(ids[5:]) + detokenizer.flush() == "naïve 中文 👍🏽"


@pytest.fixture
def sentencepiece() -> Tokenizer:
    """A tokenizer that decodes as Llama-2's: a text's first space goes, bytes stand for unknown characters."""
    words = ["<s>", "▁Hello", "▁world", "▁", "s", "<0xE4>", "<0xB8>", "<0xAD>", "<0xFF>"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<s>"))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def test_a_continued_prompt_keeps_the_space_between(sentencepiece: Tokenizer) -> None:
    assert pieces(sentencepiece, [2, 4], prompt=[0, 1]) == [" world", "s", ""]


def test_a_new_text_begins_without_the_space(sentencepiece: Tokenizer) -> None:
    assert pieces(sentencepiece, [1, 2, 3, 2]) == ["Hello", " world", " ", " world", ""]


def test_byte_tokens_wait_for_their_character(sentencepiece: Tokenizer) -> None:
    assert pieces(sentencepiece, [1, 5, 6, 7, 4]) == ["Hello", "", "", "中", "s", ""]


def test_text_goes_on_after_bytes_that_spoil_their_neighbours(sentencepiece: Tokenizer) -> None:
    # The library decodes a run of byte tokens as one: a bad byte makes the good ones before it bad too.
    text = "".join(pieces(sentencepiece, [5, 6, 7, 8, 2, 4]))
    assert text.startswith("中")
    assert text.endswith(" worlds")


def test_a_prompt_that_ends_within_a_character_is_left_alone(sentencepiece: Tokenizer) -> None:
    assert "".join(pieces(sentencepiece, [7, 2], prompt=[1, 5, 6])).endswith(" world")


def test_special_tokens_are_not_text(sentencepiece: Tokenizer) -> None:
    assert "".join(pieces(sentencepiece, [1, 0, 2, 0])) == "Hello world"


def test_special_tokens_are_text_where_they_are_asked_for(sentencepiece: Tokenizer) -> None:
    detokenizer = Detokenizer(sentencepiece, frozenset())
    assert detokenizer.push([1, 0, 2]) + detokenizer.flush() == "Hello<s> world"
