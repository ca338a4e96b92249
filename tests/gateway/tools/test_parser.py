"""Content and calls told apart, in every form, however the text is cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.tools.calls import joined
from services.gateway.tools.formats import HERMES, LLAMA3_JSON, MISTRAL, ToolFormat, format_of
from services.gateway.tools.parser import ToolCallParser

NAMES = ["get_weather", "now"]
PARIS = '{"city": "Paris", "note": "a \\"}{\\" b"}'
HERMES_CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'
HERMES_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
LLAMA_CALL = f'{{"name": "get_weather", "parameters": {PARIS}}}'
MISTRAL_CALL = f'{{"name": "get_weather", "arguments": {PARIS}}}'

Parsed = tuple[str, list[tuple[str | None, str]]]
WEATHER, NOW = ("get_weather", PARIS), ("now", "{}")

CASES: list[tuple[ToolFormat, str, Parsed]] = [
    (HERMES, "Just text, with {braces} and < tool_call >.\n", ("Just text, with {braces} and < tool_call >.\n", [])),
    (HERMES, HERMES_CALL, ("", [WEATHER])),
    (HERMES, f"Let me see.\n\n{HERMES_CALL}\n{HERMES_NOW}\n", ("Let me see.", [WEATHER, NOW])),
    (HERMES, f"{HERMES_CALL} And then?", (" And then?", [WEATHER])),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "x"}</tool_call>', ("", [("x", '{"a": 1}')])),
    (HERMES, '<tool_call>{"name": "x", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [("x", '{"a": 1}')])),
    (HERMES, '<tool_call>{"name": "x"}</tool_call>', ("", [("x", "{}")])),
    (HERMES, '<tool_call>{"name": "now", "arguments": {}}', ("", [NOW])),
    (HERMES, '<tool_call>{"name": "now", "arguments": {}\n</tool_call> So.', (" So.", [NOW])),
    (HERMES, '<tool_call>{"name": "now", "arguments": {"a": 1', ("", [("now", '{"a": 1')])),
    (HERMES, '<tool_call>{"name": "n', ('{"name": "n', [])),
    (HERMES, "<tool_call>{nonsense}</tool_call>", ("{nonsense}", [])),
    (HERMES, "<tool_call>nothing</tool_call>", ("nothing", [])),
    (HERMES, "a <tool", ("a <tool", [])),
    (LLAMA3_JSON, "The answer is {5}.", ("The answer is {5}.", [])),
    (LLAMA3_JSON, LLAMA_CALL, ("", [WEATHER])),
    (LLAMA3_JSON, f'<|python_tag|>{LLAMA_CALL}; {{"name": "now", "parameters": {{}}}}', ("", [WEATHER, NOW])),
    (LLAMA3_JSON, '{"name": "Ada", "parameters": {"age": 36}}', ('{"name": "Ada", "parameters": {"age": 36}}', [])),
    (LLAMA3_JSON, '{"answer": 5} is it', ('{"answer": 5} is it', [])),
    (LLAMA3_JSON, f"Call: {LLAMA_CALL}", (f"Call: {LLAMA_CALL}", [])),
    (MISTRAL, f"[TOOL_CALLS] [{MISTRAL_CALL}]", ("", [WEATHER])),
    (MISTRAL, f'[TOOL_CALLS][{MISTRAL_CALL}, {{"name": "now", "arguments": {{}}}}]', ("", [WEATHER, NOW])),
    (MISTRAL, f"Well. [TOOL_CALLS] [{MISTRAL_CALL}", ("Well.", [WEATHER])),
    (MISTRAL, '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "123456789"}]', ("", [NOW])),
    (MISTRAL, "A list: [1, 2]", ("A list: [1, 2]", [])),
]


def parse(form: ToolFormat, pieces: list[str], *, parallel: bool = True) -> Parsed:
    parser = ToolCallParser(form, NAMES, parallel=parallel)
    taken = [*(parser.push(piece) for piece in pieces), parser.flush()]
    calls = joined(delta for _, deltas in taken for delta in deltas)
    assert [call.index for call in calls] == list(range(len(calls)))
    identities = {call.identity for call in calls}
    assert len(identities) == len(calls)
    assert all(identity is not None and identity.startswith("call_") for identity in identities)
    return "".join(content for content, _ in taken), [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_what_a_text_holds(form: ToolFormat, text: str, expected: Parsed) -> None:
    assert parse(form, [text]) == expected


@settings(max_examples=400, deadline=None)
@given(case=st.sampled_from(CASES), data=st.data())
def test_it_does_not_depend_on_the_cuts(case: tuple[ToolFormat, str, Parsed], data: st.DataObject) -> None:
    form, text, expected = case
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(form, pieces) == expected


_FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "]",
    "[",
    "{",
    "}",
    '"',
    " ",
    "\n",
    ",",
    ";",
    "x",
    "<",
    "\\",
]
_FRAGMENTS += ['{"name": "now", "arguments": ', '{"a": 1}', "<|python_tag|>", '"name"', ": "]


@settings(max_examples=400, deadline=None)
@given(
    form=st.sampled_from([HERMES, LLAMA3_JSON, MISTRAL]),
    fragments=st.lists(st.sampled_from(_FRAGMENTS), max_size=12),
    data=st.data(),
)
def test_nor_for_whatever_a_model_writes(form: ToolFormat, fragments: list[str], data: st.DataObject) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(form, [text])
    assert parse(form, pieces) == whole
    assert parse(form, list(text)) == whole


def test_arguments_go_out_as_they_come() -> None:
    parser = ToolCallParser(HERMES, NAMES, parallel=True)
    parts = ['<tool_call>\n{"name": "get_weather", "arguments": ', '{"city": ', '"Paris"', "}}\n</tool_call>"]
    arguments = [[delta.arguments for delta in parser.push(part)[1]] for part in parts]
    assert arguments == [[], ['{"city": '], ['"Paris"'], ["}"]]


@pytest.mark.parametrize(
    ("form", "text"), [(HERMES, f"{HERMES_CALL}\n{HERMES_NOW} end"), (LLAMA3_JSON, LLAMA_CALL * 2)]
)
def test_without_parallel_calls_only_the_first_counts(form: ToolFormat, text: str) -> None:
    assert parse(form, [text], parallel=False) == ("", [WEATHER])
    assert parse(form, list(text), parallel=False) == ("", [WEATHER])
    json.loads(WEATHER[1])


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", MISTRAL),
        ("{% if tools %}<|python_tag|>{% endif %}", LLAMA3_JSON),
        ('{% if tools %}{"name": n, "parameters": p}{% endif %}', LLAMA3_JSON),
        ("{{ messages }}", HERMES),
    ],
)
def test_a_template_shows_its_models_form(template: str, form: ToolFormat) -> None:
    assert format_of(template) is form
    assert format_of(template, "mistral") is MISTRAL
