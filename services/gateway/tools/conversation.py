"""A conversation with tools as a model's chat template takes it, or in words where the template knows of none."""

import json
from collections.abc import Sequence
from typing import Any

from common.errors import InvalidRequestError
from services.gateway.chat_template import ChatMessage
from services.gateway.requests.messages import Message
from services.gateway.text_model import TextModel
from services.gateway.tools.formats import HERMES, MISTRAL, ToolFormat
from services.gateway.tools.schemas import MessageToolCall, Tool

Described = dict[str, Any]

_FUNCTION_KEYS = ("name", "description", "parameters")
_MISTRAL_ID_LENGTH = 9
"""The templates of Mistral's models refuse others."""


def conversation(
    messages: Sequence[Message], tools: Sequence[Tool], model: TextModel
) -> tuple[list[ChatMessage], list[Described] | None]:
    """Return the messages, and the tools that are left for the template to describe.

    Raises InvalidRequestError for a call in it whose arguments are no JSON object.
    """
    entries = [_entry(place, message, model.tool_format) for place, message in enumerate(messages)]
    described = [_described(tool) for tool in tools]
    if model.template_knows_tools:
        return entries, described or None
    if described or any("tool_calls" in entry for entry in entries):
        entries = _in_words(entries, described)
    return entries, None


def _described(tool: Tool) -> Described:
    function = {"parameters": {"type": "object", "properties": {}}, **tool.function.model_dump(exclude_none=True)}
    return {"type": "function", "function": {key: function[key] for key in _FUNCTION_KEYS if key in function}}


def _entry(place: int, message: Message, form: ToolFormat) -> ChatMessage:
    # Without what the client has not given: templates ask whether a key is there.
    entry: ChatMessage = {"content": "", **message.model_dump(exclude_defaults=True)}
    if message.tool_calls:
        entry["tool_calls"] = [
            _call(call, f"messages.{place}.tool_calls.{number}", form) for number, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        entry["tool_call_id"] = _identity(message.tool_call_id, form)
    return entry


def _call(call: MessageToolCall, param: str, form: ToolFormat) -> dict[str, Any]:
    """Return a call with its arguments as an object: templates write them as JSON themselves."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
        json.dumps(arguments, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        param = f"{param}.function.arguments"
        raise InvalidRequestError(f"{param} must be a JSON object, as text", param=param)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": _identity(call.id, form), "type": "function", "function": function}


def _identity(identity: str, form: ToolFormat) -> str:
    return identity[-_MISTRAL_ID_LENGTH:] if form is MISTRAL else identity


def _in_words(entries: Sequence[ChatMessage], tools: Sequence[Described]) -> list[ChatMessage]:
    """Return the conversation in roles and text alone, in the Hermes form."""
    written: list[ChatMessage] = []
    for entry in entries:
        if entry["role"] == "tool":
            _add_response(written, str(entry["content"]))
        elif "tool_calls" in entry:
            calls = [_written(call["function"]) for call in entry["tool_calls"]]
            written.append({"role": entry["role"], "content": "\n".join(filter(None, [entry["content"], *calls]))})
        else:
            written.append(entry)
    return _with_instructions(written, tools) if tools else written


def _add_response(written: list[ChatMessage], content: str) -> None:
    """Add what a tool has answered, to the message before if that is one too: templates want speakers in turn."""
    response = f"<tool_response>\n{content}\n</tool_response>"
    if written and written[-1].get("responds"):
        written[-1]["content"] += f"\n{response}"
    else:
        written.append({"role": "user", "content": response, "responds": True})


def _written(function: dict[str, Any]) -> str:
    return f"{HERMES.begin}\n{json.dumps(function, ensure_ascii=False)}\n{HERMES.end}"


def _with_instructions(entries: list[ChatMessage], tools: Sequence[Described]) -> list[ChatMessage]:
    """Put the tools' description into the system message, behind what stands there."""
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    example = _written({"name": "the function's name", "arguments": {"an argument's name": "its value"}})
    instructions = (
        "You can call functions. These are there, each as JSON with a schema of its arguments:\n"
        f"<tools>\n{described}\n</tools>\n"
        f"To call one, answer with its name and arguments in this form:\n{example}"
    )
    first = entries[0] if entries and entries[0]["role"] in {"system", "developer"} else None
    if first is None:
        return [{"role": "system", "content": instructions}, *entries]
    return [{**first, "content": f"{first['content']}\n\n{instructions}"}, *entries[1:]]
