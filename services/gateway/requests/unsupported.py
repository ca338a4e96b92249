"""Parameters that would change the answer and are not served: refused by name, with the reason, never ignored."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from services.gateway.requests.parameter_errors import InvalidParameterError

_NOT_SERVED = "this service does not have it"
_NO_PROMPT_OUTPUTS = (
    "log probabilities of the prompt need the model's output at every position of the prompt, "
    "and most of them are not computed once the prompt is reduced to its skeleton"
)


@dataclass(frozen=True, slots=True)
class Unsupported:
    """One such parameter: the values that ask for nothing, and why others are refused."""

    neutral: tuple[object, ...] = ()
    reason: str = _NOT_SERVED


_TEMPLATE = "conversations are rendered with the model's own chat template"

_ONLY_CHATS = "only /v1/chat/completions has tools"
_DEPRECATED = "OpenAI has replaced it by tools and tool_choice"

UNSUPPORTED: dict[str, Unsupported] = {
    "echo": Unsupported((False,), "only /v1/completions echoes its prompt"),
    "suffix": Unsupported(("",), "the model continues a text, it does not fill in"),
    "prompt_logprobs": Unsupported((), _NO_PROMPT_OUTPUTS),
    "use_beam_search": Unsupported((False,), "answers are sampled token by token"),
    "length_penalty": Unsupported((1, 1.0), "it belongs to beam search"),
    "bad_words": Unsupported(([],)),
    "allowed_token_ids": Unsupported(),
    "truncate_prompt_tokens": Unsupported((), "a prompt that is too long is refused, not cut"),
    "prompt_embeds": Unsupported(),
    "chat_template": Unsupported((), _TEMPLATE),
    "chat_template_kwargs": Unsupported(({},), _TEMPLATE),
    "documents": Unsupported(([],), _TEMPLATE),
    "add_generation_prompt": Unsupported((True,), "the assistant speaks next"),
    "continue_final_message": Unsupported((False,), "the assistant begins a message of its own"),
    "tools": Unsupported(([],), _ONLY_CHATS),
    "tool_choice": Unsupported(("none", "auto"), _ONLY_CHATS),
    "functions": Unsupported(([],), _DEPRECATED),
    "function_call": Unsupported(("none", "auto"), _DEPRECATED),
    "guided_whitespace_pattern": Unsupported((), "white space in JSON is bounded by this service"),
    "modalities": Unsupported((["text"],), "answers are text"),
    "audio": Unsupported((), "answers are text"),
}


def prompt_logprobs_with_echo() -> InvalidParameterError:
    """Return the error for the log probabilities of a prompt that is echoed."""
    return _refusal("echo", f"echo with logprobs is not supported: {_NO_PROMPT_OUTPUTS}")


def check_supported(data: Mapping[str, object], fields: Collection[str]) -> None:
    """Raise InvalidParameterError for a parameter that asks for what is not served, unless it is a field."""
    for name, unsupported in UNSUPPORTED.items():
        if name not in fields and not _asks_for_nothing(data.get(name), unsupported.neutral):
            neutral = " or ".join(str(entry) for entry in unsupported.neutral)
            accepted = f" other than {neutral}" if neutral else ""
            raise _refusal(name, f"{name}{accepted} is not supported: {unsupported.reason}")


def _asks_for_nothing(value: object, neutral: tuple[object, ...]) -> bool:
    # By type too: 0 == False, but for some parameters one asks for something and the other does not.
    return value is None or any(type(value) is type(entry) and value == entry for entry in neutral)


def _refusal(name: str, message: str) -> InvalidParameterError:
    return InvalidParameterError(message, param=name, openai_code="unsupported_parameter")
