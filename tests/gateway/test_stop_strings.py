"""Stop strings cut a text at the same place however it comes."""

import itertools
import random

import pytest

from services.gateway.stop_strings import StopStrings


def run(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    finder, out = StopStrings(stops), ""
    for part in parts:
        text, stopped = finder.push(part)
        out += text
        if stopped:
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
    assert finder.push("text <e") == ("text ", False)
    assert finder.push("n") == ("", False)
    assert finder.push("ough") == ("<enough", False)
