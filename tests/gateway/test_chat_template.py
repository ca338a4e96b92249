"""Templates see what transformers shows them, and nothing else."""

import pytest

from common.errors import InvalidRequestError, ModelLoadError
from services.gateway.chat_template import ChatTemplate

USER = [{"role": "user", "content": "Hé <b>"}]


def test_special_tokens_and_helpers_are_there() -> None:
    source = "{{ bos_token }}{{ messages | tojson }}{{ strftime_now('%%') }}{{ add_generation_prompt }}{{ tools }}"
    rendered = ChatTemplate(source, {"bos_token": "<s>"}).render(USER)
    assert rendered == '<s>[{"role": "user", "content": "Hé <b>"}]%TrueNone'


def test_blocks_are_trimmed_and_loops_controlled() -> None:
    source = "{% for m in messages %}\n  {% if loop.index > 1 %}\n{% break %}{% endif %}\n{{ m.content }}\n{% endfor %}"
    assert ChatTemplate(source, {}).render(USER * 2) == "Hé <b>\n"


def test_generation_blocks_are_rendered() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert ChatTemplate(source, {}).render(USER) == "Hé <b>"


def test_a_template_refuses_in_its_own_words() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        template.render(USER)


@pytest.mark.parametrize("source", ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    with pytest.raises(InvalidRequestError):
        ChatTemplate(source, {}).render(USER)


def test_a_broken_template_stops_the_start() -> None:
    with pytest.raises(ModelLoadError, match="chat template"):
        ChatTemplate("{% for %}", {})
