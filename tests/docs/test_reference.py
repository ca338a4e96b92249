"""What the documentation takes from code and results is what they say."""

import re
from pathlib import Path

import pytest

from evaluation.tradeoff import Point, kv_points, struct_points
from services.reference import reference
from tests.docs.blocks import DOCUMENTS, ROOT

LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#\s]*)#?(?P<anchor>[^)\s]*)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def test_the_settings_are_those_of_the_services() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == reference(), "run `make reference`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert [link for link in links if not leads_somewhere(document, *link)] == []


def leads_somewhere(document: Path, path: str, anchor: str) -> bool:
    target = document.parent / path if path else document
    return target.exists() and (not anchor or anchor in anchors(target.read_text()))


def anchors(text: str) -> set[str]:
    """Return the names that a page's headings have as GitHub shows it."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def rows(points: list[Point], row: str) -> list[str]:
    return [
        f"{row.format(f'{point.rate:.0%}')} | {point.share * 100:.1f} ± {point.error:.1%} | {point.prefill:.2f} |"
        for point in points
    ]


def test_the_curve_is_that_of_the_results() -> None:
    text = (ROOT / "docs" / "tuning.md").read_text()
    expected = rows(kv_points(), "| {} | 20%") + rows(struct_points(), "| 10% | {}")
    assert len(expected) == 6
    assert [row for row in expected if row not in text] == []
