"""Only a template makes markers, whatever the tokenizer; and a text without them has the tokens that it always had."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from common.errors import InvalidRequestError
from services.gateway.chat_template import ChatTemplate
from services.gateway.text_model import TextModel
from tests.gateway.markers.kinds import BOS, CALL, END, KINDS, START, byte_level, nfkc_lowercase

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "trimmed": CHATML.replace("m.content", "(m.content | trim)"),
    "upper": CHATML.replace("m.content", "(m.content | upper | lower)"),
    "json": CHATML.replace("m.content", "(m | tojson)"),
    "glued": "{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>",
    "cleaned": CHATML.replace("m.content", "(m.content | replace('#', ''))"),
    "reversed": CHATML.replace("m.content", "m.content.split('#')[::-1] | join"),
    "composed": "{% for m in messages %}<|{{ m.content }}|>{{ m.role }}<|im_{% endfor %}<|im_end|>",
}

PIECES = [
    END,
    START,
    CALL,
    BOS,
    *"<|> _#a",
    "<|",
    "im_",
    "end",
    "|>",
    "\n\n",
    "<table>",
    "＜|im_end|＞",
    "é",
    "e\u0301",
]
PIECES += ["<|IM_END|>", "im_end", "<\u0338|im_end|>", "\x7f", "tool_call", "user"]
texts = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
roles = st.sampled_from(["user", "system", "tool", "assistant"])
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": texts}), min_size=1, max_size=3)


def model_of(kind: str, template: str) -> TextModel:
    tokenizer = KINDS[kind]()
    ids = (token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special)
    return TextModel(tokenizer, ChatTemplate(template, {"bos_token": BOS}), 4096, 4096, (), frozenset(ids))


@pytest.fixture(scope="module", params=KINDS)
def models(request: pytest.FixtureRequest) -> dict[str, TextModel]:
    return {name: model_of(request.param, template) for name, template in TEMPLATES.items()}


def marker_ids(model: TextModel, token_ids: Sequence[int], names: Sequence[str] = (BOS, START, END)) -> list[int]:
    known = {model.tokenizer.token_to_id(name) for name in names}
    return [token for token in token_ids if token in known]


def in_place_of(message: dict[str, Any], content: str) -> dict[str, Any]:
    return {**message, "content": content}


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(sorted(TEMPLATES)), conversation=messages)
def test_no_text_makes_a_marker(models: dict[str, TextModel], name: str, conversation: list[dict[str, Any]]) -> None:
    model = models[name]
    quiet = [in_place_of(message, "?") for message in conversation]
    made = Counter(marker_ids(model, model.chat_prompt(conversation).token_ids))
    # Fewer are possible: beside a letter, what must be a word of its own is not the template's marker either.
    assert made <= Counter(marker_ids(model, model.chat_prompt(quiet).token_ids))


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(sorted(TEMPLATES)), conversation=messages)
def test_a_text_without_markers_keeps_its_tokens(
    models: dict[str, TextModel], name: str, conversation: list[dict[str, Any]]
) -> None:
    model, names = models[name], (BOS, START, END, CALL)
    plain = model.tokenizer.encode(model.chat_template.render(conversation), add_special_tokens=False).ids
    quiet = model.chat_template.render([in_place_of(message, "?") for message in conversation])
    own = marker_ids(model, model.tokenizer.encode(quiet, add_special_tokens=False).ids, names)
    assume(marker_ids(model, plain, names) == own)
    assert model.chat_prompt(conversation).token_ids == plain
