"""Stop strings cut a text at the same place however it comes."""

import itertools
import random

import pytest

from services.gateway.answers.stop_strings import StopStrings


def run(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    finder, out = StopStrings(stops), ""
    for part in parts:
        text, stop = finder.push(part)
        out += text
        if stop is not None:
            assert stop in stops
            return out, True
    return out + finder.flush(), False


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["END"], "one END two", ("one ", True)),
        (["END"], "ENENDx", ("EN", True)),
        (["END"], "no such thing EN", ("no such thing EN", False)),
        (["\n\n"], "a\nb\n\nc", ("a\nb", True)),
        (["aab"], "aaab", ("a", True)),
        (["abcd", "bc"], "xabcd", ("xa", True)),
        (["abc", "bc"], "xabc", ("x", True)),
        (["👍🏽"], "ok 👍🏽", ("ok ", True)),
        ([], "anything", ("anything", False)),
    ],
)
def test_the_text_is_cut_alike_at_any_granularity(stops: list[str], text: str, expected: tuple[str, bool]) -> None:
    dice = random.Random(3)
    assert run(stops, [text]) == expected
    assert run(stops, list(text)) == expected
    for _ in range(50):
        cuts = sorted(dice.randrange(len(text) + 1) for _ in range(3))
        bounds = [0, *cuts, len(text)]
        assert run(stops, [text[a:b] for a, b in itertools.pairwise(bounds)]) == expected


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    finder = StopStrings(["<end>", "STOP"])
    assert finder.push("text <e") == ("text ", None)
    assert finder.push("n") == ("", None)
    assert finder.push("ough") == ("<enough", None)


@pytest.mark.parametrize("stops", [["END"], ["ND", "END"]])
def test_a_stop_string_may_be_part_of_the_text(stops: list[str]) -> None:
    finder = StopStrings(stops, included=True)
    assert finder.push("one EN") == ("one ", None)
    assert finder.push("D two") == ("END", max(stops, key=len))


def test_a_piece_that_may_not_stop_is_text_like_any_other() -> None:
    finder = StopStrings(["ab", "xabc"])
    assert finder.push("ab xab", may_stop=False) == ("ab ", None)
    assert finder.push("-") == ("xab-", None)
    assert finder.push("ab") == ("", "ab")


def test_a_stop_string_may_begin_in_a_piece_that_may_not_stop() -> None:
    finder = StopStrings(["abc"])
    assert finder.push("ab", may_stop=False) == ("", None)
    assert finder.push("cd") == ("", "abc")
