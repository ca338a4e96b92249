"""The forms in which models write calls."""

import json
from dataclasses import dataclass
from typing import Literal

FormatName = Literal["auto", "hermes", "llama3_json", "mistral"]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How calls stand in an answer. Each is an object with the function's name and its arguments.

    Attributes:
        name: as vLLM's `--tool-call-parser` calls it.
        begin: the marker before calls; empty: an answer is calls if it begins with an object that is one.
        end: the marker behind them.
        arguments_key: the arguments' name in the object.
        opening: what stands between the marker and the first call's object.
        separator: what stands between calls.
        closing: what stands between the last call's object and the end marker.
        repeats_markers: whether each call has markers of its own.
        filler: characters around a call's object that are no part of it.
        ignored: markers that may stand there too.
    """

    name: FormatName
    begin: str
    end: str
    arguments_key: str
    opening: str = ""
    separator: str = ""
    closing: str = ""
    repeats_markers: bool = False
    filler: str = " \t\r\n"
    ignored: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """What is never content, wherever it stands."""
        return tuple(filter(None, (self.begin, self.end if self.repeats_markers else "")))

    @property
    def all_markers(self) -> tuple[str, ...]:
        """What may be a token of its own."""
        return tuple(filter(None, (self.begin, self.end, self.ignored)))


HERMES = ToolFormat(
    "hermes",
    begin="<tool_call>",
    end="</tool_call>",
    arguments_key="arguments",
    opening="\n",
    separator="\n",
    closing="\n",
    repeats_markers=True,
)
LLAMA3_JSON = ToolFormat(
    "llama3_json",
    begin="",
    end="",
    arguments_key="parameters",
    separator="; ",
    filler=" \t\r\n;",
    ignored="<|python_tag|>",
)
MISTRAL = ToolFormat(
    "mistral",
    begin="[TOOL_CALLS]",
    end="]",
    arguments_key="arguments",
    opening=" [",
    separator=", ",
    filler=" \t\r\n[,",
)
_FORMATS = {form.name: form for form in (HERMES, LLAMA3_JSON, MISTRAL)}


def format_of(template: str, name: FormatName = "auto") -> ToolFormat:
    """Return the form by its name, or the one whose markers a chat template writes; Hermes if there are none."""
    if name != "auto":
        return _FORMATS[name]
    if HERMES.begin in template:
        return HERMES
    if MISTRAL.begin in template:
        return MISTRAL
    if LLAMA3_JSON.ignored in template or json.dumps(LLAMA3_JSON.arguments_key) in template:
        return LLAMA3_JSON
    return HERMES
