"""Renders a conversation with the model's own Jinja template, in a sandbox, as transformers would.

A template comes with the model, so it is foreign code: the sandbox gives it neither attributes with
underscores nor anything that changes its arguments.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.errors import InvalidRequestError, ModelLoadError

ChatMessage = dict[str, Any]


class _GenerationBlock(Extension):
    """`{% generation %}` marks what a model is trained on; to render a prompt it is nothing."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    # jinja2's own filter escapes for HTML, which models have not seen.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _texts(syntax: nodes.Template) -> Iterator[str]:
    for text in syntax.find_all(nodes.TemplateData):
        yield text.data
    for constant in syntax.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value


class ChatTemplate:
    """A model's chat template; `special_tokens` are its variables such as `bos_token`.

    Attributes:
        source: its text.
        knows_tools: whether it describes tools to the model.
        literals: the texts that it is made of.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        helpers: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.globals.update(helpers)
        try:
            self._template = environment.from_string(source)
            syntax = environment.parse(source)
        except jinja2.TemplateError as error:
            raise ModelLoadError(f"the model's chat template cannot be read: {error}") from error
        self.knows_tools = "tools" in meta.find_undeclared_variables(syntax)
        self.literals = frozenset(_texts(syntax))
        self.source = source
        self._special_tokens = special_tokens

    def __reduce__(self) -> tuple[object, ...]:
        """Let another process have the template, read anew."""
        return ChatTemplate, (self.source, self._special_tokens)

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt's text, up to where the assistant's words begin unless told otherwise.

        Raises InvalidRequestError with the template's own words where it refuses the conversation.
        """
        try:
            return self._template.render(
                messages=list(messages),
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, RecursionError) as error:
            raise InvalidRequestError(
                f"the model's chat template refuses the messages: {error}", param="messages"
            ) from error
