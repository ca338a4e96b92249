"""The commands and programs in the documentation, and what is said about running them in a comment right above.

<!-- not run: REASON -->       cannot run here; its syntax is checked, and REASON is one of REASONS
<!-- planned: REASON -->       a make target that would take too long: make says what it would do, so it exists
<!-- ready at: URL -->         starts something that runs until it is stopped; URL answers when it is up
<!-- running: ... -->          starts what the tests have started already
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LANGUAGES = ("bash", "python", "sh")
REASONS = (
    "needs a cluster",
    "needs a container engine",
    "needs a GPU",
    "needs a model from a hub",
    "installs, or takes minutes",
)
_COMMENT = re.compile(r"<!-- (?P<mode>not run|planned|ready at|running): (?P<said>.+) -->\s*")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: where it is, what it says, and how it is run: at once if `mode` is empty."""

    document: Path
    line: int
    language: str
    text: str
    mode: str
    said: str

    @property
    def name(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> Iterator[Block]:
    """Read a document's blocks of commands and programs, in order."""
    tokens = MarkdownIt().parse(document.read_text())
    for before, token in zip([None, *tokens], tokens, strict=False):
        language = token.info.split(" ")[0] if token.type == "fence" else ""
        if language not in LANGUAGES:
            continue
        comment = None
        if before is not None and before.type == "html_block":
            comment = _COMMENT.fullmatch(before.content)
        mode, said = (comment["mode"], comment["said"]) if comment else ("", "")
        yield Block(document, token.map[0] + 1, language, token.content, mode, said)


ALL = [block for document in DOCUMENTS for block in blocks(document)]
