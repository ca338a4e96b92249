"""The HTML page: the text exactly, nothing from outside, and the numbers that the script draws from."""

import base64
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from common.skeleton.selection import METHODS
from evaluation.inspection import page
from tests.evaluation.inspection.conftest import PROMPT, Examine

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!--",
    "]]>",
    "&amp;",
    "\"'`",
    "日",
    "",
    "\r\n",
    "\r",
    "\u2028",
    "{{ 7 * 7 }}",
    "</i></div>",
]


class Reader(HTMLParser):
    """Collects what a browser would: elements, the text's tokens, the script's data."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[str] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._open = tag
        if tag == "i":
            self.tokens.append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "i":
            self.tokens[-1] += data
        if self._open == "script":
            self.scripts[-1] += data

    @property
    def data(self) -> dict[str, object]:
        return json.loads(self.scripts[0])


def test_hostile_text_stays_text(examined: Examine) -> None:
    pieces = [*HOSTILE, *(f" {token}" for token in PROMPT[len(HOSTILE) :])]
    html = page.render(examined(pieces=pieces))
    reader = Reader(html)
    assert reader.tokens == pieces
    assert "alert" not in "".join(reader.scripts)
    assert not any(tag == "img" for tag, _ in reader.elements)
    assert len(reader.scripts) == 2, "the data and ours"


def test_names_of_tokens_without_text_stay_data(examined: Examine) -> None:
    inspection = examined(pieces=["", *(f" {token}" for token in PROMPT[1:])])
    inspection.prompt.names[0] = "</script><script>alert(1)</script>"
    reader = Reader(page.render(inspection))
    assert len(reader.scripts) == 2
    assert reader.data["emptyNames"] == {"0": inspection.prompt.names[0]}


def test_nothing_is_fetched(examined: Examine) -> None:
    reader = Reader(page.render(examined()))
    assert not any({"src", "href", "srcset"} & attributes.keys() for _, attributes in reader.elements)
    [policy] = [a["content"] for _, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_script_reads_which_layer_keeps_what(family: str, method: str, granularity: str, examined: Examine) -> None:
    inspection = examined(family, method=method, granularity=granularity)
    data = Reader(page.render(inspection)).data
    rows = np.frombuffer(base64.b64decode(data["kept"]), dtype=np.uint8).reshape(6, -1)
    shares = rows / data["heads"] if data["heads"] > 1 else np.unpackbits(rows, axis=1, bitorder="little")
    expected = inspection.recording.heads_keeping().numpy() / 2
    assert (shares[:, : len(PROMPT)] == expected).all()


def test_marks_say_what_is_always_kept_and_what_goes_on(examined: Examine) -> None:
    inspection = examined()
    classes = [a.get("class", "").split() for tag, a in Reader(page.render(inspection)).elements if tag == "i"]
    always = [place for place, names in enumerate(classes) if "a" in names]
    assert always == [*range(4), *range(len(PROMPT) - 8, len(PROMPT))]
    goes_on = [place for place, names in enumerate(classes) if "g" in names]
    assert goes_on == (inspection.recording.layers_run == 6).nonzero().flatten().tolist()
    starts = [place for place, names in enumerate(classes) if "s" in names]
    assert starts == [64, 128, 192], "a tokenizer that tells no sentences has blocks of 64"
